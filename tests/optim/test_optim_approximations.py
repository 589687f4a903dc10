"""Forms for layers whose exact ones are dear: blocks on the diagonal, sketches, a budget; and what they hold."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import ActivationPreconditioner, DoPr, inverses
from dopr_robot.optim import step as steps_of
from dopr_robot.optim.state import room


def inputs(step: int, n: int = 300, d: int = 200, known: int = 12) -> Tensor:
    """Inputs of which ``known`` directions of ``d`` are strong."""
    generator = torch.Generator().manual_seed(step)
    mix = torch.randn(known, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    strong = torch.randn(n, known, generator=generator, dtype=torch.float64) @ mix
    return strong + 0.1 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def damped(moment: Tensor, gradient: Tensor, damping: float = 0.1) -> Tensor:
    return gradient @ torch.linalg.inv(moment + damping * moment.trace() / len(moment) * torch.eye(len(moment)))


def second_moment(z: Tensor) -> Tensor:
    return z.T @ z / len(z)


def stepped(layer: nn.Module, steps: int, make=inputs, **options) -> tuple[Tensor, Tensor, DoPr]:
    """The last step's gradient, and what became of it."""
    optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.0), layer, damping=0.1, **options)
    for step in range(steps):
        optimizer.zero_grad()
        (layer(make(step)).sin() * torch.linspace(1, 2, layer.weight.shape[0])).sum().backward()
        before = layer.weight.grad.clone()
        optimizer.step()
    return before, layer.weight.grad.clone(), optimizer


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("form", ["batch", "average"])
@pytest.mark.parametrize("n", [20, 300])
def test_wide_inputs_are_taken_in_blocks_on_the_diagonal(form, n):
    layer = nn.Linear(200, 8, bias=False)
    make = lambda step: inputs(step, n)  # noqa: E731
    before, after, optimizer = stepped(layer, 1, make, form=form, max_dim=60)
    moment = second_moment(make(0))
    mask = torch.block_diag(*[torch.ones(50, 50)] * 4)
    assert torch.allclose(after, damped(moment * mask, before), rtol=1e-8, atol=1e-12)
    assert "in 4 blocks of 50" in str(optimizer.coverage())


def test_blocks_of_a_convolution_are_of_its_channels():
    layer = nn.Conv1d(8, 3, 3, bias=False)
    x = torch.randn(5, 8, 9)
    optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.0), layer, damping=0.1, form="batch", max_dim=4)
    layer(x).sin().sum().backward()
    before = layer.weight.grad.clone()
    optimizer.step()
    moment = second_moment(x.transpose(1, 2).reshape(-1, 8)) * torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    taps = damped(moment, before.transpose(1, 2).reshape(-1, 8)).view(3, 3, 8).transpose(1, 2)
    assert torch.allclose(layer.weight.grad, taps)


def test_what_has_no_blocks_is_left_to_the_base_and_the_report_says_so():
    model = nn.Sequential(nn.Linear(4, 211), nn.Linear(211, 2))  # a prime
    report = {row.name: row.how for row in ActivationPreconditioner(model, max_dim=100).coverage()}
    assert report["1.weight"] == "its 211 inputs are more than max_dim=100, and have no blocks"


def test_a_sketch_of_all_the_directions_there_are_is_this_steps_own_inverse():
    layer = nn.Linear(200, 8, bias=False)
    x = torch.randn(300, 200) * (torch.arange(200) < 40)
    before, after, _ = stepped(layer, 8, lambda step: x, form="sketch", rank=40)
    exact = damped(second_moment(x), before)
    assert (after - exact).norm() < 1e-8 * exact.norm()


def test_a_sketch_goes_on_from_the_last_steps_directions():
    layer = nn.Linear(200, 8, bias=False)
    found = []
    for steps in (1, 6):
        before, after, optimizer = stepped(layer, steps, form="sketch", rank=12)
        found.append(cosine(after, damped(second_moment(inputs(steps - 1)), before)))
    assert min(found) > 0.95
    assert found[0] < found[1] + 1e-3
    assert "this step's S, 12 leading directions" in str(optimizer.coverage())
    assert 1 < optimizer.spectrum()["weight"].effective_rank < 30
    held = optimizer.preconditioner.factors[0].state
    assert not any(tensor.shape[-2:] == (200, 200) for tensor in held.values())


def test_an_averaged_sketch_is_near_the_average_and_a_resumed_run_the_same():
    layer = nn.Linear(200, 8, bias=False)
    before, after, optimizer = stepped(layer, 5, form="average_sketch", rank=12, update_every=1, stat_decay=0.8)
    moment = second_moment(inputs(0))
    for step in range(1, 5):
        moment = 0.8 * moment + 0.2 * second_moment(inputs(step))
    assert cosine(after, damped(moment, before)) > 0.97
    other = copy.deepcopy(layer)
    again = DoPr(
        torch.optim.SGD(other.parameters(), lr=0.0),
        other,
        damping=0.1,
        form="average_sketch",
        rank=12,
        update_every=1,
        stat_decay=0.8,
    )
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((layer, optimizer), (other, again)):
        by.zero_grad()
        each(inputs(7)).sin().sum().backward()
        by.step()
    assert torch.equal(layer.weight.grad, other.weight.grad)


def test_small_layers_of_a_sketch_are_exact():
    model = nn.Sequential(nn.Linear(100, 8, bias=False))
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.0), model, form="sketch")
    model(torch.randn(30, 100)).sum().backward()
    optimizer.step()
    assert "this step's S" in str(optimizer.coverage())
    assert "sketch" not in str(optimizer.coverage())


@pytest.mark.parametrize("form", ["batch", "average", "low_rank", "average_sketch", "sketch"])
def test_what_will_be_held_is_known_before_training_and_without_numbers(form):
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(256, 300, bias=False), nn.Linear(300, 256, bias=False))

    with torch.device("meta"):
        plan = make()
        planned = DoPr(torch.optim.SGD(plan.parameters()), plan, form=form, update_every=1).memory_usage(tokens=40)
    model = make()
    real = ActivationPreconditioner(model, form=form, update_every=1)
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(40, 256)).sum().backward()
        seen = real.memory_usage()
        real.precondition_()
    settled = real.memory_usage()
    assert seen["total"] <= planned["total"] * 1.01
    assert planned["total"] <= 1.25 * max(seen["total"], 1)
    assert settled["total"] <= planned["total"]


def test_what_a_part_is_made_of_is_let_go_before_the_next(monkeypatch):
    """Of many layers at their first step no more than one sum of products lies beside what is kept."""
    monkeypatch.setitem(inverses._CHUNK, "cpu", 1)  # each layer alone
    model = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(4)))
    preconditioner = ActivationPreconditioner(model, form="average")
    left = []
    form = steps_of.form_inverses

    def count(*args: object) -> object:
        left.append(sum(bool(factor.sums) for factor in preconditioner.factors))
        return form(*args)

    monkeypatch.setattr(steps_of, "form_inverses", count)
    model(torch.randn(8, 16)).sum().backward()
    preconditioner.precondition_()
    assert left == [3, 2, 1, 0]


@pytest.mark.parametrize("form", ["average", "low_rank", "average_sketch"])
def test_a_state_in_bfloat16_is_half_as_large_and_near_the_same(form):
    torch.set_default_dtype(torch.float32)
    found = {}
    for dtype in (None, "bfloat16"):
        torch.manual_seed(0)
        layer = nn.Linear(200, 8, bias=False)
        options = {"form": form, "update_every": 2, "offload": dtype is not None, "state_dtype": dtype}
        _, after, optimizer = stepped(layer, 5, lambda step: inputs(step).float(), **options)
        optimizer.zero_grad()
        found[dtype] = after, optimizer.memory_usage()["total"]
        assert optimizer.preconditioner.memory_usage(tokens=0)["total"] == pytest.approx(found[dtype][1], rel=0.02)
    assert cosine(found[None][0], found["bfloat16"][0]) > 0.99
    assert found["bfloat16"][1] < 0.51 * found[None][1]


@pytest.mark.parametrize("form", ["average", "low_rank", "sketch", "average_sketch"])
def test_a_budget_is_of_this_steps_form_alone(form):
    with pytest.raises(ValueError, match=f"max_cost=0.3 is of form='batch' or 'auto', and says nothing of {form!r}"):
        ActivationPreconditioner(nn.Linear(4, 2), form=form, max_cost=0.3)


@pytest.mark.parametrize("options", [{"state_dtype": "int8"}, {"max_dim": 0}, {"max_cost": -1.0}, {"max_cost": "half"}])
def test_bad_limits_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        ActivationPreconditioner(nn.Linear(4, 2), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"form": "sketch"},
        {"form": "average_sketch", "state_dtype": "bfloat16", "offload": True},
        {"form": "batch", "max_cost": 0.3},
        {"form": "average", "state_dtype": "bfloat16"},
        {"form": "average", "max_dim": 64},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_resumed_run_is_the_same(options):
    torch.set_default_dtype(torch.float32)

    def make() -> tuple[nn.Module, DoPr]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(200, 300, bias=False), nn.Tanh(), nn.Linear(300, 4, bias=False))
        return model, DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, update_every=2, **options)

    def train(model: nn.Module, optimizer: DoPr, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(inputs(step).float()).square().mean().backward()
            optimizer.step()

    model, optimizer = make()
    train(model, optimizer, range(3))
    other, again = make()
    other.load_state_dict(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for factor, loaded in zip(optimizer.preconditioner.factors, again.preconditioner.factors, strict=True):
        assert (factor.form, factor.rank) == (loaded.form, loaded.rank)
        assert {k: (v.dtype, v.device) for k, v in factor.state.items()} == {
            k: (v.dtype, v.device) for k, v in loaded.state.items()
        }
        assert {k: v.shape for k, v in factor.state.items()} == {k: v.shape for k, v in room(factor, "auto").items()}
    train(model, optimizer, range(3, 7))
    train(other, again, range(3, 7))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

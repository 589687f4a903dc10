"""The forms of S: this step's by either factorisation, averages, and which of them a layer takes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import ActivationPreconditioner, DoPr
from dopr_robot.optim.batch import BatchInverse, dual_cost, factorise, parts_of, primal_cost
from dopr_robot.optim.budget import rows_within
from dopr_robot.optim.products import gram
from dopr_robot.optim.step import Refresh

DAMPING = 0.1
SIZES = [(n, d, out) for n in (1, 5, 12, 40) for d, out in ((16, 8), (16, 24), (40, 3))]


def dense(gradient: Tensor, z: Tensor, damping: float = DAMPING) -> Tensor:
    z = z.detach().double().reshape(-1, z.shape[-1])
    moment = z.T @ z / len(z)
    damped = moment + damping * moment.trace() / len(moment) * torch.eye(len(moment), dtype=torch.float64)
    return gradient.double() @ torch.linalg.inv(damped)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way each product with a gradient was taken."""
    ways: list[str] = []
    plain, scale_of = BatchInverse.__call__, BatchInverse._scale_of

    def call(self: BatchInverse, gradient: Tensor) -> Tensor:
        if self.z is None:
            ways.append("primal")
        return plain(self, gradient)

    def scale(self: BatchInverse, gradient: Tensor) -> float | None:
        found = scale_of(self, gradient)
        ways.append("gradient" if found is None else "output")
        return found

    monkeypatch.setattr(BatchInverse, "__call__", call)
    monkeypatch.setattr(BatchInverse, "_scale_of", scale)
    return ways


@pytest.mark.parametrize(("n", "d", "out"), SIZES)
def test_half_the_inverse_which_a_gpu_takes(n, d, out, monkeypatch):
    monkeypatch.setattr(BatchInverse, "kind", "half")
    monkeypatch.setattr("dopr_robot.optim.layers.Layer.output_rows", lambda self, gradient: None)
    torch.manual_seed(0)
    layer = nn.Linear(d, out, dtype=torch.float64)
    preconditioner = ActivationPreconditioner(layer, form="batch", damping=DAMPING)
    x = torch.randn(n, d, dtype=torch.float64)
    layer(x).sin().sum().backward()
    before = layer.weight.grad.clone()
    preconditioner.precondition_()
    assert relative(layer.weight.grad, dense(before, x)) < 1e-11


def test_what_is_factorised_together_is_as_if_alone():
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(8, 3, bias=False) for _ in range(3))
    preconditioner = ActivationPreconditioner(model, form="batch")
    for layer, n in zip(model, (20, 30, 40), strict=True):
        layer(torch.randn(n, 8)).square().sum().backward()
    alone, together = ([BatchInverse(factor) for factor in preconditioner.factors] for _ in range(2))
    for solve in alone:
        factorise([solve], [DAMPING])
    (part,) = parts_of(together, [DAMPING] * 3)  # of one size, and small
    part.factorise()
    rows = torch.randn(1, 3, 8)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one(rows.clone()), other(rows.clone()))


def test_small_matrices_are_factorised_together_up_to_a_bound_and_large_ones_alone(monkeypatch):
    model = nn.ModuleList(nn.Linear(8, 3, bias=False) for _ in range(5))
    preconditioner = ActivationPreconditioner(model, form="batch")
    for layer in model:
        layer(torch.randn(20, 8)).sum().backward()
    solves = [BatchInverse(factor) for factor in preconditioner.factors]
    monkeypatch.setattr("dopr_robot.optim.batch._SMALL_AT_ONCE", 2 * 64)
    assert [len(part.members) for part in parts_of(solves, [DAMPING] * 5)] == [2, 2, 1]
    monkeypatch.setattr("dopr_robot.optim.batch._SMALL", 63)
    assert [len(part.members) for part in parts_of(solves, [DAMPING] * 5)] == [1] * 5


def test_products_of_16_bits_are_added_up_in_float32():
    rows = torch.randn(1, 700, 5).bfloat16()
    assert gram(rows.mT).dtype == torch.float32
    torch.testing.assert_close(gram(rows.mT), rows.float().mT @ rows.float())


@pytest.mark.parametrize("form", ["batch", "average", "low_rank"])
def test_a_step_inside_of_autocast_is_not_rounded(form):
    torch.manual_seed(0)
    layers = [nn.Linear(160, 8)]
    layers.append(copy.deepcopy(layers[0]))
    x = torch.randn(100, 160)
    for layer, inside in zip(layers, (False, True), strict=True):
        preconditioner = ActivationPreconditioner(layer, form=form)
        layer(x).square().sum().backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            preconditioner.precondition_()
    assert torch.equal(layers[0].weight.grad, layers[1].weight.grad)


@pytest.mark.parametrize("include_bias", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("n", "d", "out"), SIZES)
def test_this_steps_second_moment_by_whichever_factorisation(n, d, out, dtype, tolerance, include_bias, taken):
    torch.manual_seed(0)
    layer = nn.Linear(d, out, dtype=dtype)
    preconditioner = ActivationPreconditioner(layer, form="batch", damping=DAMPING, include_bias=include_bias)
    x = torch.randn(n, d, dtype=dtype) * torch.logspace(0, 1, d, dtype=dtype) + 0.5
    (layer(x).sin() * torch.randn(n, out, dtype=dtype)).sum().backward()
    before = layer.weight.grad.clone(), layer.bias.grad.clone()
    preconditioner.precondition_()
    # Multiplications: S, its factor and the solves, against K, its factor, the solve and the product with Z.
    m = d + include_bias
    primal, dual = n * m * m + m**3 / 3 + out * m * m, n * n * m + n**3 / 3 + n * n * min(m, out) + n * m * out
    assert taken == ["output" if n < m and dual < primal else "primal"]
    if include_bias:
        expected = dense(torch.cat([before[0], before[1][:, None]], 1), torch.cat([x, torch.ones_like(x[:, :1])], 1))
        assert relative(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1), expected) < tolerance
    else:
        assert relative(layer.weight.grad, dense(before[0], x)) < tolerance


@pytest.mark.parametrize("what", ["scaled", "clipped", "zeroed", "noised", "masked columns", "accumulated"])
def test_whatever_was_done_to_the_gradient_is_respected(what, taken):
    """The dual form by the output's gradient knows a gradient that was scaled; anything else goes through the gradient itself."""
    torch.manual_seed(0)
    layer = nn.Linear(30, 7, bias=False, dtype=torch.float64)
    preconditioner = ActivationPreconditioner(layer, form="batch", damping=DAMPING)
    x = torch.randn(6, 30, dtype=torch.float64)
    layer(x[:4]).sin().sum().backward()
    layer(x[4:]).sin().sum().backward()
    gradient = layer.weight.grad
    if what == "scaled":
        gradient.mul_(1e-3)
    elif what == "clipped":
        nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
    elif what == "zeroed":
        gradient.zero_()
    elif what == "noised":
        gradient.add_(torch.randn_like(gradient), alpha=1e-3)
    elif what == "masked columns":
        gradient[:, ::2] = 0
    before = gradient.clone()
    preconditioner.precondition_()
    assert taken == ["output" if what in ("scaled", "clipped", "accumulated") else "gradient"]
    assert (layer.weight.grad - dense(before, x)).norm() <= 1e-11 * before.norm()


def test_inputs_of_which_some_are_masked_or_left_out():
    torch.manual_seed(0)
    for options, masked in (({}, True), ({"max_tokens": 6}, False)):
        layer = nn.Linear(30, 7, bias=False, dtype=torch.float64)
        preconditioner = ActivationPreconditioner(layer, form="batch", damping=DAMPING, **options)
        x = torch.randn(4, 3, 30, dtype=torch.float64)
        keep = torch.rand(4, 3) < 0.5
        if masked:
            with preconditioner.token_mask(keep):
                layer(x).sin().sum().backward()
        else:
            layer(x).sin().sum().backward()
        before = layer.weight.grad.clone()
        preconditioner.precondition_()
        # Of 12 tokens six, one from every two, at places that follow the golden ratio.
        chosen = [0, 3, 4, 7, 8, 10]
        assert relative(layer.weight.grad, dense(before, x[keep] if masked else x.flatten(0, 1)[chosen])) < 1e-11


def test_attention_with_streams_of_different_lengths():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(16, 2, batch_first=True, bias=False, dtype=torch.float64)
    preconditioner = ActivationPreconditioner(module, form="batch", damping=DAMPING)
    q, k = torch.randn(1, 3, 16, dtype=torch.float64), torch.randn(1, 7, 16, dtype=torch.float64)
    module(q, k, 2 * k)[0].sin().sum().backward()
    before = module.in_proj_weight.grad.clone()
    preconditioner.precondition_()
    for part, gradient, z in zip(module.in_proj_weight.grad.chunk(3), before.chunk(3), (q, k, 2 * k), strict=True):
        assert relative(part, dense(gradient, z)) < 1e-11


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def run(optimizer: DoPr, model: nn.Module, steps: int, n: int = 20) -> None:
    for step in range(steps):
        x = torch.randn(n, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(model: nn.Module, lr: float = 0.01, **options) -> DoPr:
    return DoPr(torch.optim.SGD(model.parameters(), lr=lr), model, **options)


def test_auto_is_this_steps_form_and_where_that_is_dear_of_a_sample_of_the_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 300, bias=False), nn.Tanh(), nn.Linear(300, 40, bias=False)).double()
    twin = copy.deepcopy(model)
    optimizer, exact = sgd(model, form="auto"), sgd(twin, form="batch")
    run(optimizer, model, 1, n=1000)
    run(exact, twin, 1, n=1000)
    how = {row.name: row.how for row in optimizer.coverage()}
    assert how["0.weight"] == "linear; this step's S"
    assert how["2.weight"] == "linear; this step's S, of 256 inputs"
    assert torch.equal(model[0].weight, twin[0].weight)
    assert not torch.equal(model[2].weight, twin[2].weight)
    assert "average" not in optimizer.preconditioner.state_dict()["factors"]["2.weight"]
    run(optimizer, model, 2, n=20)  # of few inputs all are taken
    assert "inputs" not in str(optimizer.coverage())


@pytest.mark.parametrize("d", [64, 300, 1024])
@pytest.mark.parametrize("out", [7, 64, 1024])
def test_a_budget_buys_as_many_inputs_as_it_pays_for(d, out):
    for n in (8, 256, 1152, 20000):
        for budget in (0.1, 0.5, 2.0):
            rows = rows_within(budget, n, d, out)
            assert min(n, 256) <= rows <= n
            paid = min(primal_cost(rows, d, out), dual_cost(rows, d, out, known=rows == n))
            more = min(primal_cost(rows + 1, d, out), dual_cost(rows + 1, d, out, known=rows + 1 == n))
            affordable = max(budget * 3 * n * d * out, 1 << 22)
            assert paid <= affordable or rows == min(n, 256)
            assert rows == n or more > affordable


class Attending(nn.Module):
    """Query, key and value of one input, a gate and its other half of another; the last takes a copy."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(d, out, bias=False) for out in (24, 24, 9, 24))

    def forward(self, x: Tensor) -> Tensor:
        return sum(part(x.clone() if i == 3 else x).sin().sum() for i, part in enumerate(self.parts))


@pytest.mark.parametrize("n", [8, 64])
def test_layers_that_take_one_tensor_share_what_is_made_of_it(n):
    torch.manual_seed(0)
    model = Attending(24).double()
    preconditioner = ActivationPreconditioner(model, form="batch", damping=DAMPING)
    x = torch.randn(n, 24, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        model.zero_grad()
        model(x).backward()
        before = [part.weight.grad.clone() for part in model.parts]
        solves = Refresh(
            preconditioner.factors, preconditioner.groups, preconditioner.finite, stat_decay=0.9, rank="auto"
        ).solves
        held = [solve.matrix.data_ptr() for solve in solves.values()]
        assert len(set(held[:3])) == 1
        assert held[3] != held[0]
        preconditioner.precondition_()
        for part, gradient in zip(model.parts, before, strict=True):
            assert relative(part.weight.grad, dense(gradient, x.detach())) < 1e-11


def test_what_is_shared_is_not_taken_for_what_was_written_over_it():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 3, bias=False).double(), nn.Linear(6, 3, bias=False).double()
    model = nn.ModuleList([first, second])
    preconditioner = ActivationPreconditioner(model, form="batch", damping=DAMPING)
    x = torch.randn(20, 6, dtype=torch.float64)
    seen = x.clone()
    first(x).sum().backward()
    x.mul_(torch.linspace(1, 3, 6, dtype=torch.float64))
    second(x).sin().sum().backward()
    before = [layer.weight.grad.clone() for layer in model]
    preconditioner.precondition_()
    for layer, gradient, z in zip(model, before, (seen, x), strict=True):
        assert relative(layer.weight.grad, dense(gradient, z)) < 1e-11


def test_this_steps_form_keeps_no_matrix_of_the_layers_width():
    model = nn.Linear(4096, 2)
    optimizer = sgd(model, form="batch")
    model(torch.randn(8, 4096)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.memory_usage()["total"] < 3 * 8 * 4096 * 4


def test_the_spectrum_is_that_of_the_inputs_by_either_factorisation():
    torch.manual_seed(0)
    for n in (6, 60):
        layer = nn.Linear(20, 8, bias=False, dtype=torch.float64)
        optimizer = sgd(layer, form="batch")
        x = torch.randn(n, 20, dtype=torch.float64)
        layer(x).square().sum().backward()
        optimizer.step()
        values = torch.linalg.eigvalsh(x.T @ x / n).clamp_min(0)
        shares = values / values.sum()
        spectrum = optimizer.spectrum()["weight"]
        assert spectrum.effective_rank == pytest.approx(float(torch.exp(-torch.special.xlogy(shares, shares).sum())))
        assert spectrum.turned > 0.01


@pytest.mark.parametrize("saved", ["average", "low_rank", "batch"])
@pytest.mark.parametrize("loaded", ["average", "low_rank", "batch", "auto"])  # "auto": "batch", within its budget
def test_a_state_of_another_form_is_formed_anew_and_one_of_the_same_is_not(saved, loaded):
    def make(form: str) -> tuple[nn.Module, DoPr]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(200, 4)).double()
        return model, sgd(model, form=form, update_every=50)

    def steps(model: nn.Module, optimizer: DoPr, number: int) -> None:
        for _ in range(number):
            model(torch.randn(300, 200, dtype=torch.float64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = make(saved)
    steps(model, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    model, optimizer = make(loaded)
    same = saved == ("batch" if loaded == "auto" else loaded)
    if same:
        optimizer.load_state_dict(state)
    else:
        with pytest.warns(UserWarning, match=r"other options.*0\.weight.*anew"):
            optimizer.load_state_dict(state)
    steps(model, optimizer, 1)
    factor = optimizer.preconditioner.factors[0]
    assert factor.refreshed == (3 if factor.fresh or not same else 0)
    sketch = {"basis", "left", "scale", "inside", "rest"} if factor.sketched else set()
    held = {
        "average": {"matrix", "inverse"},
        "low_rank": {"matrix", "basis", "left", "scale"},
        "auto": sketch,
        "batch": set(),
    }
    assert set(factor.state) == held[loaded]


@pytest.mark.parametrize("change", [{"include_bias": True}, {"conv": "unfold"}, {"rank": 20}])
def test_changed_options_of_a_state_are_formed_anew(change):
    def make(**options) -> tuple[nn.Module, DoPr]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(150, 4, 3), nn.Flatten(), nn.Linear(12, 200), nn.Linear(200, 2))
        return model, sgd(model, form="low_rank", update_every=50, **options)

    x = torch.randn(40, 150, 5)
    model, optimizer = make()
    model(x).square().mean().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    model, optimizer = make(**change)
    with pytest.warns(UserWarning, match="other options"):
        optimizer.load_state_dict(state)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(factor.refreshed == 1 for factor in optimizer.preconditioner.factors)


def test_a_state_knows_nothing_of_wrappers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"_orig_mod": copy.deepcopy(model)})})
    plain, other = sgd(model, exclude=["1.*"]), sgd(wrapped, exclude=["1.*"])
    for optimizer, forward in ((plain, model), (other, wrapped["module"]["_orig_mod"])):
        forward(torch.randn(9, 6)).sum().backward()
        optimizer.step()
    state, theirs = plain.preconditioner.state_dict(), other.preconditioner.state_dict()
    assert state["factors"].keys() == theirs["factors"].keys() == {"0.weight"}
    plain.preconditioner.load_state_dict(theirs)
    other.preconditioner.load_state_dict(state)


@pytest.mark.parametrize("form", ["batch", "average", "low_rank"])
def test_the_spectrum_says_how_near_a_form_comes_to_this_steps_own(form):
    torch.manual_seed(0)
    layer = nn.Linear(200, 8, bias=False, dtype=torch.float64)
    optimizer = sgd(layer, lr=0.0, damping=DAMPING, form=form, update_every=2)
    cosine = None
    for step in range(4):
        x = torch.randn(300, 200, dtype=torch.float64) * torch.logspace(0, 1, 200, dtype=torch.float64)
        layer(x).sin().sum().backward()
        before = layer.weight.grad.clone()
        optimizer.step()
        if step == 2:
            expected = dense(before, x)
            cosine = float((expected * layer.weight.grad).sum() / (expected.norm() * layer.weight.grad.norm()))
        optimizer.zero_grad()
        found = optimizer.spectrum()["weight"].cosine
        assert found is None if step < 2 else found == pytest.approx(cosine)
    assert cosine == pytest.approx(1) if form == "batch" else cosine < 0.999

"""Uses of a model that would train wrongly without a word."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dopr_robot.optim import ActivationPreconditioner, DoPr
from dopr_robot.optim.factors import Backward
from dopr_robot.policies.torchvision import make_importable

FORMS = ("batch", "average", "low_rank")
forms = pytest.mark.parametrize("form", FORMS)


def sgd(model: nn.Module, lr: float = 0.1, **options) -> DoPr:
    return DoPr(torch.optim.SGD(model.parameters(), lr=lr), model, **options)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(seed: int, n: int = 16) -> Tensor:
    return torch.randn(n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# What S is formed of


@forms
@pytest.mark.parametrize(
    "stray", ["validation", "detached", "dropped", "dropped by hand", "overflow", "eval", "second backward"]
)
def test_only_what_the_gradient_is_made_of_counts(form, stray):
    """A forward or a backward whose gradient never reaches the step leaves the step as it would be without it."""
    model = net()
    alone = copy.deepcopy(model)
    optimizer, other = (sgd(each, form=form, update_every=1, stat_decay=0.5) for each in (model, alone))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step in range(3):
        x, far = data(step), 1e3 * data(step + 10)
        if stray == "validation":
            model(far).square().mean()
        elif stray == "detached":
            model(far).detach().square().mean()
        elif stray == "dropped":
            model(far).square().mean().backward()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        elif stray == "dropped by hand":  # as sharpness-aware minimisation does between its two passes
            model(far).square().mean().backward()
            model.zero_grad()
        elif stray == "overflow":
            (model(far).square().mean() * float("inf")).backward()
            scaler._per_optimizer_states.clear()
            optimizer.zero_grad()
        elif stray == "eval":
            with torch.no_grad():
                model.eval()(far)
        # In eval mode too: what counts is that a gradient comes back.
        output = model(x)
        loss = output.square().mean()
        if stray == "second backward":
            (0.5 * loss).backward(retain_graph=True)
            (0.5 * loss).backward()
        else:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        alone(x).square().mean().backward()
        other.step()
        other.zero_grad()
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@forms
def test_an_adversarial_pair_counts_what_each_side_learned_from(form):
    """The discriminator's inputs in the generator's pass belong to no step of the discriminator."""
    torch.manual_seed(0)
    generator, judge = nn.Linear(4, 6).double(), nn.Linear(6, 1).double()
    mine, theirs = sgd(generator, form=form, update_every=1), sgd(judge, form=form, update_every=1)
    for step in range(2):
        noise, real = data(step)[:, :4], data(step + 5)
        judge_loss = judge(generator(noise).detach()).mean() - judge(real).mean()
        judge_loss.backward()
        assert float(theirs.preconditioner.factors[0].counts["matrix"]) == 32
        assert not mine.preconditioner.factors[0].seen
        theirs.step()
        theirs.zero_grad()
        judge(generator(noise)).mean().backward()
        assert float(mine.preconditioner.factors[0].counts["matrix"]) == 16
        mine.step()
        mine.zero_grad()
        theirs.zero_grad()
        assert not theirs.preconditioner.factors[0].seen


def test_a_scalers_overflow_does_not_cost_the_next_step():
    model = net().float()
    optimizer = sgd(model, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step, factor in enumerate((1.0, float("inf"), 1.0)):
        before = copy.deepcopy(model)
        scaler.scale(model(data(step).float()).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert same(model, before) == (factor != 1.0)
    assert optimizer.preconditioner.skipped == 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpointed_and_a_plain_call_of_one_module_both_count(use_reentrant):
    torch.manual_seed(0)
    layer = nn.Linear(6, 6).double()
    plain = copy.deepcopy(layer)
    preconditioners = [ActivationPreconditioner(each, form="batch") for each in (layer, plain)]
    x = data(0).requires_grad_()
    (layer(x).sin().sum() + checkpoint(layer, 2 * x, use_reentrant=use_reentrant).cos().sum()).backward()
    (plain(x).sin().sum() + plain(2 * x).cos().sum()).backward()
    for preconditioner in preconditioners:
        assert float(preconditioner.factors[0].counts["matrix"]) == 32
        preconditioner.precondition_()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=1e-10, atol=1e-12)


# Nothing to go by


@forms
@pytest.mark.parametrize("empty", ["no rows", "mask"])
def test_a_layer_that_saw_no_token_keeps_what_it_has_and_the_others_step(empty, form):
    """An expert that no token was routed to."""
    torch.manual_seed(0)
    experts = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
    optimizer = sgd(experts, form=form, update_every=1)
    for step in range(3):
        x = data(step).float()
        if empty == "no rows":
            rows = x[:0] if step == 1 else x
            loss = experts[0](x).square().sum() + experts[1](rows).square().sum()
        else:
            loss = experts[0](x).square().sum()
            with optimizer.token_mask(torch.full((16,), step != 1)):
                loss = loss + experts[1](x).square().sum() * (step != 1)
        loss.backward()
        before = [copy.deepcopy(expert) for expert in experts]
        state = {key: value.clone() for key, value in optimizer.preconditioner.factors[1].state.items()}
        optimizer.step()
        optimizer.zero_grad()
        assert not same(experts[0], before[0])
        if step == 1:
            assert all(
                torch.equal(value, optimizer.preconditioner.factors[1].state[key])
                for key, value in state.items()
                if key == "matrix"
            )
    assert optimizer.preconditioner.skipped == 0
    assert all(p.isfinite().all() for p in experts.parameters())


def test_rows_of_rare_tokens_move_as_far_as_those_of_frequent_ones():
    """A table under SGD on a Zipf vocabulary: no row is blown up by a frequency that was looked at when it was absent."""
    torch.manual_seed(0)
    table = nn.Embedding(2000, 4)
    nn.init.zeros_(table.weight)
    optimizer = sgd(table, lr=0.01, form="average", update_every=10)
    shares = 1 / torch.arange(1, 2001, dtype=torch.float64)
    target = torch.ones(4)
    for _ in range(60):
        tokens = torch.multinomial(shares, 128, replacement=True)
        (table(tokens) - target).square().sum(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(table.weight.norm(dim=1).max()) < 2.5


# What a parameter is used for


@pytest.mark.parametrize("kind", ["generator", "named", "tensor", "list"])
def test_groups_of_every_kind_that_torch_takes(kind):
    model = net()
    optimizer = DoPr(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    params = {
        "generator": lambda: (p for p in model[2].parameters()),
        "named": lambda: list(model[2].named_parameters()),
        "tensor": lambda: model[2].weight,
        "list": lambda: list(model[2].parameters()),
    }[kind]
    if kind == "named":
        optimizer = DoPr(torch.optim.SGD(model[0].named_parameters(), lr=0.1), model)
    optimizer.add_param_group({"params": params()})
    assert len(optimizer.param_groups[1]["params"]) == (1 if kind == "tensor" else 2)
    before = model[2].weight.detach().clone()
    model(data(0)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[2].weight, before)
    assert {row.name for row in optimizer.coverage() if row.preconditioned} == {"0.weight", "2.weight"}


def test_a_table_that_embeds_and_reads_out_counts_each_side_by_itself():
    """With twice as many reads as tokens the two moments are means over their own inputs, as the formula says."""
    torch.manual_seed(0)
    table, head = nn.Embedding(9, 5, dtype=torch.float64), nn.Linear(5, 9, bias=False, dtype=torch.float64)
    head.weight = table.weight
    preconditioner = ActivationPreconditioner(nn.ModuleList([table, head]), form="batch", damping=0.1)
    tokens = torch.randint(0, 9, (6,))
    z = torch.cat([table(tokens), 2 * table(tokens)])
    head(z).sin().sum().backward()
    before = table.weight.grad.clone()
    preconditioner.precondition_()
    s = torch.diag(torch.bincount(tokens, minlength=9).double() / 6)
    moment = (z.T @ z / 12).detach()
    strength = 0.1 * (moment.trace() / 5 + s.trace() / 9)
    m = table.weight.grad
    torch.testing.assert_close(s @ m + m @ moment + strength * m, before, rtol=1e-9, atol=1e-12)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.in_features**0.5, self.bias)


def test_a_subclass_with_a_forward_of_its_own_is_left_and_said_to_be():
    model = nn.Sequential(Standardised(3, 4, 3), nn.Flatten(), Scaled(36, 8), nn.Linear(8, 2))
    optimizer = sgd(model)
    how = {row.name: (row.preconditioned, row.how) for row in optimizer.coverage()}
    assert how["0.weight"] == (False, "Standardised has a forward of its own, other than Conv2d's")
    assert how["2.weight"] == (False, "Scaled has a forward of its own, other than Linear's")
    assert how["3.weight"][0]


@pytest.mark.sim
def test_timms_convolutions_with_a_forward_of_their_own():
    make_importable()
    from timm import layers

    model = nn.Sequential(layers.Conv2dSame(3, 4, 3), layers.StdConv2d(4, 4, 3), nn.Conv2d(4, 2, 1))
    covered = {row.name for row in sgd(model).coverage() if row.preconditioned}
    assert covered == {"2.weight"}


# A model that changes


def test_a_layer_that_is_unfrozen_later_is_preconditioned_from_then_on():
    model = net()
    model[2].requires_grad_(False)
    optimizer = sgd(model)
    for step in range(2):
        model(data(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {row.name: row.how for row in optimizer.coverage()}["2.weight"] == "wants no gradient"
    model[2].requires_grad_(True)
    model(data(3)).square().mean().backward()
    optimizer.step()
    assert {row.name: row.preconditioned for row in optimizer.coverage()}["2.weight"]


def test_a_replaced_layer_is_said_to_be():
    model = net()
    optimizer = sgd(model)
    model(data(0)).square().mean().backward()
    optimizer.step()
    model[2] = nn.Linear(8, 3).double()
    optimizer.zero_grad()
    model(data(1)).square().mean().backward()
    with pytest.warns(UserWarning, match=r"weights were replaced.*1 layers \(2\.weight\)"):
        optimizer.step()
    row = next(row for row in optimizer.coverage() if row.name == "2.weight")
    assert not row.preconditioned
    assert "add_param_group" in row.how


@pytest.mark.parametrize("how", ["to_empty", "assign"])
def test_replaced_weights_are_named_as_the_reason(how):
    model = net()
    optimizer = sgd(model)
    if how == "assign":
        model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    else:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.to_empty(device="cpu")
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)
    model(data(0)).square().mean().backward()
    with pytest.raises(RuntimeError, match="weights were replaced"):
        optimizer.step()


def test_a_lazy_model_that_has_not_run():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"run the lazy model once"):
        ActivationPreconditioner(model)


def test_transforms_that_no_backward_runs_in():
    model = net()
    optimizer = sgd(model)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, parameters, (data(0),)).square().mean()

    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(loss)(parameters)
    assert optimizer.preconditioner.step == 0


def test_a_model_compiled_and_run_before():
    torch._dynamo.reset()
    model = net().float()
    compiled = torch.compile(model, backend="eager")
    compiled(data(0).float()).sum().backward()
    model.zero_grad()
    optimizer = sgd(model)
    compiled(data(1).float()).sum().backward()
    try:
        optimizer.step()  # a torch that looks for new hooks compiles anew
    except RuntimeError as error:
        assert "compiled and run" in str(error)
    else:
        assert optimizer.coverage().never_fired == []


def test_nothing_is_warned_of_in_an_ordinary_run():
    model = net()
    optimizer = sgd(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            model(data(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()


class Several(nn.Module):
    """Layers whose outputs are views (three axes), tensors of their own, and an attention's."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.rows, self.conv = nn.Linear(6, 6), nn.Linear(6, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        x = self.tokens(x)
        x = self.conv(x.mT).mT + self.attention(x, x, x, need_weights=False)[0]
        return self.rows(x.flatten(0, 1))


@pytest.mark.parametrize("form", ["auto", "batch", "average", "low_rank", "sketch"])
def test_a_step_leaves_none_of_its_tensors_behind(form):
    model = Several()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model, form=form)
    left = []
    for module in model.modules():
        module.register_forward_hook(
            lambda m, args, output: left.append(weakref.ref(output[0] if isinstance(output, tuple) else output))
        )
    for _ in range(3):
        model(torch.randn(4, 5, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    gc.collect()
    assert len(left) == 3 * 5 and not [each for each in left if each() is not None]


@pytest.mark.parametrize("form", ["batch", "sketch", "average", "average_sketch", "low_rank", "auto"])
def test_a_buffer_that_the_next_batch_is_written_into_is_no_batch_of_its_own(form):
    found = []
    for refilled in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(200, 4).double()
        optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.1), layer, form=form)
        buffer = torch.empty(6, 200, dtype=torch.float64)
        for step in range(4):  # two batches a step
            x = torch.randn(6, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            layer(buffer.copy_(x) if refilled else x).sin().sum().backward()
            if step % 2:
                optimizer.step()
                optimizer.zero_grad()
        found.append(layer.weight.detach().clone())
    assert torch.equal(*found)


def test_a_backward_that_raised_holds_no_batch_once_another_has_begun():
    def stop(gradient: Tensor) -> None:
        raise RuntimeError("stop")

    first, second = nn.Linear(4, 8), nn.Linear(8, 2)
    optimizer = DoPr(torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1), [first, second])
    hidden = first(torch.randn(64, 4))
    hidden.register_hook(stop)
    inside = hidden.tanh()
    with pytest.raises(RuntimeError, match="stop"):
        second(inside).sum().backward()
    assert any(each.products._last is not None for each in Backward._running.values())
    optimizer.zero_grad()
    second(first(torch.randn(64, 4)).tanh()).sum().backward()
    optimizer.step()
    assert all(each.products._last is None for each in Backward._running.values())

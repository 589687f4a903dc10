"""DoPr as an optimizer: what torch's own machinery expects of one, bad numbers, bad input, and resuming."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import ActivationPreconditioner, DoPr, make_optimizer


def make_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv1d(3, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(30, 8),
        nn.Tanh(),
        nn.Linear(8, 2),
    ).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 5, generator=generator, dtype=dtype), torch.randn(16, 2, generator=generator, dtype=dtype)


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x, y = batch(step, dtype)
    return (model(x) - y).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def adamw(model: nn.Module, **options) -> DoPr:
    return DoPr(torch.optim.AdamW(model.parameters(), lr=1e-2), model, **options)


def test_the_base_sees_the_preconditioned_gradient():
    model = make_model()
    by_hand = copy.deepcopy(model)
    optimizer = adamw(model)
    preconditioner = ActivationPreconditioner(by_hand)
    base = torch.optim.AdamW(by_hand.parameters(), lr=1e-2)
    train(model, optimizer, range(3))
    for step in range(3):
        loss_of(by_hand, step).backward()
        preconditioner.precondition_()
        base.step()
        base.zero_grad()
    assert same(weights(model), weights(by_hand))


def test_attached_to_an_optimizer_it_does_the_same_and_detached_nothing():
    model = make_model()
    attached, plain = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = adamw(model)
    train(model, optimizer, range(3))
    base = torch.optim.AdamW(attached.parameters(), lr=1e-2)
    preconditioner = ActivationPreconditioner(attached).attach(base)
    train(attached, base, range(3))
    assert same(weights(model), weights(attached))
    preconditioner.detach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in attached.modules())
    plain.load_state_dict(attached.state_dict())
    other = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(base.state_dict()))
    train(attached, base, range(3, 6))
    train(plain, other, range(3, 6))
    assert same(weights(attached), weights(plain))


def test_attached_it_refuses_a_closure():
    model = make_model()
    base = torch.optim.AdamW(model.parameters())
    ActivationPreconditioner(model).attach(base)
    with pytest.raises(RuntimeError, match="closure"):
        base.step(lambda: loss_of(model, 0))


def test_closure():
    model = make_model()
    other = copy.deepcopy(model)
    optimizer = adamw(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert optimizer.step(closure) == loss_of(other, 0)
    train(other, adamw(other), range(1))
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("zero", [True, False])
def test_stale_closure(zero):
    """A closure that returns an old loss would have the last step's gradient taken again, preconditioned twice."""
    model = make_model()
    optimizer = adamw(model)
    loss = loss_of(model, 0)
    loss.backward()
    optimizer.step()
    if zero:
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.step(lambda: loss)


def test_gradient_accumulated_on_top_of_the_last_one_is_not_stale():
    model = make_model()
    optimizer = adamw(model)
    for step in range(3):  # never zeroed: in-place accumulation bumps the gradient's version
        loss_of(model, step).backward()
        optimizer.step()


def test_scheduler_and_clipping_act_on_the_base():
    model = make_model()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(2):
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert optimizer.base.param_groups[0]["lr"] == pytest.approx(0.0025)
    assert optimizer.param_groups is optimizer.base.param_groups


def test_learning_rate_set_after_loading_reaches_the_base():
    model = make_model()
    optimizer = adamw(model)
    train(model, optimizer, range(1))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = weights(model)
    train(model, optimizer, range(1, 2))
    assert same(weights(model), before)


def test_warmup_gathers_only():
    model = make_model()
    plain = copy.deepcopy(model)
    optimizer = adamw(model, warmup_steps=2)
    train(model, optimizer, range(2))
    train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2), range(2))
    assert same(weights(model), weights(plain))
    train(model, optimizer, range(2, 3))
    assert optimizer.spectrum()["4.weight"].turned > 0


def test_refreshes_are_staggered_and_ordinary_forwards_record_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(8)))
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.0), model, form="average", update_every=4)
    refreshed = []
    for step in range(9):
        model(torch.randn(5, 6)).square().sum().backward()
        recorded = [factor.name for factor in optimizer.preconditioner.factors if factor.seen]
        optimizer.step()
        now = [factor.name for factor in optimizer.preconditioner.factors if factor.refreshed == step]
        assert recorded == now
        refreshed.append(now)
        optimizer.zero_grad()
    assert len(refreshed[0]) == 8
    assert all(len(names) == 2 for names in refreshed[1:])
    assert sorted(name for names in refreshed[1:5] for name in names) == sorted(refreshed[0])
    assert refreshed[1:5] == refreshed[5:9]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("dopr_adamw", "auto"),
        ("dopr_adamw", "batch"),
        ("dopr_adamw", "average"),
        ("dopr_muon", "low_rank"),
        ("dopr_lion", "auto"),
    ],
)
@pytest.mark.parametrize("at", [3, 5])
def test_resumed_equals_uninterrupted_bit_for_bit(name, form, at, tmp_path):
    options = {"lr": 1e-2, "weight_decay": 0.1, "update_every": 4, "form": form}

    def make(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(15, 160), nn.Tanh(), nn.Linear(160, 8), nn.Linear(8, 2))
        return model, make_optimizer(name, model, **options)

    model, optimizer = make(0)
    train(model, optimizer, range(10))
    first, first_optimizer = make(0)
    train(first, first_optimizer, range(at))
    torch.save({"model": first.state_dict(), "optimizer": first_optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    second, second_optimizer = make(1)
    second.load_state_dict(saved["model"])
    second_optimizer.load_state_dict(saved["optimizer"])
    train(second, second_optimizer, range(at, 10))
    assert same(weights(model), weights(second))


def test_state_of_another_model_is_refused():
    optimizer, other = adamw(make_model()), adamw(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="parameter group"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="another model's"):
        other.preconditioner.load_state_dict(optimizer.preconditioner.state_dict())


def test_groups_added_later_are_preconditioned():
    model = make_model()
    optimizer = DoPr(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    train(model, optimizer, range(1))
    assert {row.name: row.how for row in optimizer.coverage()}["4.weight"] == "not a parameter of the base optimizer"
    optimizer.add_param_group({"params": list(model[4].parameters())})
    train(model, optimizer, range(1, 2))
    covered = {row.name for row in optimizer.coverage() if row.preconditioned}
    assert covered == {"0.weight", "4.weight"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["gradient", "activation"])
@pytest.mark.parametrize("form", ["batch", "average"])
def test_bad_numbers_leave_weights_and_statistics_as_they_were(bad, where, form):
    model = make_model()
    optimizer = adamw(model, form=form, update_every=1)
    train(model, optimizer, range(2))
    before, state = weights(model), copy.deepcopy(optimizer.preconditioner.state_dict())
    x, y = batch(2)
    if where == "activation":
        x[0, 0, 0] = bad
    loss = (model(x) - y).square().mean()
    loss.backward()
    if where == "gradient":
        model[1].bias.grad[0] = bad  # not even a preconditioned weight
    else:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match="left out"):
        optimizer.step()
    assert same(weights(model), before)
    after = optimizer.preconditioner.state_dict()["factors"]
    for name, factor in state["factors"].items():
        assert after[name]["skipped"] == 1
        for key in ("form", "step", "refreshed", "turned"):
            assert torch.equal(factor[key], after[name][key])
        for key, value in factor.get("average", {}).items():
            assert torch.equal(value, after[name]["average"][key])
    optimizer.zero_grad()
    train(model, optimizer, range(3, 5))
    assert optimizer.preconditioner.counters()["skipped_in_a_row"] == 0
    assert all(p.isfinite().all() for p in model.parameters())


def test_bad_numbers_raise_in_the_end():
    model = make_model()
    optimizer = adamw(model, max_nonfinite=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            (loss_of(model, 0) * float("nan")).backward()
            optimizer.step()
            optimizer.zero_grad()
        (loss_of(model, 0) * float("nan")).backward()
        with pytest.raises(RuntimeError, match="3 steps in a row"):
            optimizer.step()


def test_attached_a_bad_step_is_left_out_too():
    model = make_model()
    base = torch.optim.AdamW(model.parameters(), lr=1e-2)
    preconditioner = ActivationPreconditioner(model).attach(base)
    train(model, base, range(1))
    before = weights(model)
    (loss_of(model, 1) * float("inf")).backward()
    with pytest.warns(UserWarning, match="left out"):
        base.step()
    assert same(weights(model), before)
    assert preconditioner.skipped == 1


def test_a_failed_factorisation_raises_the_damping_and_says_so_once():
    """Two equal inputs at 1e4 times the scale of the rest: in float32 the damped moment is not positive definite."""
    torch.manual_seed(0)
    model = nn.Linear(60, 3, bias=False)
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=1e-3), model, damping=1e-12, form="average", update_every=1)
    x = torch.randn(8, 60) * 1e4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert sum("could not be factorised with damping 1e-12" in str(entry.message) for entry in caught) == 1
    assert model.weight.isfinite().all()


def test_bf16_autocast_keeps_statistics_in_float32():
    model = make_model()
    reference = copy.deepcopy(model)
    optimizer, exact = (adamw(each, form="average", update_every=1) for each in (model, reference))
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model, 0).backward()
    loss_of(reference, 0).backward()
    optimizer.step()
    exact.step()
    for factor, other in zip(optimizer.preconditioner.factors, exact.preconditioner.factors, strict=True):
        assert factor.state["matrix"].dtype == torch.float32
        torch.testing.assert_close(factor.state["matrix"], other.state["matrix"], rtol=0.03, atol=0.03)
    # The first layer's inputs are float32 in both: its moment has to be the same to the last bit.
    assert torch.equal(
        optimizer.preconditioner.factors[0].state["matrix"], exact.preconditioner.factors[0].state["matrix"]
    )


def test_bf16_weights():
    model = make_model().bfloat16()
    optimizer = adamw(model, form="average", update_every=2)
    for step in range(4):
        x, y = batch(step)
        (model(x.bfloat16()) - y.bfloat16()).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())
    assert {factor.state["matrix"].dtype for factor in optimizer.preconditioner.factors} == {torch.float32}


def test_grad_scaler_scales_nothing_that_is_seen_and_skips_overflow():
    model = make_model()
    plain = copy.deepcopy(model)
    optimizer = adamw(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        scaler.scale(loss_of(model, step)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    train(plain, adamw(plain), range(3))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    before = weights(model)
    scaler.scale(loss_of(model, 3) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert same(weights(model), before)
    assert scaler.get_scale() == 2.0**9
    optimizer.zero_grad()
    train(model, optimizer, range(4, 5))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("form", ["batch", "average"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_every_implementation_of_adamw_takes_the_same_steps_with_and_without_a_scaler(kind, attached, scaled, form):
    """A fused base unscales by itself, inside its step: the preconditioner then sees scaled gradients."""
    model = make_model()
    plain = copy.deepcopy(model)
    base = torch.optim.AdamW(model.parameters(), lr=1e-2, **{kind: True})
    optimizer = base if attached else DoPr(base, model, form=form, update_every=2)
    if attached:
        ActivationPreconditioner(model, form=form, update_every=2).attach(base)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for step in range(4):
        scaler.scale(loss_of(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    train(plain, adamw(plain, form=form, update_every=2), range(4))
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_accelerate_prepare():
    accelerate = pytest.importorskip("accelerate")
    model = make_model()
    plain = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    model, prepared, scheduler = accelerator.prepare(model, optimizer, scheduler)
    for step in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, step))
            accelerator.clip_grad_norm_(model.parameters(), 1e3)
            prepared.step()
            scheduler.step()
            prepared.zero_grad()
    other = adamw(plain)
    for step in range(0, 4, 2):
        for part in (step, step + 1):
            (loss_of(plain, part) / 2).backward()
        other.step()
        other.zero_grad()
        other.param_groups[0]["lr"] *= 0.5
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_copies_and_pickles_of_the_model_carry_no_hooks_that_act(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    ActivationPreconditioner(model)
    torch.save(model, tmp_path / "model.pt")
    for copied in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        x = copied[0](torch.randn(5, 4))
        copied[1](x, x, x)[0].sum().backward()


def test_the_name_linear_is_put_back_after_attention_even_when_it_raises():
    linear = nn.functional.linear
    module = nn.MultiheadAttention(4, 2)
    ActivationPreconditioner(module)
    with pytest.raises((RuntimeError, AssertionError)):
        module(torch.randn(5, 4), torch.randn(5, 3), torch.randn(5, 4))
    assert nn.functional.linear is linear
    x = torch.randn(5, 4)
    module(x, x, x)
    assert nn.functional.linear is linear


def test_step_without_backward_and_with_gradients_from_elsewhere():
    model = make_model()
    optimizer = adamw(model)
    loss_of(model, 0)
    with pytest.raises(RuntimeError, match="no gradient"):
        optimizer.step()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="gradients without a forward"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"damping": -1}, "damping=-1"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"damping": float("inf")}, "damping=inf"),
        ({"damping": "0.1"}, "damping='0.1'"),
        ({"damping": True}, "damping=True"),
        ({"form": "exact"}, "form='exact' must be one of auto, batch, average, low_rank"),
        ({"rank": None}, "form='average'"),
        ({"stat_decay": 1.0}, "stat_decay=1.0"),
        ({"update_every": 0}, "update_every=0"),
        ({"update_every": 2.5}, "update_every=2.5"),
        ({"update_every": True}, "update_every=True"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"conv": "exact"}, "conv='exact'"),
        ({"rank": 0}, "rank=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"include": ["7.*"]}, "'7.*' matches no weight"),
        ({"exclude": "0.*"}, "list of patterns"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        adamw(make_model(), **options)


def test_damping_may_be_a_function_of_the_step_and_has_to_stay_positive():
    model = make_model()
    constant = copy.deepcopy(model)
    train(
        model,
        adamw(model, damping=lambda step: 0.1 * 0.5**step, form="average", update_every=1, stat_decay=0),
        range(3),
    )
    optimizer = adamw(constant, form="average", damping=0.1, update_every=1, stat_decay=0)
    for step in range(3):
        optimizer.param_groups[0]["damping"] = 0.1 * 0.5**step
        train(constant, optimizer, range(step, step + 1))
    assert same(weights(model), weights(constant))
    model = make_model()
    optimizer = adamw(model, damping=lambda step: 0.1 - step)
    train(model, optimizer, range(1))
    loss_of(model, 1).backward()
    with pytest.raises(ValueError, match=r"damping\(step=1\)=-0.9"):
        optimizer.step()


def test_a_model_without_a_supported_layer():
    model = nn.Sequential(nn.LayerNorm(2))
    with pytest.raises(ValueError, match="Sequential has no layer to precondition"):
        adamw(model)


def test_a_base_over_other_parameters():
    with pytest.raises(ValueError, match=r"none of the 1 parameters of SGD .* is Linear's"):
        DoPr(torch.optim.SGD([nn.Parameter(torch.zeros(4))], lr=0.1), nn.Linear(3, 2))
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"base\.base"):
        DoPr(adamw(model), model)


def test_weight_used_without_its_module_is_warned_of_and_reported():
    class Bypassed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.bypassed = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.used(x), self.bypassed.weight)

    model = Bypassed()
    optimizer = adamw(model)
    assert optimizer.coverage().never_fired == []  # nothing has run yet
    model(torch.randn(4, 3)).sum().backward()
    with pytest.warns(UserWarning, match=r"bypassed\.weight.*left to the base"):
        optimizer.step()
    assert optimizer.coverage().never_fired == ["bypassed.weight"]
    assert "NEVER FIRED" in str(optimizer.coverage())


def test_memory_usage_counts_what_is_held():
    model = nn.Linear(10, 4)
    optimizer = adamw(model, form="average")
    assert optimizer.memory_usage() == {"weight": 0, "total": 0}
    model(torch.randn(5, 10)).sum().backward()
    optimizer.step()
    assert optimizer.memory_usage()["total"] == 2 * 10 * 10 * 4


def test_spectrum_tells_isotropic_from_anisotropic_inputs(tmp_path):
    torch.manual_seed(0)
    for scales, condition, rank in (([1.0] * 8, 1.0, 8.0), ([10.0, *[1.0] * 7], 100.0, 1.6)):
        layer = nn.Linear(8, 3, bias=False, dtype=torch.float64)
        optimizer = adamw(layer)
        basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
        layer(basis * torch.tensor(scales, dtype=torch.float64)).sum().backward()
        optimizer.step()
        spectrum = optimizer.spectrum()["weight"]
        assert spectrum.condition_number == pytest.approx(condition, rel=1e-6)
        assert spectrum.effective_rank == pytest.approx(rank, rel=0.05) if rank == 8 else spectrum.effective_rank < 2
        assert spectrum.turned == pytest.approx(0, abs=1e-9) if rank == 8 else spectrum.turned > 0.01


def test_spectrum_is_logged_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    model = make_model()
    optimizer = adamw(model)
    train(model, optimizer, range(1))
    with SummaryWriter(str(tmp_path)) as writer:
        optimizer.log_spectrum(writer, step=7)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert len(events.Tags()["scalars"]) == 9
    event = events.Scalars("dopr/condition_number/4.weight")[0]
    assert event.step == 7
    assert event.value == pytest.approx(optimizer.spectrum()["4.weight"].condition_number, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_the_answer_is_waited_for_unless_the_base_looks_on_the_device_itself(fused, monkeypatch):
    """Zero gradients would not hold a base back that has momentum and decay."""
    model = make_model()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused), model)
    asked = []
    precondition = optimizer.preconditioner.precondition_
    monkeypatch.setattr(
        optimizer.preconditioner, "precondition_", lambda *, wait: asked.append(wait) or precondition(wait=wait)
    )
    train(model, optimizer, range(1))
    assert asked == [not fused]

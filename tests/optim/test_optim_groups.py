"""Options of param groups, schedules over them, and the limit on the length of M."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from dopr_robot.optim import DoPr, make_optimizer


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(seed: int) -> Tensor:
    return torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sgd(model: nn.Module, first: dict, second: dict, **options) -> DoPr:
    groups = [{"params": model[0].parameters(), **first}, {"params": model[2].parameters(), **second}]
    return DoPr(torch.optim.SGD(groups, lr=0.1), model, **options)


def step(model: nn.Module, optimizer: DoPr, number: int) -> None:
    model(data(number)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("form", ["batch", "average", "low_rank"])
def test_each_group_has_its_damping(form):
    for number in (0, 2):  # one step: the other group's option does not matter to a layer's gradient
        model, alone = net(), net()
        optimizer = sgd(model, {"damping": 1.0}, {}, damping=0.01, form=form)
        damping = 1.0 if number == 0 else 0.01
        other = DoPr(torch.optim.SGD(alone.parameters(), lr=0.1), alone, damping=damping, form=form)
        step(model, optimizer, 0)
        step(alone, other, 0)
        assert torch.equal(model[number].weight, alone[number].weight)
        assert not torch.equal(model[2 - number].weight, alone[2 - number].weight)
    assert [group["damping"] for group in optimizer.param_groups] == [1.0, 0.01]


def test_each_group_has_its_update_interval():
    model = net()
    optimizer = sgd(model, {"update_every": 1}, {}, update_every=50, form="average")
    refreshed = []
    for number in range(3):
        step(model, optimizer, number)
        refreshed.append([factor.refreshed for factor in optimizer.preconditioner.factors])
    assert refreshed == [[0, 0], [1, 0], [2, 0]]
    optimizer.param_groups[1]["update_every"] = 1
    step(model, optimizer, 3)  # from the next step on
    step(model, optimizer, 4)
    assert [factor.refreshed for factor in optimizer.preconditioner.factors] == [4, 4]


def test_a_group_is_left_alone_while_it_says_so():
    model, plain = net(), net()
    optimizer = sgd(model, {"precondition": False}, {"precondition": False})
    bare = torch.optim.SGD(plain.parameters(), lr=0.1)
    for number in range(2):
        step(model, optimizer, number)
        step(plain, bare, number)
    assert same(model, plain)
    assert "precondition=False" in str(optimizer.coverage())
    optimizer.param_groups[0]["precondition"] = True
    optimizer.zero_grad()
    step(model, optimizer, 2)
    step(plain, bare, 2)
    assert not torch.equal(model[0].weight, plain[0].weight)
    assert torch.equal(model[2].weight, plain[2].weight)


def test_whoever_writes_to_a_group_schedules_it():
    model, alone = net(), net()
    optimizer = sgd(model, {}, {}, form="batch")
    other = DoPr(torch.optim.SGD(alone.parameters(), lr=0.1), alone, form="batch", damping=lambda step: 0.1 * 0.5**step)
    for number in range(3):
        for group in optimizer.param_groups:
            group["damping"] = 0.1 * 0.5**number
        step(model, optimizer, number)
        step(alone, other, number)
        assert other.param_groups[0]["damping"] == 0.1 * 0.5**number
    assert same(model, alone)


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.55), ("cosine", 0.55), ("geometric", 0.1**0.5)])
def test_a_schedule_from_a_configuration(schedule, half):
    model = net()
    damping = {"schedule": schedule, "from": 1.0, "to": 0.1, "steps": 4}
    optimizer = make_optimizer("dopr_sgd", model, lr=0.1, damping=json.loads(json.dumps(damping)))
    seen = []
    for number in range(6):
        step(model, optimizer, number)
        seen.append(optimizer.param_groups[0]["damping"])
    assert seen[0] == 1.0
    assert seen[2] == pytest.approx(half)
    assert seen[4] == seen[5] == pytest.approx(0.1)


def test_a_groups_own_schedule_and_its_resume():
    model = net()
    first = {"damping": {"schedule": "linear", "from": 1.0, "to": 0.2, "steps": 8}}
    optimizer = sgd(model, first, {"damping": 0.3})
    for number in range(3):
        step(model, optimizer, number)
    again = copy.deepcopy(model)
    other = sgd(again, first, {})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for number in range(3, 6):
        step(model, optimizer, number)
        step(again, other, number)
    assert same(model, again)
    assert other.param_groups[0]["damping"] == pytest.approx(0.5)
    assert other.param_groups[1]["damping"] == 0.3


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"damping": 0.0}, "damping=0.0"),
        ({"damping": float("inf")}, "damping=inf"),
        ({"damping": "0.1"}, "damping='0.1'"),
        ({"damping": True}, "damping=True"),
        ({"damping": {"schedule": "cosine", "from": 1.0, "to": 0.1}}, "look at 'steps'"),
        ({"damping": {"schedule": "wave", "from": 1.0, "to": 0.1, "steps": 2}}, "'wave' must be one of linear"),
        ({"damping": {"schedule": "linear", "from": 1.0, "to": 0.0, "steps": 2}}, "damping to=0.0"),
        ({"damping": {"schedule": "linear", "from": 1.0, "to": 0.5, "steps": 2.5}}, "damping steps=2.5"),
        ({"update_every": True}, "update_every=True"),
        ({"precondition": 1}, "precondition=1"),
        ({"form": "batch"}, "form is no option of a param group: those are damping, update_every, precondition"),
    ],
)
def test_bad_options_of_a_group(group, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        sgd(model, group, {})
    optimizer = DoPr(torch.optim.SGD(model[0].parameters(), lr=0.1), model)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": model[2].parameters(), **group})


def test_a_bad_value_written_later_is_named_at_the_step():
    model = net()
    optimizer = sgd(model, {}, {})
    optimizer.param_groups[1]["damping"] = -1.0
    model(data(0)).sum().backward()
    with pytest.raises(ValueError, match=r"damping=-1\.0"):
        optimizer.step()


@pytest.mark.parametrize("form", ["batch", "average"])
def test_the_length_of_m_is_limited_and_its_direction_kept(form):
    model, free = net(), net()
    optimizer = sgd(model, {}, {}, form=form, max_update_norm=0.05)
    other = sgd(free, {}, {}, form=form)
    for each, its in ((model, optimizer), (free, other)):
        each(data(0)).square().mean().backward()
        its.preconditioner.precondition_()
    limited, whole = ([layer.weight.grad for layer in (each[0], each[2])] for each in (model, free))
    norm = torch.cat([g.flatten() for g in whole]).norm()
    assert norm > 0.05
    for a, b in zip(limited, whole, strict=True):
        torch.testing.assert_close(a, b * 0.05 / norm, rtol=1e-4, atol=0)
    assert torch.equal(model[0].bias.grad, free[0].bias.grad)
    with pytest.raises(RuntimeError, match=r"preconditioned already|without a forward"):
        optimizer.step()


def test_a_base_with_an_option_of_that_name():
    class Damped(torch.optim.SGD):
        def __init__(self, params) -> None:
            super().__init__(params, lr=0.1)
            self.defaults["damping"] = 0.5

    model = net()
    with pytest.raises(ValueError, match="Damped has an option damping of its own"):
        DoPr(Damped(model.parameters()), model)

"""Parameters without a model: the uses of weights are found as modules run."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from dopr_robot.optim import DoPr, make_optimizer
from dopr_robot.optim.preconditioner import ActivationPreconditioner


class Net(nn.Module):
    """Attention, a convolution, a table, and a weight that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 10)
        self.convolution = nn.Conv1d(10, 10, 3, padding=1)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)
        self.second.weight = self.first.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = self.convolution(x.mT).mT
        x = x + self.attention(query=x, key=x, value=x, need_weights=False)[0]
        return self.second(self.first(x).tanh())


def tokens(step: int) -> Tensor:
    return torch.randint(0, 7, (12, 5), generator=torch.Generator().manual_seed(step))


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, call=None) -> None:
    for step in steps:
        (model if call is None else call)(tokens(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


GIVEN = {
    "generator": lambda model: model.parameters(),
    "names": lambda model: model.named_parameters(),
    "dict": lambda model: dict(model.named_parameters()),
    "groups": lambda model: [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() == 1]},
    ],
}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("form", ["auto", "average"])
def test_it_takes_the_steps_that_it_takes_with_the_model(given, form):
    model, known = make(), make()
    optimizer = make_optimizer("dopr_adamw", GIVEN[given](model), lr=1e-2, form=form, update_every=3)
    other = make_optimizer("dopr_adamw", known, lr=1e-2, form=form, update_every=3)
    train(model, optimizer, range(7))
    train(known, other, range(7))
    assert same(model, known)
    assert optimizer.coverage().never_fired == []
    assert optimizer.coverage().matrix_share == 1
    names = {row.name for row in optimizer.coverage()}
    assert ("first.weight" if given in ("names", "dict") else "Net.first.weight") in names


def test_parts_that_are_called_by_themselves_and_in_turn():
    model, known = make(), make()

    def call(net: Net):
        def forward(tokens: Tensor) -> Tensor:
            x = net.embedding(tokens)
            x = net.convolution(x.mT).mT
            x = x + net.attention(x, x, x, need_weights=False)[0]
            return net.second(net.first(x).tanh())

        return forward

    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-2), form="average", update_every=1)
    other = DoPr(torch.optim.AdamW(known.parameters(), lr=1e-2), known, form="average", update_every=1)
    train(model, optimizer, range(4), call(model))
    train(known, other, range(4))
    assert same(model, known)


def test_modules_that_are_not_ours_are_left_alone():
    model = make()
    optimizer = DoPr(torch.optim.SGD(model.first.parameters(), lr=0.1))
    copy.deepcopy(model)(tokens(0)).sum().backward()
    assert optimizer.preconditioner.factors == []
    train(model, optimizer, range(2))
    assert [factor.name for factor in optimizer.preconditioner.factors] == ["Net.first.weight"]


def test_its_state_travels_before_any_module_ran():
    model = make()
    optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-2), form="average", update_every=3)
    train(model, optimizer, range(5))
    again = copy.deepcopy(model)
    other = DoPr(torch.optim.AdamW(again.parameters(), lr=1e-2), form="average", update_every=3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    once_more = DoPr(torch.optim.AdamW(again.parameters(), lr=1e-2), form="average", update_every=3)
    once_more.load_state_dict(copy.deepcopy(other.state_dict()))
    train(model, optimizer, range(5, 9))
    train(again, once_more, range(5, 9))
    assert same(model, again)


def test_a_step_before_any_module_ran():
    model = make()
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="gradients without a forward"):
        optimizer.step()
    odd = nn.LayerNorm(2)
    optimizer = DoPr(torch.optim.SGD(odd.parameters(), lr=0.1))
    odd(torch.ones(3, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="no layer to precondition"):
        optimizer.step()


def test_compiled_modules():
    torch._dynamo.reset()
    model, known = make(), make()
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1), form="average")
    train(model, optimizer, range(3), torch.compile(model, backend="eager"))
    train(known, DoPr(torch.optim.SGD(known.parameters(), lr=0.1), known, form="average"), range(3))
    for a, b in zip(model.parameters(), known.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


def test_it_takes_its_hooks_along():
    gc.collect()
    before = len(torch_module._global_forward_pre_hooks)
    model = make()
    optimizer = DoPr(torch.optim.SGD(model.parameters(), lr=0.1))
    train(model, optimizer, range(1))
    assert len(torch_module._global_forward_pre_hooks) == before + 1
    del optimizer
    gc.collect()
    assert len(torch_module._global_forward_pre_hooks) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_patterns_need_names():
    model = make()
    optimizer = DoPr(torch.optim.SGD(model.named_parameters(), lr=0.1), exclude=["first.*"])
    train(model, optimizer, range(1))
    assert not any(row.preconditioned for row in optimizer.coverage() if row.name.startswith("first"))
    with pytest.raises(ValueError, match="need names"):
        DoPr(torch.optim.SGD(model.parameters(), lr=0.1), exclude=["first.*"])
    with pytest.raises(ValueError, match=r"'frist\.\*' matches no weight"):
        DoPr(torch.optim.SGD(model.named_parameters(), lr=0.1), include=["frist.*"])


def test_a_preconditioner_needs_one_or_the_other():
    with pytest.raises(ValueError, match="without a model, the parameters"):
        ActivationPreconditioner()


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_several_models_and_a_parameter_that_is_none_of_theirs(kind):
    torch.manual_seed(0)
    actor, critic = nn.Linear(4, 2), nn.Linear(6, 1)
    alpha = nn.Parameter(torch.zeros(1))
    models = [actor, critic] if kind == "list" else {"actor": actor, "critic": critic}
    parameters = [*actor.parameters(), *critic.parameters(), alpha]
    optimizer = DoPr(torch.optim.AdamW(parameters, lr=0.1), models)
    for _ in range(2):
        x = torch.randn(9, 4)
        action = actor(x)
        (critic(torch.cat([x, action], 1)).mean() + alpha.exp().sum() * action.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = {row.name: row for row in optimizer.coverage()}
    first = "0." if kind == "list" else "actor."
    assert rows[first + "weight"].preconditioned
    assert rows["group 0, parameter 4"].how == "not a parameter of the model"
    assert float(alpha) != 0
    alpha.exp().sum().backward()  # a step of what is left to the base alone
    before = float(alpha)
    optimizer.step()
    assert float(alpha) != before


def test_what_is_no_model():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="a module, a list or a dict of modules"):
        DoPr(torch.optim.SGD(model.parameters(), lr=0.1), [model, "critic"])
    with pytest.raises(TypeError, match="the base is a Linear"):
        DoPr(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_training_in_eval_mode_with_a_frozen_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.eval()
    for p in model[1].parameters():
        p.requires_grad_(False)
    optimizer = make_optimizer("dopr_adamw", model, lr=1e-2)
    for _ in range(3):
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.coverage().never_fired == []
    assert optimizer.coverage().matrix_share == 1
    assert float(model[1].num_batches_tracked) == 0


def test_a_base_that_evaluates_the_loss_itself_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="LBFGS evaluates the loss anew"):
        DoPr(torch.optim.LBFGS(model.parameters()), model)


def test_what_make_optimizer_takes():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = make_optimizer("adamw", model.parameters(), lr=1e-3, weight_decay=0.1)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(2, 0.1), (2, 0.0)]
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters(), "weight_decay": 0.3}]
    optimizer = make_optimizer("dopr_adamw", groups, lr=1e-3, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.5, 0.1), (1e-3, 0.3)]
    assert make_optimizer("dopr_adamw", model.parameters()).param_groups[0]["lr"] == 3e-4
    with pytest.raises(ValueError, match="can not tell hidden matrices"):
        make_optimizer("dopr_muon", model.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match="not both"):
        make_optimizer("adamw", [model[0].weight, {"params": model[1].parameters()}])

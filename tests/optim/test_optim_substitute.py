"""M given by the backward in place of G: the same training, whatever is done in between."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dopr_robot.optim import DoPr


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(40, 30), nn.Linear(30, 30, bias=False), nn.Linear(30, 5)
        self.checkpointed: bool | None = None

    def forward(self, x: Tensor, times: int = 1) -> Tensor:
        x = self.first(x).relu_()
        for _ in range(times):
            run = self.second
            x = x + (run(x) if self.checkpointed is None else checkpoint(run, x, use_reentrant=self.checkpointed))
        return self.last(x)


def train(how: str, in_backward: bool, steps: int = 6) -> tuple[nn.Module, DoPr]:
    torch.manual_seed(0)
    model = Net().double()
    if how.startswith("checkpoint"):
        model.checkpointed = how.endswith("reentrant")
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = DoPr(base, model, form="batch", in_backward=in_backward)
    for step in range(steps):
        x = torch.randn(3, 2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        loss = model(x, times=2 if how == "two calls" else 1).sin().square().mean()
        if how == "gradient of the gradient":
            (inner,) = torch.autograd.grad(loss, model.second.weight, create_graph=True)
            loss = loss + inner.square().sum()
        if how == "loss scale":
            loss = 64 * loss
        loss.backward(retain_graph=how == "twice")
        if how == "twice":
            loss.backward()
        if how == "accumulated":
            model(x * 0.5 + 1).square().mean().backward()
        if how == "dropped" and step == 3:
            optimizer.zero_grad()
            model(x + 1).square().mean().backward()
        if how == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        if how == "loss scale":
            for p in model.parameters():
                p.grad /= 64
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


WAYS = ["plain", "two calls", "accumulated", "twice", "clipped", "loss scale", "dropped", "gradient of the gradient"]


@pytest.mark.parametrize("how", [*WAYS, "checkpoint", "checkpoint reentrant"])
def test_training_is_the_same(how):
    plain, _ = train(how, in_backward=False)
    other, optimizer = train(how, in_backward=True)
    for name, weight in plain.named_parameters():
        assert torch.allclose(other.get_parameter(name), weight, rtol=0, atol=1e-12), name
    for p in other.parameters():
        assert p.requires_grad
    solved = {factor.name: factor.alone for factor in optimizer.preconditioner.factors}
    assert solved["first.weight"] == (how not in ("accumulated", "twice"))


def test_the_gradient_is_m_of_the_length_of_g_until_the_step():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    other = copy.deepcopy(layer)
    optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.0), layer, form="batch", in_backward=True)
    layer(torch.randn(6, 40)).sum().backward()
    optimizer.step()
    x = torch.randn(6, 40)
    for each in (layer, other):
        each.zero_grad()
        each(x).sin().sum().backward()
    assert torch.allclose(layer.bias.grad, other.bias.grad)
    assert float(layer.weight.grad.norm()) == pytest.approx(float(other.weight.grad.norm()), rel=1e-5)
    cosine = torch.cosine_similarity(layer.weight.grad.flatten(), other.weight.grad.flatten(), 0)
    assert cosine < 0.99
    before = layer.weight.grad.clone()
    optimizer.step()
    assert float(torch.cosine_similarity(layer.weight.grad.flatten(), before.flatten(), 0)) == pytest.approx(1)
    spectrum = optimizer.spectrum()["weight"]
    assert 0 <= spectrum.turned <= 1


def test_a_bad_input_leaves_the_step_out_and_a_forward_that_raises_leaves_the_weight_as_it_was():
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.1), layer, form="batch", in_backward=True)
    for step in range(4):
        x = torch.randn(6, 40)
        if step == 2:
            x[0, 0] = float("nan")
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        layer(x).sum().backward()
        if step == 2:
            with pytest.warns(UserWarning, match="NaN or inf"):
                optimizer.step()
        else:
            optimizer.step()
        assert torch.equal(layer.weight, before) == (step == 2)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(6, 39))
    assert layer.weight.requires_grad


def test_a_call_with_padding_beside_one_without_takes_what_was_given_back():
    trained = {}
    for in_backward in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(40, 30).double()
        optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.05), layer, form="batch", in_backward=in_backward)
        mask = torch.ones(2, 3, dtype=torch.bool)
        mask[1, 2] = False
        for step in range(4):
            x, padded = torch.randn(2, 2, 3, 40, dtype=torch.float64)
            loss = layer(x).sin().square().mean()
            if step == 2:
                with optimizer.token_mask(mask):
                    loss = loss + layer(padded).sin().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained[in_backward] = layer.weight.detach()
    assert torch.allclose(trained[False], trained[True], rtol=0, atol=1e-12)


def test_options_of_groups_are_those_of_the_step_that_comes():
    trained = {}
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 30, bias=False), nn.Linear(30, 20, bias=False)).double()
        groups = [{"params": [model[0].weight], "damping": lambda step: 1 / (1 + step)}, {"params": [model[1].weight]}]
        optimizer = DoPr(torch.optim.SGD(groups, lr=0.05), model, form="batch", in_backward=in_backward)
        for step in range(6):
            optimizer.zero_grad()
            model(torch.randn(6, 40, dtype=torch.float64)).sin().square().mean().backward()
            optimizer.step()
            optimizer.param_groups[1]["damping"] *= 2
            optimizer.param_groups[1]["precondition"] = step != 3
        trained[in_backward] = torch.cat([weight.detach().flatten() for weight in model.parameters()])
    assert torch.allclose(trained[False], trained[True], rtol=0, atol=1e-12)


def test_it_needs_the_model():
    with pytest.raises(ValueError, match="in_backward=True needs the model"):
        DoPr(torch.optim.SGD(nn.Linear(4, 2).parameters(), lr=0.1), in_backward=True)

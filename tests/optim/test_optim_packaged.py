"""Optimizers of pytorch_optimizer under our names: their papers' updates and options, and what is said without the package."""

import sys

import pytest
import torch
from torch import nn

from dopr_robot.optim import make_optimizer, missing_package, optimizer_options, schedule_free
from dopr_robot.optim.packaged import PACKAGED


def least_squares() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 2, bias=False).double(), torch.randn(64, 3).double(), torch.randn(64, 2).double()


def test_schedule_free_adamw_is_its_paper_s_algorithm_and_gives_its_average():
    """Defazio et al., 2024, algorithm 1, in float64; the average stands in the weights between eval() and train() alone."""
    model, x, target = least_squares()
    lr, (beta1, beta2), decay = 0.02, (0.9, 0.99), 0.1
    optimizer = make_optimizer("schedulefree_adamw", model, lr=lr, betas=(beta1, beta2), weight_decay=decay)
    z = model.weight.detach().clone()
    average, second = z.clone(), torch.zeros_like(z)
    for step in range(1, 31):
        y = (1 - beta1) * z + beta1 * average
        gradient = torch.func.grad(lambda w: (x @ w.T - target).square().mean())(y)
        second = beta2 * second + (1 - beta2) * gradient.square()
        z = z - lr * (gradient / ((second / (1 - beta2**step)).sqrt() + 1e-8) + decay * y)
        average = average + (z - average) / step
        (model(x) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(model.weight, (1 - beta1) * z + beta1 * average, rtol=0, atol=1e-9)
    assert schedule_free(optimizer) is optimizer and schedule_free(make_optimizer("adamw", model)) is None
    optimizer.eval()
    torch.testing.assert_close(model.weight, average, rtol=0, atol=1e-9)
    wrapped = make_optimizer("dopr_schedulefree_adamw", model)
    assert schedule_free(wrapped) is wrapped.base


def test_soap_is_adam_in_the_eigenbasis_of_both_sides_and_its_decay_is_decoupled():
    """Vyas et al., 2024, algorithm 3, second step: the first only looks at the gradient."""
    model, x, target = least_squares()
    before = model.weight.detach().clone()
    optimizer = make_optimizer("soap", model, lr=0.1, weight_decay=0.5)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        (model(x) - target).square().mean().backward()
        return model.weight.grad.clone()

    g = gradient()
    optimizer.step()
    assert torch.equal(model.weight, before)
    left, right = (torch.linalg.eigh(each)[1].flip(1) for each in (g @ g.T, g.T @ g))
    rotated = left.T @ gradient() @ right  # the same, since nothing moved: both moments corrected are its sign
    optimizer.step()
    step = left @ (rotated / (rotated.abs() + 1e-7)) @ right.T  # directions without a gradient have no sign
    torch.testing.assert_close(model.weight, (before - 0.1 * step) * (1 - 0.1 * 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["soap", "dopr_soap"])
def test_a_package_that_is_not_there_is_named_with_the_call_that_brings_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(
        ValueError, match=r"pytorch_optimizer's, which is not installed: pip install 'pytorch_optimizer>="
    ):
        make_optimizer(name, nn.Linear(3, 2))
    monkeypatch.setattr("dopr_robot.optim.packaged.find_spec", lambda package: None)
    assert (missing_package(name), missing_package("adamw")) == ("pytorch_optimizer", None)
    assert optimizer_options(name)["precondition_frequency"] == 10  # listed all the same


@pytest.mark.parametrize("name", PACKAGED)
def test_the_options_of_the_library_s_are_options_that_it_knows(name):
    """Nothing is lost in the ``**kwargs`` that its constructors swallow."""
    optimizer = make_optimizer(name, nn.Linear(3, 2))
    missing = set(optimizer_options(name)) - set(optimizer.defaults)
    assert all(getattr(optimizer, option) == optimizer_options(name)[option] for option in missing)

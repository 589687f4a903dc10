"""Optimizers load torch's compiler where something is compiled, and not before."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from dopr_robot.optim import make_optimizer
from dopr_robot.optim.untraced import AdamW

STEPS = """
import sys
import torch
from torch import nn
for name in "{made}".split():
    getattr(torch.optim, name)([nn.Parameter(torch.zeros(1))])
from dopr_robot.optim import make_optimizer
loaded = "torch._dynamo" in sys.modules
for name in ("sgd", "adam", "adamw", "muon", "lion", "signum", "dopr_adamw", "dopr_muon", "dopr_sgd"):
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer, called = make_optimizer(name, model), []
    optimizer.register_step_post_hook(lambda *args: called.append(1))
    for _ in range(3):
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(called) == 3, (name, called)
print(loaded, "torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize(
    ("made", "expected"), [("", "False False"), ("AdamW", "True True"), ("Adam AdamW SGD", "True True")]
)
def test_the_compiler_is_not_loaded_and_hooks_run_once(made, expected):
    done = subprocess.run(
        [sys.executable, "-P", "-c", STEPS.format(made=made)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == expected


def test_a_step_that_is_to_be_differentiated_is_torchs():
    weight, rate = torch.ones(3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    moved = weight.clone()
    optimizer = AdamW([moved], lr=rate, differentiable=True, foreach=False)
    moved.grad = torch.ones(3)
    optimizer.step()
    moved.sum().backward()
    assert rate.grad is not None and weight.grad is not None


def test_steps_and_state_are_those_of_torchs_own_adamw():
    def trained(model, optimizer):
        for _ in range(3):
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.weight.detach().clone()

    ours, its = nn.Linear(3, 2), nn.Linear(3, 2)
    its.load_state_dict(ours.state_dict())
    first = make_optimizer("adamw", ours, lr=0.01)
    second = torch.optim.AdamW([{"params": [its.weight]}, {"params": [its.bias]}], lr=0.01, weight_decay=0)
    assert torch.equal(trained(ours, first), trained(its, second))
    states = copy.deepcopy((first.state_dict(), second.state_dict()))  # loaded tensors are not copied
    first.load_state_dict(states[1]), second.load_state_dict(states[0])  # each goes on from the other's
    assert torch.equal(trained(ours, first), trained(its, second))

"""Parts of networks that have a way of their own through torch."""

import pytest
import torch
from torch import nn

from dopr_robot.optim import DoPr
from dopr_robot.policies.networks.common import Conv1d, GroupNorm, Mish


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    return y.detach(), x.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("dims", [(3, 8), (6, 128)])
def test_a_short_convolution_is_torchs(size, dims):
    torch.manual_seed(0)
    ours = Conv1d(*dims, size).double()
    peer = nn.Conv1d(*dims, size, padding=size // 2).double()
    peer.load_state_dict(ours.state_dict())
    for length in (1, 2, 4, 5, 8, 9, 16):
        x = torch.randn(2, dims[0], length, dtype=torch.float64)
        ours.zero_grad(), peer.zero_grad()
        for mine, its in zip(gradients(ours, x), gradients(peer, x), strict=True):
            torch.testing.assert_close(mine, its)


def test_dopr_preconditions_a_short_convolution_as_torchs():
    weights = []
    for make in (Conv1d, lambda *dims: nn.Conv1d(*dims, padding=1)):
        torch.manual_seed(0)
        layer = make(4, 6, 3)
        optimizer = DoPr(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
        x = torch.randn(5, 4, 4)
        for _ in range(3):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
        weights.append(layer.weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_mish_is_torchs_wherever_it_is_taken():
    x = torch.cat([torch.linspace(-110, 110, 2001), torch.tensor([-1e30, -1e4, 0.0, 1e4, 1e30])])
    found = []
    for layer in (Mish(), nn.Mish()):
        at = x.clone().requires_grad_()
        y = layer(at)
        (3 * y).sum().backward()
        found.append((y.detach(), at.grad))
    for ours, its in zip(*found, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-5, atol=3e-6)
    assert Mish()(torch.tensor(float("nan"))).isnan()


def test_mish_refuses_a_second_derivative():
    x = torch.randn(3, requires_grad=True)
    (slope,) = torch.autograd.grad(Mish()(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(slope.sum(), x)


@pytest.mark.parametrize("length", [1, 3, 4, 5])
def test_a_group_norm_is_torchs(length):
    torch.manual_seed(0)
    ours, peer = GroupNorm(4, 12).double(), nn.GroupNorm(4, 12).double()
    with torch.no_grad():
        ours.weight.copy_(torch.randn(12)), ours.bias.copy_(torch.randn(12))
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(5, length, 12, dtype=torch.float64).transpose(1, 2)
    for mine, its in zip(gradients(ours, x), gradients(peer, x), strict=True):
        torch.testing.assert_close(mine, its)

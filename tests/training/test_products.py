"""Products by oneDNN where torch's own leave half the processor unused: the same figures, for as long as they are asked for."""

import itertools

import pytest
import torch
from torch import library as kernels
from torch import nn

from dopr_robot.optim import make_optimizer
from dopr_robot.policies import products
from dopr_robot.policies.products import fast_products
from dopr_robot.training import train

pytestmark = pytest.mark.skipif(
    not (hasattr(kernels, "get_kernel") and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="torch has no kernels to call, or no oneDNN",
)


@pytest.fixture
def everywhere(monkeypatch):
    """On any processor, from eight multiplications on; what was taken by oneDNN is counted."""
    taken, product = [], products._product

    def counted(a, b, bias=None):
        taken.append((tuple(a.shape), tuple(b.shape)))
        return product(a, b, bias)

    monkeypatch.setattr(products, "avx512_unused", lambda: True)
    monkeypatch.setattr(products, "LEAST", 8)
    monkeypatch.setattr(products, "_product", counted)
    return taken


def layouts(m, n):
    """A matrix as it may lie in memory: whole, turned, a block of a larger one, every second entry, one row or number for all."""
    yield torch.randn(m, n)
    yield torch.randn(n, m).t()
    yield torch.randn(m + 3, n + 5)[2 : 2 + m, 3 : 3 + n]
    yield torch.randn(n + 2, m + 4)[1 : n + 1, 1 : m + 1].t()
    yield torch.randn(2 * m, 2 * n)[::2, ::2]
    yield torch.randn(1, n).expand(m, n)
    yield torch.randn(m, 1).expand(m, n)
    yield torch.randn(()).expand(m, n)


def asked(a, b, bias):
    return a @ b, torch.addmm(bias, a, b), torch.addmm(bias, a, b, beta=0.5, alpha=2), torch.bmm(a[None], b[None])


@pytest.mark.parametrize("m, k, n", [(1, 1, 8), (3, 4, 5), (1, 16, 1), (7, 1, 7), (33, 17, 9)])
def test_products_are_torchs_however_the_matrices_lie(everywhere, m, k, n):
    torch.manual_seed(0)
    biases = (torch.randn(n), torch.randn(2 * n)[::2], torch.randn(1).expand(n), torch.randn(m, n), torch.randn(()))
    for a, b in itertools.product(layouts(m, k), layouts(k, n)):
        for bias in biases:
            plain = asked(a, b, bias)
            with fast_products():
                found = asked(a, b, bias)
            for its, ours in zip(plain, found, strict=True):
                torch.testing.assert_close(ours, its, atol=1e-4, rtol=1e-5)
                assert ours.is_contiguous()
    assert everywhere


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_other_numbers_are_left_to_torch(everywhere, dtype):
    a = torch.arange(64).reshape(8, 8).to(dtype)
    with fast_products():
        assert torch.equal(a @ a, (a.double() @ a.double()).to(dtype))
    assert not everywhere


def test_a_layer_and_its_gradients_are_torchs(everywhere):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 5), torch.randn(4, 3, 6, requires_grad=True)
    found = []
    for _ in range(2):
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
        context = fast_products()
        context.__enter__()  # for the second round
    context.__exit__(None, None, None)
    for its, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, its)
    assert len(everywhere) >= 3  # the output, the input's gradient, the weight's


def test_an_optimizers_products_are_taken_too(everywhere):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    optimizer = make_optimizer("dopr_adamw", layer, lr=0.1)
    layer(torch.randn(8, 16)).square().mean().backward()
    everywhere.clear()
    with fast_products():
        optimizer.step()
    assert everywhere


def test_it_ends_with_the_last_and_after_an_error(everywhere):
    a = torch.ones(8, 8)
    with pytest.raises(ZeroDivisionError), fast_products():
        with fast_products():
            pass
        a @ a
        assert len(everywhere) == 1
        1 / 0  # noqa: B018
    a @ a
    assert len(everywhere) == 1


def test_what_does_not_fit_is_refused_as_by_torch(everywhere):
    with fast_products():
        for a, b in ((torch.ones(3, 4), torch.ones(5, 6)), (torch.ones(3, 4), torch.ones(4))):
            with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|matrices expected|must be"):
                torch.mm(a, b)
    assert not everywhere


def test_training_takes_them(everywhere, store, config, tmp_path):
    train(config(store, "training.device=cpu", "training.steps=2"), tmp_path / "run")
    assert everywhere


def test_small_products_and_other_processors_are_left_alone(monkeypatch):
    monkeypatch.setattr(products, "avx512_unused", lambda: False)
    monkeypatch.setattr(products, "_replace", lambda library: pytest.fail("replaced"))
    with fast_products():
        assert float((torch.ones(2, 2) @ torch.ones(2, 2))[0, 0]) == 2

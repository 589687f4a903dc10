"""Matrix products by oneDNN, where those that torch takes by itself use half the processor."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch import library as kernels

LEAST = 1 << 21
"""Multiplications from which on it pays: 64 x 128 x 128 (2^20) take as long by either, 64 x 256 x 256 (2^22) 75 and 45 us."""
_LOCK, _REPLACED, _users = threading.Lock(), ExitStack(), 0


@cache
def avx512_unused() -> bool:
    """Whether torch multiplies float32 matrices by Intel's MKL, on another maker's processor that has AVX-512.

    MKL gives those its AVX2 kernels; oneDNN, which torch has for convolutions and for 16-bit products, asks for the instructions alone.
    On one thread of an AMD EPYC of the fifth generation a product of 1,024 x 1,024 runs at 115 and 255 GFLOP/s.
    """
    known = all(hasattr(kernels, name) for name in ("get_kernel", "_scoped_library"))  # torch 2.6 has not
    known = known and torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if not known or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux: nothing says who made it
        return False


@contextmanager
def fast_products() -> Iterator[None]:
    """Within it, large float32 products on a CPU are oneDNN's if :func:`avx512_unused`: layers, their backward passes, optimizers.

    The figures are the same but for rounding. It holds for the whole process, since torch has one table of kernels; a product costs
    2 us more, which only those that gain nothing feel.

    Example:
        >>> with fast_products():
        ...     product = torch.ones(256, 256) @ torch.ones(256, 256)
        >>> float(product[0, 0])
        256.0
    """
    global _users
    if not avx512_unused():
        yield
        return
    with _LOCK:
        if not _users:
            _replace(_REPLACED.enter_context(kernels._scoped_library("aten", "IMPL")))
        _users += 1
    try:
        yield
    finally:
        with _LOCK:
            _users -= 1
            if not _users:
                _REPLACED.close()


def _replace(library: kernels.Library) -> None:
    """What torch brings ``nn.Linear``, ``@`` of matrices and their gradients to; ``bmm`` where it is of one pair."""
    plain = {name: kernels.get_kernel(f"aten::{name}", "CPU").call_boxed for name in ("mm", "addmm", "bmm")}

    def mm(keys: torch.DispatchKeySet, a: Tensor, b: Tensor) -> Tensor:
        return _product(a, b) if _fit(a, b) else plain["mm"](keys, a, b)

    def bmm(keys: torch.DispatchKeySet, a: Tensor, b: Tensor) -> Tensor:
        single = a.dim() == b.dim() == 3 and len(a) == len(b) == 1 and _fit(a[0], b[0])
        return _product(a[0], b[0])[None] if single else plain["bmm"](keys, a, b)

    def addmm(
        keys: torch.DispatchKeySet, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1
    ) -> Tensor:
        if c.shape == b.shape[1:] and beta == alpha == 1 and c.dtype == torch.float32 and _fit(a, b):
            return _product(a, b, c.contiguous())  # of another bias it reads what lies beside it
        return plain["addmm"](keys, c, a, b, beta=beta, alpha=alpha)

    with warnings.catch_warnings(action="ignore"):  # that they are replaced
        for kernel in (mm, bmm, addmm):
            library.impl(kernel.__name__, kernel, "CPU", with_keyset=True)


def _fit(a: Tensor, b: Tensor) -> bool:
    """Whether they are large matrices of float32."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.shape[0] * a.shape[1] * b.shape[1] < LEAST:
        return False
    return a.dtype == b.dtype == torch.float32


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(_dense(a), _dense(b).t(), bias, "none", [], "")


def _dense(x: Tensor) -> Tensor:
    """Of blocks of a larger matrix, and of one row that stands for many, oneDNN's product takes a hundred times as long."""
    return x if x.is_contiguous() or x.t().is_contiguous() else x.contiguous()

"""Products of inputs with themselves, formed once for the layers that have the same."""

import torch
from torch import Tensor

_STRIP = 128
_WIDENS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)  # whether torch gives 16-bit products in float32


def gram(rows: Tensor) -> Tensor:
    """``rows rows^T`` [groups, n, n] of rows [groups, n, d]. On a CPU, of one group of many rows, by strips up to the diagonal, three
    quarters of the time of the whole product; the other triangle is the mirror image. Of 16-bit rows, which a GPU alone gives, it is
    added up and given in float32: the products are exact there.
    """
    if rows.dtype in (torch.bfloat16, torch.float16):
        wide = _WIDENS and rows.is_cuda
        return torch.bmm(rows, rows.mT, out_dtype=torch.float32) if wide else gram(rows.float())
    groups, n, _ = rows.shape
    if groups > 1 or n < 4 * _STRIP or not rows.is_cpu:
        return rows @ rows.mT
    whole, strips = rows.new_empty(n, n), rows[0].contiguous()
    for start in range(0, n, _STRIP):
        end = min(start + _STRIP, n)
        whole[start:end, :end] = strips[start:end] @ strips[:end].t()
        whole[:start, start:end] = whole[start:end, :start].t()
    return whole.unsqueeze(0)


class Products:
    """``z^T z`` of inputs z [groups, n, d], formed once for layers that take the same tensor one after the other: query, key and value, or
    a feed-forward layer's gate and its other half.
    """

    def __init__(self) -> None:
        self._last: tuple[Tensor, int, Tensor] | None = None

    def of(self, z: Tensor) -> Tensor:
        """The products, which others may hold too: not to be written to."""
        if self._last is not None:
            last, version, total = self._last
            same = last.data_ptr() == z.data_ptr() and last.shape == z.shape and last.stride() == z.stride()
            if same and last._version == version and last.dtype == z.dtype and last.device == z.device:
                return total
        total = gram(z.mT)
        self._last = (z, z._version, total)  # the inputs too: what lies where they lay would be taken for them
        return total

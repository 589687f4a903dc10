"""The second moment of the inputs of one weight, and the damped inverse that its gradient is multiplied by."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim.layers import Layer, PackedProjection

_CACHED = 1 << 18  # entries for each thread: 1 MiB of float32, of a core's second-level cache


class Factor:
    """Second moment and inverse of one parameter, over all its uses.

    With several uses (a module called twice, weights tied between modules) the moment is taken over the inputs of all of them, each
    input vector counting once. Where a table is both an embedding and a linear layer, its uses multiply different sides of it, and
    the two moments stand side by side: the step solves ``diag(s) M + M S = G``, damped, which is what the metric
    ``sum over uses of |dW z|^2`` asks for, and what a single use is a special case of.

    Args:
        name: the parameter's name in the model.
        layers: its uses.

    Attributes:
        state: what a checkpoint keeps: the second moments ``matrix`` [groups, d, d] and ``diagonal`` [V], and the inverse in one of
            the forms of ``inverses``: ``inverse``; ``basis, left, scale``; or for a table of two uses ``basis, eigenvalues, damped``.
        due: whether inputs are to be recorded for the next step.
        refreshed: the step at which the inverse was formed last.
        turned: share of the preconditioned gradient's squared length that is not along the gradient, at the last refresh.
    """

    def __init__(self, name: str, layers: Sequence[Layer]) -> None:
        self.name = name
        self.layers = list(layers)
        self.weight: nn.Parameter = layers[0].weight
        self.matrix = next((layer for layer in layers if not layer.diagonal), None)
        self.diagonal = next((layer for layer in layers if layer.diagonal), None)
        self.dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        self.state: dict[str, Tensor] = {}
        self.due = True
        self.phase = 0
        self.refreshed = -1
        self.turned: Tensor | float = 0.0
        self.clear()

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias that is preconditioned together with the weight."""
        return self.matrix.bias if self.matrix is not None else None

    @property
    def groups(self) -> int:
        """Number of second moments side by side."""
        return self.matrix.groups if self.matrix is not None else 1

    @property
    def ready(self) -> bool:
        """Whether there is an inverse to multiply by."""
        return self.refreshed >= 0

    @property
    def cost(self) -> int:
        """Multiplications of a refresh, to an order of magnitude."""
        return self.matrix.groups * self.matrix.dim**3 if self.matrix is not None else self.layers[0].dim

    def clear(self) -> None:
        """Forget the inputs recorded since the last step."""
        self.seen = False
        self.sums: dict[str, Tensor] = {}
        self.count: Tensor | float = 0.0
        for layer in self.layers:
            layer.forwarded = False

    def record(self, layer: Layer, streams: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        """Add the inputs of one call: the module's input with its mask, or query, key and value where they differ."""
        if len(streams) == 3 and layer.groups == 1:
            self._split(layer)
        parts = [layer.inputs(x.to(self.dtype) if x.is_floating_point() else x, mask) for x, mask in streams]
        key = "diagonal" if layer.diagonal else "matrix"
        if layer.diagonal:
            total, n = parts[0][0].to(self.dtype), parts[0][1]
        elif len(parts) == 1:
            z, n = parts[0]
            total = z.mT @ z
        else:
            total = torch.cat([z.mT @ z for z, _ in parts])
            n = torch.stack([torch.as_tensor(n, dtype=self.dtype, device=total.device) for _, n in parts])
        if not layer.diagonal and total.shape[0] < layer.groups:  # query, key and value are one tensor in this call
            total = total.expand(layer.groups, -1, -1)
        self.sums[key] = self.sums[key] + total if key in self.sums else total
        self.count = self.count + n
        self.seen = True

    def _split(self, layer: Layer) -> None:
        """Give query, key and value a second moment each, equal to the shared one so far."""
        assert isinstance(layer, PackedProjection)
        layer.split()
        for store in (self.sums, self.state):
            for key, tensor in store.items():
                store[key] = tensor.expand(3, -1, -1).clone()

    def fill(self, groups: int) -> None:
        """Make sums and count tensors of full shape, zeros where nothing was recorded, to be added over ranks."""
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.weight.device}
        if self.matrix is not None:
            if groups > self.matrix.groups:
                self._split(self.matrix)
            shape = (groups, self.matrix.dim, self.matrix.dim)
            self.sums["matrix"] = (
                self.sums["matrix"].clone() if "matrix" in self.sums else torch.zeros(shape, **options)
            )
        if self.diagonal is not None:
            self.sums.setdefault("diagonal", torch.zeros(self.diagonal.dim, **options))
        self.count = torch.as_tensor(self.count, **options).expand(groups).clone()

    def batch_moments(self) -> dict[str, Tensor]:
        """The second moments of the inputs recorded since the last step."""
        count = self.count
        return {
            key: total
            / (count.view(-1, 1, 1) if isinstance(count, Tensor) and count.dim() and key == "matrix" else count)
            for key, total in self.sums.items()
        }

    def average(self, moments: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
        """The running average with ``moments`` added; the first batch counts whole, so there is no bias to correct."""
        return {
            key: self.state[key].lerp(moment, 1 - decay) if decay and key in self.state else moment
            for key, moment in moments.items()
        }

    def trace_mean(self) -> Tensor:
        """tr(S)/d for each group [groups], the scale of the damping; 1 where every input was zero."""
        mean = torch.zeros((), dtype=self.dtype, device=self.weight.device)
        if "matrix" in self.state:
            mean = mean + self.state["matrix"].diagonal(dim1=-2, dim2=-1).mean(-1)
        if "diagonal" in self.state:
            mean = mean + self.state["diagonal"].mean()
        return torch.where(mean > 0, mean, torch.ones_like(mean))

    def precondition_(self, measure: bool = False) -> None:
        """Multiply the weight's gradient (and the bias's) by the inverse, in place; ``measure`` sets ``turned``."""
        gradient = self.weight.grad
        assert gradient is not None
        before = gradient.clone() if measure else None
        if self.matrix is None:
            gradient.mul_(self.state["inverse"].unsqueeze(-1))
        elif self.diagonal is not None:
            turned = gradient.to(self.dtype) @ self.state["basis"]
            turned /= self.state["damped"].unsqueeze(-1) + self.state["eigenvalues"]
            gradient.copy_(turned @ self.state["basis"].mT)
        else:
            self._multiply_(gradient, self.matrix)
        if before is not None:
            g, m = before.flatten().to(self.dtype), gradient.flatten().to(self.dtype)
            self.turned = 1 - (torch.dot(g, m) / (g.norm() * m.norm()).clamp_min(1e-30)).square()

    def _multiply_(self, gradient: Tensor, layer: Layer) -> None:
        rows = layer.view(gradient)  # [groups, rows, ..., width]
        if rows.data_ptr() != gradient.data_ptr():  # not dense in memory
            dense = gradient.contiguous()
            self._multiply_(dense, layer)
            gradient.copy_(dense)
            return
        if layer.bias is not None:
            column = rows.new_zeros(rows.shape[:2]) if layer.bias.grad is None else layer.bias.grad.view(rows.shape[:2])
            flat = torch.cat([rows.reshape(*rows.shape[:2], -1), column.unsqueeze(-1)], dim=-1)
            result = self._times_inverse(flat.to(self.dtype))
            rows.copy_(result[..., :-1].view(rows.shape))
            if layer.bias.grad is not None:
                column.copy_(result[..., -1])
            return
        # A convolution's rows have to be gathered: on a CPU in parts that stay in its cache, twice as fast as all at once.
        cached = _CACHED * torch.get_num_threads()
        for part in rows.split(max(1, cached // rows[:, :1].numel()), 1) if rows.dim() > 3 and rows.is_cpu else [rows]:
            result = self._times_inverse(part.reshape(part.shape[0], -1, part.shape[-1]).to(self.dtype))
            if result.data_ptr() != part.data_ptr():
                part.copy_(result.view(part.shape))

    def _times_inverse(self, rows: Tensor) -> Tensor:
        """``rows @ inverse`` [groups, n, d]; in place where the inverse is of low rank."""
        if "inverse" in self.state:
            return rows @ self.state["inverse"]
        basis, left, scale = self.state["basis"], self.state["left"], self.state["scale"]
        if len(rows) == 1 and rows.is_cpu:  # the scale as a number: one pass over the gradient less
            matrix = rows[0]
            matrix.addmm_(matrix @ left[0], basis[0].mT, beta=float(scale))
            return rows
        inner = rows @ left
        return rows.mul_(scale.view(-1, 1, 1)).baddbmm_(inner, basis.mT)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up a checkpoint's state, on the weight's device."""
        tensors = {key: value for key, value in state.items() if key not in ("refreshed", "turned")}
        self.state = {key: value.to(self.weight.device, copy=True) for key, value in tensors.items()}
        self.refreshed = int(state["refreshed"])
        self.turned = state["turned"]
        if isinstance(self.matrix, PackedProjection) and "matrix" in self.state:
            self.matrix.groups = self.state["matrix"].shape[0]


def memory_bytes(factor: Factor) -> int:
    """Bytes held by a factor's moments and inverse."""
    return sum(
        tensor.element_size() * math.prod(tensor.shape) for tensor in (*factor.state.values(), *factor.sums.values())
    )

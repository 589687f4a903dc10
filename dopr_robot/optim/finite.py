"""Steps with NaN or inf: found, left out and counted; on CUDA without waiting for the device."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class FiniteCheck:
    """Looks at every step's gradients and statistics.

    Args:
        limit: raise after so many bad steps in a row.
        warn: told, once a message, what happened.

    Attributes:
        skipped, in_a_row: steps that were left out, in all and without a good one between.
        found_inf: [1.0 or 0.0] on the device where the answer was not waited for, else None.
    """

    def __init__(self, limit: int, warn: Callable[[str], None]) -> None:
        self.limit = limit
        self.skipped = 0
        self.in_a_row = 0
        self.found_inf: Tensor | None = None
        self._warn = warn
        self._on_device: Tensor | None = None

    def bad(self, tensors: Sequence[Tensor], device: torch.device) -> Tensor:
        """1.0 where an entry is NaN or inf, by sums, which pass both on and are the cheapest to form."""
        if device.type == "cuda" and all(tensor.device == device for tensor in tensors):
            # Sums of magnitudes, which say the same, are formed of all at once there.
            norms: list[Tensor] = []
            for dtype in {tensor.dtype for tensor in tensors}:
                of_one = [tensor for tensor in tensors if tensor.dtype == dtype]
                norms += torch._foreach_norm(of_one, 1, dtype=_WIDE.get(dtype))
            return 1.0 - torch.stack([norm.float() for norm in norms]).sum().isfinite().float()
        sums = [tensor.sum(dtype=_WIDE.get(tensor.dtype)) for tensor in tensors]
        if all(part.is_cpu for part in sums):
            return torch.tensor(0.0 if math.isfinite(sum(map(float, sums))) else 1.0)
        total = torch.stack([part.to(device, torch.float32) for part in sums]).sum()
        return 1.0 - total.isfinite().float()

    def unless_bad(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, or where the answer is on the device and says bad, ``old``."""
        return new if self.found_inf is None else torch.where(self.found_inf > 0, old, new)

    def skip(self) -> None:
        """A bad step, known here."""
        self.skipped += 1
        self.in_a_row += 1
        self._complain(1)

    def count(self, gradients: Sequence[Tensor], step: int) -> None:
        """A step that was taken; where the answer is on the device, the gradients of a bad one become 0, and it is counted there and looked
        at now and then."""
        if self.found_inf is None:
            self.in_a_row = 0
            return
        bad = self.found_inf > 0
        for gradient in gradients:
            gradient.masked_fill_(bad, 0.0)
        if self._on_device is None:
            self._on_device = torch.zeros(2, device=self.found_inf.device)
        self._on_device[0].add_(self.found_inf)
        self._on_device[1].add_(1).mul_(self.found_inf)
        if (step + 1) % self.limit == 0:
            self.read()

    def read(self) -> None:
        """Fetch what was counted on the device."""
        if self._on_device is None:
            return
        skipped, in_a_row = (int(count) for count in self._on_device.tolist())
        self._on_device = None
        self.skipped += skipped
        self.in_a_row = in_a_row
        self._complain(skipped)

    def _complain(self, skipped: int) -> None:
        if self.in_a_row >= self.limit:
            raise RuntimeError(
                f"NaN or inf in gradients or activations for {self.in_a_row} steps in a row: lower the learning rate, or "
                "raise max_nonfinite to wait longer"
            )
        if skipped:
            self._warn("NaN or inf in gradients or activations: the step is left out (counted in `skipped`)")

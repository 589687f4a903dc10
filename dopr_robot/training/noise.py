"""Random numbers that do not depend on how a batch is split over processes and micro-batches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """Seed of everything that is drawn at one step."""
    return int(np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint32)[0])


def seed_all(seed: int, device: torch.device) -> None:
    """Seed what is drawn on the CPU and on a device, as ``torch.manual_seed`` does.

    That one also leaves word for every other kind of device that a later program may use, with the whole stack each: a quarter of a
    small network's step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


class PartOfBatch(TorchDispatchMode):
    """Inside, random tensors with a row for each window are drawn for the whole batch, of which this part's rows are kept.

    With one seed for all parts, the parts' noise together is what the batch in one piece would have seen: flow and diffusion noise,
    times, dropout, augmentation. It costs a drawing of the whole batch in every part. A tensor counts as one with rows where its first
    dimension is a multiple of the part's rows; others (one crop for all, say) come out alike in every part. Attention kernels with
    dropout of their own are left alone.

    Args:
        part, parts: the part holds rows ``part, part + parts, part + 2 parts, ...`` of the batch.
        rows: how many these are.
    """

    def __init__(self, part: int, parts: int, rows: int) -> None:
        super().__init__()
        self.part, self.parts, self.rows = part, parts, rows

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or "attention" in func.name():
            return func(*args, **kwargs)
        out = func(*(self._whole(each) for each in args), **kwargs)
        kept = tree_map(self._kept, out)
        if func._schema.name.endswith("_"):  # in place
            return args[0].copy_(kept)
        return kept

    def _whole(self, argument: Any) -> Any:
        """A tensor or a shape, for all parts; this part's rows stand where they stand in the batch."""
        if isinstance(argument, Tensor) and argument.dim() and argument.shape[0] and not argument.shape[0] % self.rows:
            by_row = argument.reshape(self.rows, -1, *argument.shape[1:])
            return by_row.repeat_interleave(self.parts, 0).flatten(0, 1)
        is_shape = isinstance(argument, list | tuple) and argument and all(isinstance(each, int) for each in argument)
        if is_shape and argument[0] and not argument[0] % self.rows:
            return [argument[0] * self.parts, *argument[1:]]
        return argument

    def _kept(self, value: Any) -> Any:
        whole = self.rows * self.parts
        if isinstance(value, Tensor) and value.dim() and value.shape[0] and not value.shape[0] % whole:
            return value.reshape(whole, -1, *value.shape[1:])[self.part :: self.parts].flatten(0, 1)
        return value

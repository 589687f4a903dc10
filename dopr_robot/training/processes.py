"""Several processes of one run (`torchrun`, `accelerate launch`): what the first decides, and what all have to know."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from timeit import Timer
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from dopr_robot.errors import DoprError, UserError
from dopr_robot.locks import held

T = TypeVar("T")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def from_main(make: Callable[[], T], *, cpu: bool) -> T:
    """What ``make()`` gives in the first process, in all of them; an error of the user's is raised in all as well.

    Args:
        make: called in the first process alone.
        cpu: whether the run is on CPUs although there is a GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return make()
    state = PartialState(cpu=cpu)
    told: list[object] = [None, None]
    if state.is_main_process:
        try:
            told[0] = make()
        except UserError as error:
            told[1] = str(error)
    broadcast_object_list(told)
    if told[1] is not None:
        raise UserError(str(told[1]))
    return told[0]  # type: ignore[return-value]


@contextmanager
def alone(folder: Path, *, cpu: bool) -> Iterator[None]:
    """A run folder that no other run is trained in meanwhile. Raises UserError, in all processes, where one is."""
    with ExitStack() as stack:
        from_main(lambda: stack.enter_context(held(folder)), cpu=cpu)
        yield


def agree(accelerator: Accelerator, loss: torch.Tensor, signum: int, late: bool) -> tuple[float, int, bool]:
    """One loss (the mean), one signal and one clock for all processes: a process that stopped alone would leave the others waiting."""
    if accelerator.num_processes == 1:
        return float(loss), signum, late
    told = torch.stack([loss.float(), *(loss.new_tensor(float(flag)) for flag in (signum, late))])
    every = accelerator.gather(told).view(-1, 3)  # [processes, 3]
    return float(every[:, 0].mean()), int(every[:, 1].max()), bool(every[:, 2].max())


def shared(accelerator: Accelerator, value: T | None) -> T:
    """The first process's value, in all of them; the others give None."""
    told = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(told)
    assert told[0] is not None
    return told[0]


def check_device(device: str, precision: str) -> None:
    """Raise UserError for a device that is not there, or a precision that it does not have."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device=cuda but torch finds no CUDA device: use training.device=cpu")
    if precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise UserError("training.precision=fp16 needs a CUDA device: use bf16 or no")


def bf16_takes(size: int = 256) -> float:
    """How many times as long as in float32 this processor takes for a matrix product in bf16; one without instructions for it 10 to 60."""
    x = torch.ones(size, size)
    timers = (Timer(partial(torch.mm, matrix, matrix)) for matrix in (x, x.bfloat16()))
    full, half = (min(timer.repeat(5, 1)) for timer in timers)
    return half / full


def keep_freed_memory() -> None:
    """What a step frees stays with the process for the next, where the C library can be told so (glibc).

    Otherwise it goes back to the system at the end of each step, to be asked for again and filled with zeros page by page: 7,400 pages
    and 13 of 84 ms a step of a U-Net (64, 128 and 256 channels, batch 64, one thread). The most that is held is within 3 % of what it was.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that it takes: larger arrays still come and go


class explained_memory:  # a word in a with statement
    """An out-of-memory inside says which setting to lower.

    Args:
        batch_size, accumulate: the settings, as they are.
    """

    def __init__(self, batch_size: int, accumulate: int) -> None:
        self.batch_size, self.accumulate = batch_size, accumulate

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        text = str(error)
        on_cpu = isinstance(error, RuntimeError) and ("not enough memory" in text or "t allocate memory" in text)
        if on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise DoprError(
                f"out of memory with training.batch_size={self.batch_size} and training.accumulate={self.accumulate}: raise "
                f"training.accumulate (say to {2 * self.accumulate}: the same result, in smaller pieces) or lower training.batch_size; "
                "the last checkpoint is untouched"
            ) from None

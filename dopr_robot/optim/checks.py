"""Checks of options."""

import math
import warnings
from typing import Any

import torch

# A saved state has places in this: new ones come at the end.
FORMS = ("auto", "batch", "average", "low_rank", "sketch", "average_sketch")


def check_hyperparameters(*, lr: float, weight_decay: float, **decays: float) -> None:
    """Raise ValueError, naming the value, for a negative rate or a decay outside [0, 1)."""
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise ValueError(f"{name}={value} must not be negative")
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be in [0, 1)")


def check_preconditioning(
    *,
    form: Any,
    stat_decay: Any,
    warmup_steps: Any,
    conv: Any,
    rank: Any,
    max_tokens: Any,
    max_nonfinite: Any,
    max_dim: Any,
    max_cost: Any,
    state_dtype: Any,
    owned: Any,
    max_update_norm: Any,
) -> None:
    """Raise ValueError, naming the value, for an option of ``ActivationPreconditioner`` that is out of range or of the wrong type."""
    if form not in FORMS:
        raise ValueError(f"form={form!r} must be one of {', '.join(FORMS)}")
    if not (is_number(stat_decay) and 0 <= stat_decay < 1):
        raise ValueError(f"stat_decay={stat_decay!r} must be in [0, 1)")
    if conv not in ("sua", "unfold"):
        raise ValueError(f"conv={conv!r} must be 'sua' or 'unfold'")
    if max_cost is not None and not (is_number(max_cost) and 0 < max_cost < math.inf):
        raise ValueError(
            f"max_cost={max_cost!r} must be a positive share of a layer's own forward and backward, or None"
        )
    if max_cost is not None and form not in ("batch", "auto"):
        raise ValueError(
            f"max_cost={max_cost!r} is of form='batch' or 'auto', and says nothing of {form!r}: leave it out"
        )
    if state_dtype not in (None, "bfloat16", torch.bfloat16, torch.float32):
        raise ValueError(f"state_dtype={state_dtype!r} must be 'bfloat16' or None")
    if owned not in ("moments", "inverses"):
        raise ValueError(f"owned={owned!r} must be 'moments' or 'inverses'")
    if rank is None:
        raise ValueError("rank=None, the whole inverse, is form='average'")
    if max_update_norm is not None and not (is_number(max_update_norm) and 0 < max_update_norm < math.inf):
        raise ValueError(f"max_update_norm={max_update_norm!r} must be a positive number, or None for no limit")
    for name, value, least in (
        ("warmup_steps", warmup_steps, 0),
        ("rank", 1 if rank == "auto" else rank, 1),
        ("max_tokens", 1 if max_tokens is None else max_tokens, 1),
        ("max_nonfinite", max_nonfinite, 1),
        ("max_dim", 1 if max_dim is None else max_dim, 1),
    ):
        check_whole(name, value, least)


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError, naming the value, where it is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def is_number(value: Any) -> bool:
    """Whether ``value`` is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class WarnOnce:
    """Warns of each thing once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, stacklevel=4)

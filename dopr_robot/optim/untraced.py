"""What ``torch.compile`` leaves alone, without its compiler being loaded where nothing is compiled.

``torch._disable_dynamo`` loads it at the first call of what it wraps, and so do a step and other methods of every torch optimizer: 0.8 s
beside ``torch.distributed.tensor``, 1.8 s alone, before the first step of a training.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def compiling() -> bool:
    """Whether torch's compiler reads this, or could run what follows."""
    return torch.compiler.is_compiling() or "torch._dynamo" in sys.modules  # the first alone while it reads


def untraced(function: F) -> F:
    """The function, which is called as it is and never compiled."""
    return cast(F, _either(torch._disable_dynamo(function), function))


def _either(guarded: F, plain: Callable[..., Any]) -> F:
    """The first where something may be compiled, else the second."""

    @wraps(guarded)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (guarded if compiling() else plain)(*args, **kwargs)

    return cast(F, call)


def _without_guard(method: F) -> F:
    """A method of torch's that loads the compiler; itself where torch has it otherwise."""
    return _either(method, getattr(method, "__wrapped__", method))


def _step(method: F) -> F:
    """A step of torch's, which loads the compiler for the sake of ``differentiable``."""
    # With a class's first instance torch puts hooks around its step, and so around ours.
    while getattr(method, "hooked", False):
        method = method.__wrapped__  # type: ignore[attr-defined]
    bare = torch.no_grad()(getattr(method, "__wrapped__", method))

    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        return (method if self.defaults.get("differentiable") else bare)(self, *args, **kwargs)

    return _either(method, plain)


class Uncompiled(torch.optim.Optimizer):
    """torch's, beneath every optimizer of this package."""

    add_param_group = _without_guard(torch.optim.Optimizer.add_param_group)
    load_state_dict = _without_guard(torch.optim.Optimizer.load_state_dict)
    state_dict = _without_guard(torch.optim.Optimizer.state_dict)
    zero_grad = _without_guard(torch.optim.Optimizer.zero_grad)


class SGD(Uncompiled, torch.optim.SGD):
    """torch's."""

    step = _step(torch.optim.SGD.step)


class Adam(Uncompiled, torch.optim.Adam):
    """torch's."""

    step = _step(torch.optim.Adam.step)


class AdamW(Uncompiled, torch.optim.AdamW):
    """torch's."""

    step = _step(torch.optim.AdamW.step)

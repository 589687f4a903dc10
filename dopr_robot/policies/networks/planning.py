"""A network on one condition at times that are known beforehand, which is what a plan asks of it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Answer = Callable[[Tensor, int], Tensor]
"""``(sample [B, H, input_dim], number of the time) -> [B, H, output_dim]``."""


def at_times(network: Any, times: Tensor, condition: Tensor) -> Answer:
    """The network as a function of the sample and the number of a time alone.

    What does not depend on the sample is computed here, once, where the network has a method ``plan(times, condition) -> Answer``; its
    answers are those of the network within rounding. The network itself is called where it is trained, compiled, or not as it was
    built (adapters in the place of its layers, hooks on them).

    Args:
        network: a network, or a function in the place of one.
        times: ``[T]``.
        condition: ``[B, To, C]``.
    """
    if hasattr(network, "plan") and not network.training and as_built(network):
        return network.plan(times, condition)
    return lambda sample, number: network(sample, times[number].expand(len(sample)), condition)


def as_built(network: nn.Module) -> bool:
    """Whether every layer is torch's own or this package's, and nothing looks in when it is called."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or not type(module).__module__.startswith(("torch.nn.modules.", "dopr_robot."))
        for module in network.modules()
    )

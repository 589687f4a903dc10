"""Optimizers that step along a sign: Signum and Lion."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dopr_robot.optim.checks import check_hyperparameters
from dopr_robot.optim.untraced import Uncompiled


class Signum(Uncompiled):
    r"""Signum: the sign of the momentum, with decoupled weight decay.

        m ← β m + (1 − β) g
        w ← (1 − η λ) w − η sign(m)

    Source: Bernstein et al., "signSGD: Compressed optimisation for non-convex problems", 2018, algorithm 2.

    Args:
        params: parameters or groups.
        lr: every entry moves by this much. ``lr=0.0001``: a tenth of Adam's (Chen et al., 2023, section 5, for the other sign method).
        momentum: beta. ``momentum=0.9`` is Bernstein et al.'s.
        weight_decay: lambda. ``weight_decay=0.0``: none, as in the paper.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-4, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        check_hyperparameters(lr=lr, weight_decay=weight_decay, momentum=momentum)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            parameters, gradients, averages = _gather(self, group)
            if not parameters:
                continue
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            _move(parameters, torch._foreach_sign(averages), group)
        return loss


class Lion(Uncompiled):
    r"""Lion: the sign of an interpolation between momentum and gradient, with decoupled weight decay.

        c = β₁ m + (1 − β₁) g
        w ← (1 − η λ) w − η sign(c)
        m ← β₂ m + (1 − β₂) g

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2.

    Args:
        params: parameters or groups.
        lr: every entry moves by this much; a third to a tenth of AdamW's. ``lr=0.0001`` is Chen et al.'s (algorithm 2).
        betas: beta_1 and beta_2. ``betas=(0.9, 0.99)`` are theirs.
        weight_decay: lambda; three to ten times AdamW's. ``weight_decay=0.0``: none unless asked for.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        check_hyperparameters(lr=lr, weight_decay=weight_decay, beta1=betas[0], beta2=betas[1])
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            parameters, gradients, averages = _gather(self, group)
            if not parameters:
                continue
            beta1, beta2 = group["betas"]
            mixtures = torch._foreach_lerp(averages, gradients, 1 - beta1)
            _move(parameters, torch._foreach_sign(mixtures), group)
            torch._foreach_lerp_(averages, gradients, 1 - beta2)
        return loss


def _evaluate(closure: Callable[[], Tensor] | None) -> Tensor | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _gather(optimizer: Optimizer, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Parameters with a gradient, their gradients and their running averages."""
    parameters = [p for p in group["params"] if p.grad is not None]
    for p in parameters:
        if "exp_avg" not in optimizer.state[p]:
            optimizer.state[p]["exp_avg"] = torch.zeros_like(p)
    return parameters, [p.grad for p in parameters], [optimizer.state[p]["exp_avg"] for p in parameters]


def _move(parameters: list[Tensor], directions: list[Tensor] | tuple[Tensor, ...], group: dict[str, Any]) -> None:
    torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(parameters, directions, alpha=-group["lr"])

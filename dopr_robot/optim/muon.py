"""Muon and AdaMuon for matrices, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

from dopr_robot.optim.checks import check_hyperparameters

# Quintic Newton-Schulz: the slope at zero is as large as it gets while singular values end between 0.7 and 1.2.
# Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(matrix: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Nearly the nearest semi-orthogonal matrix to each of ``[..., rows, columns]``.

    ``dtype`` is that of the iteration; None: bfloat16 on CUDA, float32 elsewhere, where bfloat16 has no fast multiplication (a step of
    ``torch.optim.Muon`` takes minutes on most CPUs).
    """
    if dtype is None:
        dtype = torch.bfloat16 if matrix.is_cuda else torch.float32
    x = matrix.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    r"""Muon for groups with ``use_muon=True``, AdamW for the others.

    A weight of shape ``[out, ...]`` is taken as the matrix ``[out, rest]``, so that convolutions can take part.

    .. math::
        m \leftarrow \mu m + (1-\mu) g, \quad
        O = \operatorname{NewtonSchulz}((1-\mu) g + \mu m), \quad
        w \leftarrow (1-\eta\lambda) w - 0.2\,\eta \sqrt{\max(\text{out}, \text{rest})}\, O

    The factor makes an update as large as AdamW's, so that one learning rate and one weight decay serve both kinds of group.
    Sources: Jordan et al. 2024 (Muon); Liu et al., "Muon is Scalable for LLM Training", 2025, equation 4 (the factor). Equal to
    ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, which takes 2-D weights only.

    Args:
        params: parameters or groups; a group says ``use_muon`` or gets ``use_muon=True``.
        lr: learning rate of both kinds.
        weight_decay: lambda of both kinds, decoupled.
        momentum: mu.
        nesterov: orthogonalise (1-mu) g + mu m rather than m.
        ns_steps: Newton-Schulz iterations.
        ns_dtype: their dtype, see :func:`newton_schulz`.
        betas, eps: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: torch.dtype | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        check_hyperparameters(lr=lr, weight_decay=weight_decay, momentum=momentum, beta1=betas[0], beta2=betas[1])
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
        }
        super().__init__(params, {**defaults, "betas": betas, "eps": eps, "use_muon": True})
        self.ns_dtype = ns_dtype

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Raises ValueError for vectors in a group of matrices."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        vectors = [tuple(p.shape) for p in group["params"] if p.dim() < 2]
        if group["use_muon"] and vectors:
            raise ValueError(
                f"Muon takes matrices, but {len(vectors)} parameters are none (shape {vectors[0]}): use_muon=False for them"
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["use_muon"]:
                for parameter in parameters:
                    self._muon_step(parameter, group)
            else:
                self._adamw_step(parameters, group)
        return loss

    def _muon_step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient, momentum = self.state[parameter], parameter.grad, group["momentum"]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum) if group["nesterov"] else average
        direction = self.direction(update.flatten(1), state, group).to(parameter.dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(direction.view_as(parameter), alpha=-group["lr"])

    def direction(self, update: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The step of a matrix ``[out, rest]`` at learning rate 1, from its averaged gradient."""
        orthogonal = newton_schulz(update, group["ns_steps"], self.ns_dtype)
        return orthogonal * (0.2 * max(update.shape) ** 0.5)

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        adam(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            decoupled_weight_decay=True,
        )


class AdaMuon(Muon):
    r"""AdaMuon for groups with ``use_muon=True``, AdamW for the others.

    .. math::
        m \leftarrow \mu m + g, \quad O = \operatorname{NewtonSchulz}(\operatorname{sign} m), \quad
        v \leftarrow \mu v + (1-\mu)\,O \odot O, \quad \hat O = O / (\sqrt v + \epsilon), \quad
        w \leftarrow (1-\eta\lambda) w - 0.2\,\eta \frac{\sqrt{\text{out} \cdot \text{rest}}}{\lVert \hat O \rVert_F}\,\hat O

    Source: Si, Zhang & Shen, "AdaMuon: Adaptive Muon Optimizer", arXiv 2507.11005, algorithm 1. Arguments as for :class:`Muon`.
    """

    def direction(self, update: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """The step of a matrix ``[out, rest]`` at learning rate 1, from its averaged gradient."""
        orthogonal = newton_schulz(update.sign(), group["ns_steps"], self.ns_dtype).float()
        if "orthogonal_sq" not in state:
            state["orthogonal_sq"] = torch.zeros_like(orthogonal)
        square = (
            state["orthogonal_sq"].mul_(group["momentum"]).addcmul_(orthogonal, orthogonal, value=1 - group["momentum"])
        )
        scaled = orthogonal / (square.sqrt() + group["eps"])
        return scaled * (0.2 * scaled.numel() ** 0.5 / scaled.norm().clamp_min(1e-30))

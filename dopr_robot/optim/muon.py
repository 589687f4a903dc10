"""Muon and AdaMuon for matrices, AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from dopr_robot.optim.checks import check_hyperparameters
from dopr_robot.optim.untraced import Uncompiled

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
    with torch.autocast(x.device.type, enabled=False):
        for _ in range(steps):
            gram = x @ x.mT
            x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


ADJUST_LR = ("original", "match_rms_adamw")
_PARTS = {"parts": 1, "transposed": False}
_BATCH = 2**24  # entries that are orthogonalised at once: 64 MiB


class Muon(Uncompiled):
    r"""Muon for groups with ``use_muon=True``, AdamW for the others.

    A weight of shape ``[out, ...]`` is taken as the matrix ``[out, rest]``, so that convolutions can take part. Matrices of one shape are
    orthogonalised in one batch.

        m ← μ m + (1 − μ) g
        O = NewtonSchulz((1 − μ) g + μ m)
        w ← (1 − η λ) w − η s O

    Sources: Jordan et al. 2024 (Muon); Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, equation 4 (the factor s of
    ``"match_rms_adamw"``). Equal to ``torch.optim.Muon``, which takes 2-D weights only, under either of its conventions. After activation
    preconditioning with an averaged S (``make_optimizer("dopr_muon", model, form="average")``) it is Newton-Muon, arXiv 2604.01472.

    Args:
        params: parameters or groups. A group says ``use_muon`` or gets ``use_muon=True``; ``parts=k`` where each weight holds k matrices of
            equal height on top of one another (gates, packed query, key and value; in a weight ``[k, out, in]`` side by side), each of
            which is orthogonalised by itself; ``transposed=True`` where rows are inputs (Hugging Face's ``Conv1D``, transposed
            convolutions). :func:`~dopr_robot.optim.muon_roles` finds all three for a model.
        lr: learning rate of both kinds. ``lr=0.001`` is torch's.
        weight_decay: lambda of both kinds, decoupled. ``weight_decay=0.0``: none unless asked for.
        momentum: mu. ``momentum=0.95`` is Jordan's.
        nesterov: orthogonalise (1-mu) g + mu m rather than m. ``nesterov=True`` is Jordan's.
        ns_steps: Newton-Schulz iterations. ``ns_steps=5`` are Jordan's.
        ns_dtype: their dtype, see :func:`newton_schulz`. ``ns_dtype=None``: bfloat16 on CUDA (Jordan), float32 elsewhere.
        betas, eps: of AdamW. ``betas=(0.9, 0.999)``, ``eps=1e-08`` are Kingma and Ba's.
        adjust_lr_fn: the factor s, by its name in ``torch.optim.Muon``. ``adjust_lr_fn="match_rms_adamw"``: 0.2 sqrt(max(out, rest)), so
            that an update is as large as AdamW's, and one learning rate and one weight decay serve both kinds of group (Liu et al., 2025;
            torch's default is the other). ``"original"``: sqrt(max(1, out / rest)), Jordan's.

    Raises:
        ValueError: for a value out of range, and for vectors in a group of matrices.
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
        adjust_lr_fn: str = "match_rms_adamw",
    ) -> None:
        check_hyperparameters(lr=lr, weight_decay=weight_decay, momentum=momentum, beta1=betas[0], beta2=betas[1])
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, {**defaults, "betas": betas, "eps": eps, "use_muon": True, **_PARTS})
        self.ns_dtype = ns_dtype

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Raises ValueError for vectors in a group of matrices, or an unknown ``adjust_lr_fn``."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["adjust_lr_fn"] not in ADJUST_LR:
            raise ValueError(f"adjust_lr_fn={group['adjust_lr_fn']!r} must be one of {', '.join(ADJUST_LR)}")
        if not group["use_muon"]:
            return
        vectors = [tuple(p.shape) for p in group["params"] if p.dim() < 2]
        if vectors:
            raise ValueError(
                f"Muon takes matrices, but {len(vectors)} parameters are none (shape {vectors[0]}): use_muon=False for them"
            )
        for parameter in group["params"]:
            height = parameter.shape[-1 if group["transposed"] else 0]
            if height % group["parts"]:
                raise ValueError(
                    f"parts={group['parts']}: a weight of shape {tuple(parameter.shape)} is not so many matrices of equal height"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of a state from before these options
            for key, value in {"adjust_lr_fn": "match_rms_adamw", **_PARTS}.items():
                group.setdefault(key, value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state. Raises ValueError where other weights than here went to Muon."""
        theirs, ours = (
            [(len(group["params"]), group.get("use_muon")) for group in groups]
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        if theirs != ours and sum(n for n, _ in theirs) == sum(n for n, _ in ours):
            raise ValueError(
                "the state was saved under another division between Muon and AdamW: hidden='order' in make_optimizer is that of former "
                "releases"
            )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            if group["use_muon"]:
                self._muon_step(parameters, group)
            else:
                self._adamw_step(parameters, group)
        return loss

    def _muon_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        for state, gradient in zip(states, gradients, strict=True):
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
        averages = [state["momentum_buffer"] for state in states]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        updates = averages
        if group["nesterov"]:
            updates = list(torch._foreach_lerp(gradients, averages, group["momentum"]))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for places in _alike(parameters):
            matrices = torch.cat([_matrices(updates[n], group) for n in places])
            directions = self.directions(matrices, [states[n] for n in places], group)
            for n, direction in zip(places, directions.split(len(matrices) // len(places)), strict=True):
                parameters[n].add_(_weight(direction, parameters[n], group), alpha=-group["lr"])

    def directions(self, updates: Tensor, states: list[dict[str, Any]], group: dict[str, Any]) -> Tensor:
        """The steps of matrices ``[n, out, rest]`` at learning rate 1, from averaged gradients; equally many of each state's weight."""
        return newton_schulz(updates, group["ns_steps"], self.ns_dtype).to(updates.dtype).mul_(_factor(updates, group))

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
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


def _alike(parameters: list[Tensor]) -> Iterator[list[int]]:
    """Places of parameters of one shape, dtype and device, of at most ``_BATCH`` entries together."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for n, parameter in enumerate(parameters):
        found.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(n)
    for places in found.values():
        number = max(1, _BATCH // parameters[places[0]].numel())
        yield from (places[start : start + number] for start in range(0, len(places), number))


def _matrices(weight: Tensor, group: dict[str, Any]) -> Tensor:
    """A weight as the matrices ``[parts, out, rest]`` that it holds."""
    if weight.dim() == 3 and weight.shape[0] == group["parts"] > 1:
        return weight
    matrix = weight.flatten(1)
    return (matrix.mT if group["transposed"] else matrix).unflatten(0, (group["parts"], -1))


def _weight(matrices: Tensor, weight: Tensor, group: dict[str, Any]) -> Tensor:
    """The inverse of :func:`_matrices`, in the shape of ``weight``."""
    matrix = matrices.flatten(0, 1)
    return (matrix.mT if group["transposed"] else matrix).reshape(weight.shape)


def _factor(matrices: Tensor, group: dict[str, Any]) -> float:
    """What an orthogonal matrix ``[out, rest]`` is multiplied by, see ``adjust_lr_fn``."""
    rows, columns = matrices.shape[-2:]
    if group["adjust_lr_fn"] == "original":
        return max(1.0, rows / columns) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5


class AdaMuon(Muon):
    r"""AdaMuon for groups with ``use_muon=True``, AdamW for the others.

        m ← μ m + g
        O = NewtonSchulz(sign m)
        v ← μ v + (1 − μ) O ⊙ O
        Ô = O / (√v + ε)
        w ← (1 − η λ) w − 0.2 η √(out · rest) / ‖Ô‖_F · Ô

    Source: Si, Zhang & Shen, "AdaMuon: Adaptive Muon Optimizer", arXiv 2507.11005, algorithm 1. Arguments as for :class:`Muon`; under
    ``adjust_lr_fn="original"`` an update is as long as Muon's under that name.
    """

    def directions(self, updates: Tensor, states: list[dict[str, Any]], group: dict[str, Any]) -> Tensor:
        """See :meth:`Muon.directions`."""
        orthogonal = newton_schulz(updates.sign(), group["ns_steps"], self.ns_dtype).float()
        each = orthogonal.split(len(orthogonal) // len(states))
        for state, part in zip(states, each, strict=True):
            square, flat = state.get("orthogonal_sq"), part.flatten(0, 1)
            # A loaded state comes in the weight's dtype.
            square = torch.zeros_like(flat) if square is None else square.to(flat.dtype)
            state["orthogonal_sq"] = square.lerp_(flat.square(), 1 - group["momentum"])
        squares = torch.cat([state["orthogonal_sq"].view_as(part) for state, part in zip(states, each, strict=True)])
        scaled = orthogonal / (squares.sqrt() + group["eps"])
        length = _factor(updates, group) * min(updates.shape[-2:]) ** 0.5  # of an orthogonal matrix, times the factor
        return scaled.mul_(length / scaled.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30)).to(updates.dtype)

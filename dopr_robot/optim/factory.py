"""Optimizers by name."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dopr_robot.optim.coverage import find_factors
from dopr_robot.optim.dopr import DoPr
from dopr_robot.optim.muon import AdaMuon, Muon
from dopr_robot.optim.preconditioner import ActivationPreconditioner
from dopr_robot.optim.signs import Lion, Signum

Groups = list[dict[str, Any]]

_BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
    "signum": Signum,
    "adamuon": AdaMuon,
    "lion": Lion,
}
_DOPR_OPTIONS = frozenset(inspect.signature(ActivationPreconditioner).parameters) - {"model", "parameters"}


def optimizer_names() -> list[str]:
    """The names that :func:`make_optimizer` takes: the bases, and each as ``dopr_<base>``."""
    return [*_BASES, *(f"dopr_{name}" for name in _BASES)]


def make_optimizer(name: str, model: nn.Module, *, lr: float, weight_decay: float = 0.0, **options: Any) -> Optimizer:
    """The optimizer ``name`` over ``model``'s parameters that want a gradient.

    Matrices decay, vectors (norms' scales, biases) do not. Muon and AdaMuon take the hidden matrices, see :func:`parameter_groups`.

    Args:
        name: one of :func:`optimizer_names`.
        model: the model to train.
        lr: learning rate.
        weight_decay: decoupled, except for ``sgd`` and ``adam``, where it is torch's L2 term.
        **options: of the base (``betas``, ``momentum``, ...), and for ``dopr_<base>`` of :class:`ActivationPreconditioner`.

    Raises:
        ValueError: for an unknown name or option.
    """
    base_name = name.removeprefix("dopr_")
    if base_name not in _BASES or name not in optimizer_names():
        raise ValueError(f"unknown optimizer {name!r}: choose from {', '.join(optimizer_names())}")
    make = _BASES[base_name]
    known = set(inspect.signature(make).parameters) - {"params"}
    preconditioning = {key: options.pop(key) for key in list(options) if name != base_name and key in _DOPR_OPTIONS}
    unknown = set(options) - known
    if unknown:
        choices = known | (_DOPR_OPTIONS if name != base_name else set())
        raise ValueError(f"{name} has no option {sorted(unknown)[0]!r}: choose from {', '.join(sorted(choices))}")
    base = make(parameter_groups(model, weight_decay, split_matrices=make in (Muon, AdaMuon)), lr=lr, **options)
    return base if name == base_name else DoPr(base, model, **preconditioning)


def parameter_groups(model: nn.Module, weight_decay: float, *, split_matrices: bool = False) -> Groups:
    """Groups of the parameters that want a gradient: matrices with weight decay, vectors without.

    With ``split_matrices`` the hidden matrices (weights of linear layers, convolutions and attention, except of embeddings and of the
    layer that is last in the model) make a group ``use_muon=True`` of their own, and the others say ``use_muon=False``.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = _hidden_matrices(model) if split_matrices else set()
    groups: Groups = []
    for matrices, decay in ((True, weight_decay), (False, 0.0)):
        for use_muon in (True, False):
            chosen = [p for name, p in parameters.items() if (p.dim() > 1) == matrices and (name in hidden) == use_muon]
            if chosen:
                groups.append(
                    {"params": chosen, "weight_decay": decay} | ({"use_muon": use_muon} if split_matrices else {})
                )
    return groups


def _hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the matrices that are neither an embedding nor the output layer: a table that is both, or the model's last matrix."""
    factors, _ = find_factors(model, conv="sua", include_bias=False)
    hidden = [factor.name for factor in factors if factor.diagonal is None]
    tied_output = any(factor.diagonal is not None and factor.matrix is not None for factor in factors)
    return set(hidden if tied_output else hidden[:-1])

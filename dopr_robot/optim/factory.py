"""Optimizers by name."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from dopr_robot.optim.coverage import plain_name
from dopr_robot.optim.dopr import DoPr
from dopr_robot.optim.muon import AdaMuon, Muon
from dopr_robot.optim.packaged import PACKAGED
from dopr_robot.optim.preconditioner import ActivationPreconditioner
from dopr_robot.optim.roles import muon_roles
from dopr_robot.optim.signs import Lion, Signum
from dopr_robot.optim.untraced import SGD, Adam, AdamW

Groups = list[dict[str, Any]]

_BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "muon": Muon,
    "signum": Signum,
    "adamuon": AdaMuon,
    "lion": Lion,
    **PACKAGED,
}
_SPLIT = (Muon, AdaMuon)  # which take some weights only, and leave the others to AdamW
_DOPR_OPTIONS = frozenset(inspect.signature(ActivationPreconditioner).parameters) - {"model", "parameters"}

# Where a search for the learning rate of a base begins: the customary values for networks of this size, Adam's and Muon's as in
# their papers' small runs, those of the sign methods about ten times below Adam's (Chen et al., 2023, section 5).
_LEARNING_RATES = {"sgd": 0.1, "adam": 3e-4, "adamw": 3e-4, "muon": 1e-3, "signum": 1e-4, "adamuon": 1e-3, "lion": 1e-4}
_LEARNING_RATES |= {name: inspect.signature(make).parameters["lr"].default for name, make in PACKAGED.items()}
# What torch offers for how a step is computed rather than for what it is.
_IMPLEMENTATION = frozenset(
    {"params", "foreach", "maximize", "capturable", "differentiable", "fused", "amsgrad", "dampening"}
)


def optimizer_names() -> list[str]:
    """The names that :func:`make_optimizer` takes: the bases, and each as ``dopr_<base>``."""
    return [*_BASES, *(f"dopr_{name}" for name in _BASES)]


def optimizer_options(name: str) -> dict[str, Any]:
    """Every plain option of ``make_optimizer(name, ...)`` with its default, for configuration files.

    >>> optimizer_options("dopr_adamw")["damping"]
    1.0
    """
    base_name = _base_of(name)
    sources: list[Callable[..., Any]] = [_BASES[base_name]]
    if name != base_name:
        sources.append(ActivationPreconditioner)
    options: dict[str, Any] = {"lr": _LEARNING_RATES[base_name], "weight_decay": 0.0}
    if _BASES[base_name] in _SPLIT:
        options["hidden"] = "roles"
    for source in sources:
        for key, parameter in inspect.signature(source).parameters.items():
            default = parameter.default
            if key in _IMPLEMENTATION or key in options or default is inspect.Parameter.empty:
                continue
            if default is None or isinstance(default, bool | int | float | str | tuple):
                options[key] = list(default) if isinstance(default, tuple) else default
    return {key: value for key, value in options.items() if key not in ("model", "parameters", "process_group")}


def saved_options(options: dict[str, Any]) -> dict[str, Any]:
    """A saved configuration's ``{"name": ..., option: ...}`` under today's options: before there was ``form``, ``rank`` said whether the
    inverse of the averaged S was whole; before there was ``hidden``, the order of the layers said which matrices were.

    >>> saved_options({"name": "dopr_adamw", "rank": None})["form"]
    'average'
    """
    if str(options.get("name")).removeprefix("dopr_") in ("muon", "adamuon"):
        options = {"hidden": "order", **options}
    if not str(options.get("name")).startswith("dopr_") or "form" in options:
        return options
    rank = options.get("rank", "auto")
    whole = rank is None or (rank == "auto" and options.get("update_every") == 1)
    return {**options, "form": "average" if whole else "low_rank", "rank": rank or "auto"}


def make_optimizer(
    name: str,
    model: nn.Module | Iterable[Any],
    *,
    lr: float | None = None,
    weight_decay: float = 0.0,
    hidden: str | Sequence[str] = "roles",
    **options: Any,
) -> Optimizer:
    """The optimizer ``name`` over ``model``'s parameters that want a gradient.

    Matrices decay, vectors (norms' scales, biases) do not. Muon and AdaMuon take the hidden matrices: ``print(muon_roles(model))``;
    ``dopr_muon`` with ``form="average"`` is Newton-Muon (arXiv 2604.01472). ``soap``, ``shampoo`` and ``schedulefree_adamw`` are the
    package pytorch_optimizer's.

    Args:
        name: one of :func:`optimizer_names`.
        model: the model to train; or its parameters, ``(name, parameter)`` pairs, or param groups, as torch's optimizers take them. Then
            groups keep their own options, and preconditioning finds the uses of weights in the modules that run.
        lr: learning rate; None: where a search for the base's begins, see :func:`optimizer_options`.
        weight_decay: decoupled, except for ``sgd`` and ``adam``, where it is torch's L2 term.
        hidden: which matrices Muon and AdaMuon take: ``"roles"``, ``"order"`` or glob patterns of names, see :func:`muon_roles`.
        **options: of the base (``betas``, ``momentum``, ...), and for ``dopr_<base>`` of :class:`ActivationPreconditioner`.

    Raises:
        ValueError: for an unknown name or option, a package that is not installed, or parameters alone for Muon, which is told by the
            model which matrices are hidden.
    """
    base, whole, preconditioning = _parts(name, model, lr, weight_decay, options, hidden)
    return DoPr(base, whole, **preconditioning) if name.startswith("dopr_") else base


class DoPrAdamW(DoPr):
    """``make_optimizer("dopr_adamw", params, ...)`` as a class, for trainers that ask for one, like Hugging Face's."""

    def __init__(self, params: Any, lr: float | None = None, weight_decay: float = 0.0, **options: Any) -> None:
        base, model, preconditioning = _parts("dopr_adamw", params, lr, weight_decay, options)
        super().__init__(base, model, **preconditioning)


def _parts(
    name: str,
    model: nn.Module | Iterable[Any],
    lr: float | None,
    weight_decay: float,
    options: dict[str, Any],
    hidden: str | Sequence[str] = "roles",
) -> tuple[Optimizer, nn.Module | None, dict[str, Any]]:
    """The base, the model where it is known, and the options of the preconditioning."""
    base_name = _base_of(name)
    make = _BASES[base_name]
    known = set(inspect.signature(make).parameters) - {"params"}
    preconditioning = {key: options.pop(key) for key in list(options) if name != base_name and key in _DOPR_OPTIONS}
    unknown = set(options) - known
    if unknown:
        choices = known | (_DOPR_OPTIONS if name != base_name else set())
        raise ValueError(f"{name} has no option {sorted(unknown)[0]!r}: choose from {', '.join(sorted(choices))}")
    split, whole = make in _SPLIT, model if isinstance(model, nn.Module) else None
    if hidden != "roles" and not split:
        raise ValueError(f"{name} has no option 'hidden': it is Muon's")
    if whole is not None:
        groups = parameter_groups(whole, weight_decay, split_matrices=split, hidden=hidden)
    else:
        groups = _given_groups(model, weight_decay)
        if split and not all("use_muon" in group for group in groups):
            raise ValueError(
                f"{name} can not tell hidden matrices from parameters alone: give the model, or groups with use_muon"
            )
    base = make(groups, lr=_LEARNING_RATES[base_name] if lr is None else lr, **options)
    return base, whole, preconditioning


def _given_groups(given: Any, weight_decay: float) -> Groups:
    """Param groups as they are, with the weight decay where they say none; parameters by whether they are matrices, with their names."""
    entries: list[Any] = (
        [given] if isinstance(given, Tensor) else list(given.items() if isinstance(given, dict) else given)
    )
    if all(isinstance(entry, dict) for entry in entries):
        return [{"weight_decay": weight_decay, **group} for group in entries]
    if any(isinstance(entry, dict) for entry in entries):
        raise ValueError("give parameters or param groups, not both in one list")
    parameters = [(entry[1] if isinstance(entry, tuple) else entry, entry) for entry in entries]
    if odd := next((p for p, _ in parameters if not isinstance(p, Tensor)), None):
        raise TypeError(
            f"a {type(odd).__name__} is no parameter: give parameters, (name, parameter) pairs or param groups of one optimizer"
        )
    groups = [
        {
            "params": [entry for p, entry in parameters if p.requires_grad and (p.dim() > 1) == matrices],
            "weight_decay": decay,
        }
        for matrices, decay in ((True, weight_decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _base_of(name: str) -> str:
    if name not in optimizer_names():
        raise ValueError(f"unknown optimizer {name!r}: choose from {', '.join(optimizer_names())}")
    return name.removeprefix("dopr_")


def parameter_groups(
    model: nn.Module, weight_decay: float, *, split_matrices: bool = False, hidden: str | Sequence[str] = "roles"
) -> Groups:
    """Groups of the parameters that want a gradient: matrices with weight decay, vectors without.

    With ``split_matrices`` the hidden matrices, see :func:`muon_roles` (``print`` it), make groups ``use_muon=True`` of their own, and the
    others say ``use_muon=False``. Raises ValueError for a pattern in ``hidden`` that matches no matrix.
    """
    parameters = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    if not split_matrices:
        split = ([p for p in parameters.values() if (p.dim() > 1) == matrices] for matrices in (True, False))
        return [
            {"params": chosen, "weight_decay": decay}
            for chosen, decay in zip(split, (weight_decay, 0.0), strict=True)
            if chosen
        ]
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(muon_roles(model, hidden), key=lambda row: (len(row.shape) < 2, not row.muon)):
        kind = {"weight_decay": weight_decay if len(row.shape) > 1 else 0.0, "use_muon": row.muon}
        if row.muon and (row.parts > 1 or row.transposed):
            kind |= {"parts": row.parts, "transposed": row.transposed}
        key = (len(row.shape) < 2, *kind.items())
        groups.setdefault(key, {"params": [], **kind})["params"].append(parameters[row.name])
    return list(groups.values())

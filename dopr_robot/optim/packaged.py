"""Optimizers of the package pytorch_optimizer, which is imported when one is made.

Their signatures stand here, so that they can be listed without the package and keep their defaults whatever its release says.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch.optim import Optimizer

PACKAGE = "pytorch_optimizer"


def soap(
    params: Iterable[Any],
    lr: float = 3e-4,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    shampoo_beta: float | None = None,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10_000,
    merge_dims: bool = False,
    precondition_1d: bool = False,
    correct_bias: bool = True,
    normalize_gradient: bool = False,
) -> Optimizer:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner, with decoupled weight decay. The first step only looks.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024 (arXiv 2409.11321), whose defaults these are where no
    other source is named.

    Args:
        params: parameters or groups.
        lr: learning rate. Its steps are Adam's, in another basis: ``lr=0.0003`` as for Adam here.
        betas: of the two moments in the eigenbasis.
        eps: keeps the denominator from 0.
        weight_decay: decoupled.
        shampoo_beta: of the averages whose eigenvectors make the basis; None: the second of ``betas``.
        precondition_frequency: steps from one basis to the next.
        max_precondition_dim: a larger dimension keeps its own basis.
        merge_dims: small dimensions of a kernel make one.
        precondition_1d: vectors have a basis too.
        correct_bias: of the moments, as in Adam.
        normalize_gradient: every weight's step has root mean square 1.
    """
    return _made("SOAP", params, **_without(locals(), "params"))


def shampoo(
    params: Iterable[Any],
    lr: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    preconditioning_compute_steps: int = 1,
    matrix_eps: float = 1e-6,
) -> Optimizer:
    """Shampoo: gradients times roots of the inverses of their summed second moments along each dimension, with decoupled weight decay.

    Source: Gupta et al., "Shampoo: Preconditioned Stochastic Tensor Optimization", 2018 (arXiv 1802.09568), algorithm 1; without blocks and
    grafting. It is dear: a singular value decomposition of every side of every weight.

    Args:
        params: parameters or groups.
        lr: learning rate. ``lr=0.01``: thirty times Adam's here, which was the ratio of their best rates in a small regression.
        momentum: share of the last step's direction. ``momentum=0.0``, the package's.
        weight_decay: decoupled.
        preconditioning_compute_steps: steps from one root to the next; nothing moves before the first, so 1 is the paper's algorithm.
        matrix_eps: what the sums begin with, times the identity. ``matrix_eps=1e-06``, the package's.
    """
    return _made("Shampoo", params, **_without(locals(), "params"), weight_decouple=True)


def schedulefree_adamw(
    params: Iterable[Any],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
) -> Optimizer:
    """Schedule-free AdamW: gradients are taken between the iterates and their average, and the average is what is used.

    Source: Defazio et al., "The Road Less Scheduled", 2024 (arXiv 2405.15682), whose defaults these are. In a loop of your own the weights
    are the average's between ``optimizer.eval()`` and ``optimizer.train()`` alone (of ``dopr_schedulefree_adamw``: ``optimizer.base``'s).

    Args:
        params: parameters or groups.
        lr: learning rate after the warm-up; it does not fall. ``lr=0.001``: one to ten times AdamW's, say its authors.
        betas: the average's share in where gradients are taken, and the decay of the second moment.
        eps: keeps the denominator from 0.
        weight_decay: decoupled.
        r: an iterate's weight in the average grows with this power of the step.
        weight_lr_power: and with this power of the largest learning rate so far.
    """
    return _made("ScheduleFreeAdamW", params, **_without(locals(), "params"))


PACKAGED: dict[str, Callable[..., Optimizer]] = {
    "soap": soap,
    "shampoo": shampoo,
    "schedulefree_adamw": schedulefree_adamw,
}


def missing_package(name: str) -> str | None:
    """The package that ``make_optimizer(name, ...)`` would not find; None where it needs none or has it."""
    needed = name.removeprefix("dopr_") in PACKAGED
    return PACKAGE if needed and find_spec(PACKAGE) is None else None


def schedule_free(optimizer: Optimizer) -> Any:
    """The schedule-free optimizer, with ``eval()`` and ``train()``, that this one is or steps with; None where there is none."""
    base: Any = getattr(optimizer, "base", optimizer)
    return base if "train_mode" in base.defaults else None


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def _made(name: str, params: Iterable[Any], **options: Any) -> Optimizer:
    try:
        package = import_module(PACKAGE)
    except ModuleNotFoundError:
        raise ValueError(f"{name} is {PACKAGE}'s, which is not installed: pip install '{PACKAGE}>=4.1'") from None
    optimizer: Optimizer = getattr(package, name)(params, **options)
    return optimizer

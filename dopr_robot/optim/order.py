"""Whether a step comes when it may: after a forward and a backward, on gradients that were not preconditioned before."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.sharding import local
from dopr_robot.optim.sources import Parameters

if TYPE_CHECKING:
    from dopr_robot.optim.preconditioner import ActivationPreconditioner

REPLACED = (
    "the model's weights were replaced after the optimizer was made (another layer, to_empty, load_state_dict(assign=True), "
    "parallelize_module)"
)


def check_order(owner: "ActivationPreconditioner", active: Sequence[Factor], gradients: Sequence[Tensor]) -> bool:
    """Whether there is something to precondition. False for the dry step on zero gradients, before any forward, by which
    torch.distributed.checkpoint has an optimizer make its state: zero stays zero, whatever S is.

    Raises:
        RuntimeError: where the step would train wrongly, or nothing.
    """
    if not any(factor.weight.grad is not None for factor in owner.factors) and _replaced(owner):
        raise RuntimeError(f"{REPLACED}: make the base and DoPr after that")
    if not gradients:
        raise RuntimeError("no gradient to precondition: run the model, then loss.backward(), before step()")
    mine = [factor.weight.grad for factor in active if factor.weight.grad is not None]
    if not mine and owner.factors:
        return True  # a step of parameters that are left to the base alone
    if mine and all(is_preconditioned(gradient) for gradient in mine):
        raise RuntimeError(
            "the gradients are those of the last step, preconditioned already: zero them, then run forward and backward "
            "(inside the closure, where there is one) before step()"
        )
    if not any(factor.seen or factor.ready for factor in active):
        if not any(bool(gradient.any()) for gradient in gradients):
            return False
        if not owner.factors and next(iter(owner.model.modules()), None) is not None:
            raise RuntimeError(owner.nothing_found())
        raise RuntimeError(
            "gradients without a forward: no layer has seen an input that a gradient came back for. Are they of another copy of the "
            "model, or was it run, or compiled and run (torch.compiler.reset() then), before this optimizer was made?"
        )
    if owner.step % 100 == 1 and (gone := _replaced(owner)):
        owner.warn(f"{REPLACED}, of {len(gone)} layers ({', '.join(gone[:3])}): they are not preconditioned")
    unseen = [f.name for f in active if f.weight.grad is not None and not f.seen and f.refreshed < 0]
    if unseen:
        owner.warn(
            f"{len(unseen)} weights got a gradient but their layers saw no input ({', '.join(unseen[:3])}): they are left to the base "
            "optimizer. Is the weight used without calling its module?"
        )
    return True


def is_preconditioned(gradient: Tensor | None) -> bool:
    """Whether a gradient is as a step of ours left it."""
    if gradient is None:
        return False
    gradient = local(gradient)
    return bool(getattr(gradient, "_preconditioned_at", -1) == gradient._version)


def mark_preconditioned(gradient: Tensor | None) -> None:
    """Remember it of a gradient until it is written to again."""
    if gradient is not None:
        gradient = local(gradient)  # what backward adds to; of a sharded one, the tensor around it notices nothing
        gradient._preconditioned_at = gradient._version  # type: ignore[attr-defined]


def _replaced(owner: "ActivationPreconditioner") -> list[str]:
    """Names of the weights that are not in the model any more."""
    if isinstance(owner.model, Parameters):
        return []
    here = set(owner.model.parameters())
    return [factor.name for factor in owner.factors if factor.weight not in here]

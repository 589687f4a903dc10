"""M in place of G by autograd itself, where the backward of a layer needs no product more for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim.batch import BatchInverse
from dopr_robot.optim.capture import Call, Hook, Recorder, made_as
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.groups import Groups
from dopr_robot.optim.layers import Layer, TransposedLinear


class _Substitute(torch.autograd.Function):
    r"""A layer's output as it is, whose backward gives the weight the gradient.

    With Z ``[n, d]`` the inputs and D ``[n, out]`` the output's gradient, autograd would form :math:`G = D^\top Z`. The dual form is
    :math:`M = \tilde D^\top Z` with :math:`\tilde D = n (Z Z^\top + n \lambda I)^{-1} D`: the same product. What is given to
    ``weight.grad`` is M scaled to the length of G, so that clipping by the norm and loss scales do what they would do to G.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, weight: Tensor, x: Tensor, mask: Tensor | None, call: Call, groups: Groups
    ) -> Tensor:
        ctx.mark_dirty(output)
        ctx.save_for_backward(x)
        ctx.mask, ctx.call, ctx.groups = mask, call, groups
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        call: Call = ctx.call
        made = gradient.flatten(0, -2).t() @ x.flatten(0, -2).to(gradient.dtype) if torch.is_grad_enabled() else None
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            call.streams = [(x.detach(), ctx.mask)]
            call.factor.record(call, gradient.detach())
            call.streams = []
            if made is None:
                damping = ctx.groups.damping(call.factor.weight) if ctx.mask is None else None
                made = _substituted(call.factor, gradient, x, damping)
        return gradient, call.layer.view(made)[0], None, None, None, None


def _substituted(factor: Factor, gradient: Tensor, x: Tensor, damping: float | None) -> Tensor:
    """What the backward of a call just recorded is to add to the weight's gradient [rows, d].

    For the first call of a step that is M, scaled to the length of G. A second one takes it back, so that the sum is the gradient of
    both, which the step multiplies as ever. So it is with a call of which a mask leaves inputs out (``damping`` None): those have one too.
    """
    before, factor.early = factor.early, None
    if (
        damping is not None
        and before is None
        and len(factor.rows) == 1
        and factor.rows[0].d is not None
        and not factor.sums
    ):
        solve = BatchInverse(factor)
        if solve.z is not None and (solve.z.is_cuda or bool(solve.trace.isfinite().all())):
            solve.factorise(damping)
            factor.early = solve
            return solve.substitute()
    plain = gradient.flatten(0, -2).t() @ x.flatten(0, -2).to(gradient.dtype)
    return plain if before is None else plain + before.given_back()


class Substitution(Hook):
    """Forward pre-hook of a module whose weight may be given M by the backward; :meth:`end` is its forward hook.

    In between the weight wants no gradient, so that autograd leaves it out.
    """

    def __init__(self, recorder: Recorder, groups: Groups) -> None:
        self.recorder = recorder
        self.groups = groups
        self.open = False

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        factor, weight = self.recorder.factor, self.recorder.layer.weight
        x = args[0] if args else next(iter(kwargs.values()))
        if (
            factor.due
            and factor.substitutes
            and self.groups.of(weight)["precondition"]
            and torch.is_grad_enabled()
            and weight.requires_grad
            and isinstance(x, Tensor)
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        ):
            weight.requires_grad_(False)
            self.open = True

    def end(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Tensor | None:
        """The output whose backward goes through here; None where the module's forward raised."""
        self.open = False
        factor, layer = self.recorder.factor, self.recorder.layer
        layer.weight.requires_grad_(True)
        if output is None:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        call, mask = Call(layer, [], factor, whole=True), self.recorder.find_mask(layer.tokens(x))
        made = made_as(output)
        result = _Substitute.apply(made, layer.weight, x, mask, call, self.groups)  # type: ignore[no-untyped-call]
        return result if made is output else None


class SubstitutionEnd(Hook):
    """Forward hook of the same module, called also where its forward raised: the substitution's, or the recorder's."""

    def __init__(self, begin: Substitution) -> None:
        self.begin = begin

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if self.begin.open:
            return self.begin.end(args, kwargs, output)
        if output is not None:
            self.begin.recorder(module, args, kwargs, output)
        return None


def may_substitute(factor: Factor) -> bool:
    """Whether the weight is one matrix that meets its inputs one to one in one module, so that M can take the place of its gradient."""
    return len(factor.layers) == 1 and type(factor.layers[0]) in (Layer, TransposedLinear) and factor.bias is None

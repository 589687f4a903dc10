"""Forward hooks that hand a module's inputs to the factors of its weights, once the module's output has got a gradient.

What is recorded is what is backpropagated: a forward whose output never gets a gradient (validation without ``no_grad``, the frozen half of
an adversarial pair, a batch that is dropped) leaves no trace, whatever mode the module is in. An activation checkpoint runs its layers
twice and counts once, of either kind: only one of the two runs has an output that a gradient reaches.

In a compiled model the hooks run uncompiled, a graph break at each watched layer: whether a factor is due changes from step to step,
and a guard on it would have every pattern of the cycle compiled anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim.budget import rows_within
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.layers import Layer, Stream
from dopr_robot.optim.untraced import untraced

MaskFinder = Callable[[torch.Size], Tensor | None]


class Hook:
    """A forward hook that stays with its module: a copy of the module, by ``copy.deepcopy`` (an average of weights) or by pickle, gets
    one that does nothing, since the copy's inputs are not the model's.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _record_nothing

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _make_inert, ()


class Beginning(Hook):
    """Forward pre-hook of a module whose inputs are watched while it runs; ``end`` comes after, also where its forward raised."""

    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def end(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """``output`` is None where the forward raised."""
        raise NotImplementedError


class End(Hook):
    """Forward hook of a module, which ends what ``beginning`` began."""

    def __init__(self, beginning: Beginning) -> None:
        self.beginning = beginning

    @untraced
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        self.beginning.end(args, kwargs, output)


def _record_nothing(*args: Any, **kwargs: Any) -> None:
    """The hook of a copied module."""


def _make_inert() -> Callable[..., None]:
    return _record_nothing


class Call:
    """One run of a layer: the hook of its outputs, which hands the inputs over at the first gradient of any of them.

    Attributes:
        streams: the inputs, batch first, with their padding masks.
        whole: whether the streams are all that the layer saw and the output is all that it made of them, row by row, so that the weight's
            gradient is made of them alone.
        rounded: what ``torch.autocast`` rounds the streams to on a GPU before the layer multiplies them, or None.
    """

    def __init__(self, layer: Layer, streams: Sequence[Stream], factor: Factor, whole: bool) -> None:
        self.layer = layer
        self.streams = streams
        self.factor = factor
        self.whole = whole
        device = streams[0][0].device.type
        casts = device == "cuda" and torch.is_autocast_enabled(device)
        self.rounded = torch.get_autocast_dtype(device) if casts else None

    def __call__(self, gradient: Tensor) -> None:
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            self.factor.record(self, gradient)

    def await_gradient(self, output: Tensor) -> None:
        """Be called with the gradient of ``output``."""
        made = made_as(output)
        if made is output:
            output.register_hook(self)
            return
        # Written over in place, a view gets another history, and what was hooked to it is lost; what it is a view of keeps its own.
        shape, node = output.shape, made.grad_fn
        assert node is not None
        # The shape and not the output, which would hold the node that holds this: no garbage collector sees through autograd's graph.
        node.register_prehook(lambda gradients: self(gradients[0].reshape(shape)))


class Recorder(Hook):
    """Forward hook of a module with one weight and one input.

    Args:
        factor: where the inputs go.
        layer: the module's use of the weight.
        find_mask: gives the padding mask for tokens of a shape, or None.
        max_tokens: form the moment from so many tokens, spread over the batch.
    """

    def __init__(self, factor: Factor, layer: Layer, find_mask: MaskFinder, max_tokens: int | None) -> None:
        self.factor = factor
        self.layer = layer
        self.find_mask = find_mask
        self.max_tokens = max_tokens

    @untraced
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if self.wanted(output):
            self.expect([output], self.layer.streams(*args, **kwargs))

    def wanted(self, output: Any) -> bool:
        """Whether the call that gave ``output`` may be backpropagated to the weight at a step where the factor is due."""
        return (
            self.factor.due
            and isinstance(output, Tensor)
            and output.requires_grad
            and self.layer.weight.requires_grad
            and not _transformed(output)
        )

    def expect(self, outputs: Sequence[Tensor], streams: Sequence[Tensor]) -> None:
        """Have the inputs of a call, batch first, recorded when one of its outputs gets a gradient."""
        parts = [self._part(x) for x in streams]
        whole = len(outputs) == 1 and all(
            part.numel() == x.numel() for (part, _), x in zip(parts, streams, strict=True)
        )
        self.await_(outputs, parts, whole)

    def await_(self, outputs: Sequence[Tensor], parts: Sequence[Stream], whole: bool = False) -> None:
        """Have ``parts`` recorded, as they are."""
        call = Call(self.layer, parts, self.factor, whole)
        for output in outputs:
            if self.wanted(output):
                call.await_gradient(output)

    def _part(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of ``x`` that the moment is formed from, and their mask."""
        tokens, factor = self.layer.tokens(x), self.factor
        mask = self.find_mask(tokens)
        limit = self._limit(tokens.numel())
        foreign, x = not x.requires_grad, x.detach()
        if limit is None or not tokens or tokens.numel() <= limit or self.layer.diagonal:
            # What is kept until the step is a copy where it may be the caller's own buffer, which the next batch is written into.
            kept = factor.keeps_rows and (factor.sketched or tokens.numel() < factor.dim)
            return x.clone() if kept and foreign else x, mask
        if x.shape[:-1] == tokens:
            chosen = _spread(tokens.numel(), limit, x.device)
            return x.flatten(0, -2)[chosen], mask.flatten()[chosen] if mask is not None else None
        if x.shape[0] != tokens[0]:
            return x, mask
        # Of images and sequences whole ones: at least as many as hold so many tokens.
        chosen = _spread(tokens[0], -(-limit * tokens[0] // tokens.numel()), x.device)
        return x[chosen], mask[chosen] if mask is not None else None

    def _limit(self, n: int) -> int | None:
        """Of how many of ``n`` tokens to form the moment at most."""
        factor, limit = self.factor, self.max_tokens
        if n and factor.solved and factor.max_cost is not None:
            within = rows_within(factor.max_cost, n, factor.dim, factor.out)
            factor.sample = within if within < n else None
            limit = within if limit is None else min(limit, within)
        return limit


def _spread(total: int, number: int, device: torch.device) -> Tensor:
    """``number`` of ``total`` places, one in each of as many equal parts, at no fixed distance, which might be that of one position."""
    # Made where it is wanted: what is copied to a GPU is waited for.
    places = torch.arange(number, dtype=torch.float64, device=device)
    return ((places + (places * 0.6180339887498949) % 1) * (total / number)).long().clamp_max(total - 1)


def made_as(output: Tensor) -> Tensor:
    """The tensor that a module's output is another shape of (a product of rows, for tokens), or the output itself."""
    base = output._base
    same = base is not None and base.grad_fn is not None and base.shape[-1:] == output.shape[-1:]
    return base if base is not None and same and base.numel() == output.numel() else output


def _transformed(output: Tensor) -> bool:
    if torch._C._functorch.is_functorch_wrapped_tensor(output):
        raise RuntimeError(
            "activation preconditioning watches autograd's backward, which torch.func transforms (grad, vmap) do not run: use "
            "loss.backward()"
        )
    return False


def watch_output(module: nn.Module, recorders: Mapping[str, Recorder]) -> list[Any]:
    """Watch a module with one weight; returns the handles."""
    return [module.register_forward_hook(recorder, with_kwargs=True) for recorder in recorders.values()]


def watch_run(module: nn.Module, beginning: Beginning) -> list[Any]:
    """Watch a module while it runs; returns the handles."""
    return [
        module.register_forward_pre_hook(beginning, with_kwargs=True),
        module.register_forward_hook(End(beginning), with_kwargs=True, always_call=True),
    ]

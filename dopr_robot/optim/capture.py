"""Forward hooks that hand a module's inputs to the factors of its weights, once the module's output has got a gradient.

What is recorded is what is backpropagated: a forward whose output never gets a gradient (validation without ``no_grad``, the frozen half of
an adversarial pair, a batch that is dropped) leaves no trace, whatever mode the module is in. An activation checkpoint runs its layers
twice and counts once, of either kind: only one of the two runs has an output that a gradient reaches.

In a compiled model the hooks run uncompiled, a graph break at each watched layer: whether a factor is due changes from step to step,
and a guard on it would have every pattern of the cycle compiled anew.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.layers import Layer

MaskFinder = Callable[[torch.Size], Tensor | None]


class Hook:
    """A forward hook that stays with its module: a copy of the module, by ``copy.deepcopy`` (an average of weights) or by pickle, gets
    one that does nothing, since the copy's inputs are not the model's.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _record_nothing

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _make_inert, ()


def _record_nothing(*args: Any, **kwargs: Any) -> None:
    """The hook of a copied module."""


def _make_inert() -> Callable[..., None]:
    return _record_nothing


class Call:
    """One run of a layer: the hook of its output, which hands the inputs over at the first gradient.

    Attributes:
        streams: the inputs, batch first, with their padding masks.
        whole: whether the streams are all that the layer saw, so that the weight's gradient is made of them alone.
    """

    def __init__(
        self, layer: Layer, streams: Sequence[tuple[Tensor, Tensor | None]], factor: Factor, whole: bool
    ) -> None:
        self.layer = layer
        self.streams = streams
        self.factor = factor
        self.whole = whole

    def __call__(self, gradient: Tensor) -> None:
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            self.factor.record(self, gradient)


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

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if self.wanted(output):
            self.expect(output, [args[0] if args else next(iter(kwargs.values()))])

    def wanted(self, output: Any) -> bool:
        """Whether the call that gave ``output`` may be backpropagated to the weight at a step where the factor is due."""
        return (
            self.factor.due
            and isinstance(output, Tensor)
            and output.requires_grad
            and self.layer.weight.requires_grad
            and not _transformed(output)
        )

    def expect(self, output: Tensor, streams: Sequence[Tensor]) -> None:
        """Have the inputs of a call, batch first, recorded when its output gets a gradient."""
        parts = [self._part(x.detach()) for x in streams]
        whole = all(part.numel() == x.numel() for (part, _), x in zip(parts, streams, strict=True))
        made = made_as(output)
        if made is output:
            output.register_hook(Call(self.layer, parts, self.factor, whole))
            return
        # Written over in place, a view gets another history, and what was hooked to it is lost; what it is a view of keeps its own.
        call, shape, node = Call(self.layer, parts, self.factor, whole), output.shape, made.grad_fn
        assert node is not None
        # The shape and not the output, which would hold the node that holds this: no garbage collector sees through autograd's graph.
        node.register_prehook(lambda gradients: call(gradients[0].view(shape)))

    def _part(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of ``x`` that the moment is formed from, and their mask."""
        tokens = self.layer.tokens(x)
        mask = self.find_mask(tokens)
        if self.max_tokens is None or not tokens or tokens.numel() <= self.max_tokens or self.layer.diagonal:
            return x, mask
        if x.shape[:-1] == tokens:
            chosen = _spread(tokens.numel(), self.max_tokens, x.device)
            return x.flatten(0, -2)[chosen], mask.flatten()[chosen] if mask is not None else None
        if x.shape[0] != tokens[0]:
            return x, mask
        # Of images and sequences whole ones: at least as many as hold so many tokens.
        chosen = _spread(tokens[0], -(-self.max_tokens * tokens[0] // tokens.numel()), x.device)
        return x[chosen], mask[chosen] if mask is not None else None


def _spread(total: int, number: int, device: torch.device) -> Tensor:
    """``number`` of ``total`` places, one in each of as many equal parts, at no fixed distance, which might be that of one position."""
    places = torch.arange(number, dtype=torch.float64)
    return ((places + (places * 0.6180339887498949) % 1) * (total / number)).long().clamp_max(total - 1).to(device)


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


class AttentionRecorder(Hook):
    """Forward pre-hook of ``nn.MultiheadAttention``: its weights are used inside ``F.multi_head_attention_forward``, not by child modules.

    The input of the output projection exists only inside that function, which multiplies it by ``F.linear``. While the module's
    forward runs, that name leads to a function that looks for the projection's weight and otherwise does what it always did.
    """

    def __init__(self, module: nn.MultiheadAttention, recorders: Mapping[str, Recorder]) -> None:
        # A compiler takes the function as one operation, in which the name F.linear means nothing: it has to stay outside.
        torch._dynamo.disallow_in_graph(F.multi_head_attention_forward)  # type: ignore[no-untyped-call]
        self.module = module
        self.recorders = recorders
        self.watch: _Watch | None = None

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        recorder = self.recorders.get("output")
        if recorder is not None and recorder.factor.due and torch.is_grad_enabled():
            shape = _streams(args, kwargs)["query"].shape[:-1]
            self.watch = _Watch(recorder, shape, batch_first=self.module.batch_first)
            self.watch.begin()

    @torch._disable_dynamo
    def end(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """After the module's forward, also where it raised (``output`` is None then)."""
        if self.watch is not None:
            self.watch.end()
            self.watch = None
        attended = output[0] if isinstance(output, tuple) else None
        for name, recorder in self.recorders.items():
            if name != "output" and attended is not None and recorder.wanted(attended):
                streams = _streams(args, kwargs)
                if name != "packed":
                    recorder.expect(attended, [self._batch_first(streams[name])])
                elif streams["query"] is streams["key"] and streams["key"] is streams["value"]:
                    recorder.expect(attended, [self._batch_first(streams["query"])])
                else:
                    recorder.expect(attended, [self._batch_first(x) for x in streams.values()])

    def _batch_first(self, x: Tensor) -> Tensor:
        return x if self.module.batch_first or x.dim() == 2 else x.transpose(0, 1)


def _streams(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    names = ("query", "key", "value")
    return dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}


class AttentionEnd(Hook):
    """Forward hook of ``nn.MultiheadAttention``, called also where its forward raised."""

    def __init__(self, recorder: AttentionRecorder) -> None:
        self.recorder = recorder

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.recorder.end(args, kwargs, output)


_linear = F.linear
_lock = threading.Lock()
_open_watches = 0
_local = threading.local()


class _Watch:
    """Waits for the one multiplication by an attention's output projection."""

    def __init__(self, recorder: Recorder, shape: torch.Size, *, batch_first: bool) -> None:
        self.recorder = recorder
        self.weight = recorder.layer.weight
        self.shape = shape if len(shape) == 1 or not batch_first else shape[::-1]  # [T, B], or [T] without a batch

    def seen(self, x: Tensor, output: Tensor) -> None:
        """Expect a gradient at the projection's output, whose rows are in the order [T, B]."""
        if self.recorder.wanted(output):
            x = x.reshape(*self.shape, x.shape[-1])
            self.recorder.expect(output, [x.transpose(0, 1) if len(self.shape) == 2 else x])

    def begin(self) -> None:
        """From here on ``F.linear`` leads to this watch too."""
        global _open_watches
        with _lock:
            _open_watches += 1
            F.linear = _watched_linear
        _local.watches = [*getattr(_local, "watches", []), self]

    def end(self) -> None:
        global _open_watches
        _local.watches.remove(self)
        with _lock:
            _open_watches -= 1
            if _open_watches == 0:
                F.linear = _linear


@torch._disable_dynamo
def _watched_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output = _linear(input, weight, bias)
    for watch in getattr(_local, "watches", []):
        if weight is watch.weight:
            watch.seen(input, output)
    return output

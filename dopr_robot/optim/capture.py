"""Forward hooks that hand a module's inputs to the factors of its weights.

What is recorded: calls in training mode with gradient enabled, of weights that want a gradient, at steps where the factor is due.
An activation checkpoint runs its layers twice, and counts once. Its first run is either without gradient (the reentrant kind:
not recorded, the second one is) or with gradient (the other kind: recorded, the second one is not). A second run is known by
happening inside a backward pass.

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


class Recorder(Hook):
    """Forward pre-hook of a module with one weight and one input.

    Args:
        factor: where the inputs go.
        layer: the module's use of the weight.
        find_mask: gives the padding mask for tokens of a shape, or None.
        max_tokens: form the moment from the first rows of a batch, so many that there are at least this many tokens.
    """

    def __init__(self, factor: Factor, layer: Layer, find_mask: MaskFinder, max_tokens: int | None) -> None:
        self.factor = factor
        self.layer = layer
        self.find_mask = find_mask
        self.max_tokens = max_tokens

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if self.factor.due and self.wanted():
            self.record([args[0] if args else next(iter(kwargs.values()))])

    def wanted(self) -> bool:
        """Whether the call that is beginning is to be recorded."""
        layer = self.layer
        if not (layer.module.training and layer.weight.requires_grad and torch.is_grad_enabled()):
            return False
        if torch._C._current_graph_task_id() == -1:  # not inside a backward pass
            layer.forwarded = True
            return True
        return not layer.forwarded

    def record(self, streams: Sequence[Tensor]) -> None:
        """Add the inputs of one call, batch first."""
        with torch.no_grad(), torch.autocast(streams[0].device.type, enabled=False):
            self.factor.record(self.layer, [self._part(x.detach()) for x in streams])

    def _part(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows of ``x`` that the moment is formed from, and their mask."""
        tokens = self.layer.tokens(x)
        mask = self.find_mask(tokens)
        if self.max_tokens is None or not tokens or x.shape[0] != tokens[0]:
            return x, mask
        rows = -(-self.max_tokens * tokens[0] // max(tokens.numel(), 1))
        return x[:rows], mask[:rows] if mask is not None else None


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
        streams = dict(zip(("query", "key", "value"), args, strict=False)) | {
            name: kwargs[name] for name in ("query", "key", "value") if name in kwargs
        }
        shape = streams["query"].shape[:-1]
        batch_first = {name: self._batch_first(x) for name, x in streams.items()}
        for name, recorder in self.recorders.items():
            if not (recorder.factor.due and recorder.wanted()):
                continue
            if name == "packed":
                same = streams["query"] is streams["key"] and streams["key"] is streams["value"]
                recorder.record([batch_first["query"]] if same else list(batch_first.values()))
            elif name == "output":
                self.watch = _Watch(recorder, shape, batch_first=self.module.batch_first)
                self.watch.begin()
            else:
                recorder.record([batch_first[name]])

    def _batch_first(self, x: Tensor) -> Tensor:
        return x if self.module.batch_first or x.dim() == 2 else x.transpose(0, 1)


class AttentionEnd(Hook):
    """Forward hook of ``nn.MultiheadAttention``, called also where its forward raised: stops watching."""

    def __init__(self, recorder: AttentionRecorder) -> None:
        self.recorder = recorder

    @torch._disable_dynamo
    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.recorder.watch is not None:
            self.recorder.watch.end()
            self.recorder.watch = None


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

    def seen(self, x: Tensor) -> None:
        """Record the projection's input, whose rows are in the order [T, B]."""
        x = x.reshape(*self.shape, x.shape[-1])
        self.recorder.record([x.transpose(0, 1) if len(self.shape) == 2 else x])

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
    for watch in getattr(_local, "watches", []):
        if weight is watch.weight:
            watch.seen(input)
    return _linear(input, weight, bias)

"""``nn.MultiheadAttention``: its uses of its weights, and how they are watched."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dopr_robot.optim.capture import Beginning, Recorder, watch_run
from dopr_robot.optim.layers import Layer, PackedProjection, Part
from dopr_robot.optim.untraced import untraced


def find_attention(module: nn.MultiheadAttention, include_bias: bool) -> Iterator[Layer]:
    """The packed, or query, key and value projections, and that of the output."""

    def parameter(name: str) -> nn.Parameter | None:
        return module._parameters.get(name)

    packed = parameter("in_proj_weight")
    if packed is not None:
        yield PackedProjection(module, packed, parameter("in_proj_bias") if include_bias else None)
    for role, name in (("query", "q_proj_weight"), ("key", "k_proj_weight"), ("value", "v_proj_weight")):
        weight = parameter(name)
        if weight is not None:  # the bias is one vector for all three: left to the base
            yield Part(module, weight, role=role, kind=f"attention {role}")
    out = module.out_proj
    weight = out._parameters.get("weight")
    if weight is not None:
        bias = out._parameters.get("bias") if include_bias else None
        yield Part(module, weight, bias, role="output", kind="attention output")


def watch_attention(module: nn.MultiheadAttention, recorders: Mapping[str, Recorder]) -> list[Any]:
    """Watch the module; returns the handles."""
    return watch_run(module, AttentionRecorder(module, recorders))


class AttentionRecorder(Beginning):
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

    @untraced
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        recorder = self.recorders.get("output")
        if recorder is not None and recorder.factor.due and torch.is_grad_enabled():
            shape = _streams(args, kwargs)["query"].shape[:-1]
            weight = self.module.out_proj.weight  # which a sharded model exchanges for the run
            self.watch = _Watch(recorder, weight, shape, batch_first=self.module.batch_first)
            self.watch.begin()

    @untraced
    def end(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if self.watch is not None:
            self.watch.end()
            self.watch = None
        attended = output[0] if isinstance(output, tuple) else None
        for name, recorder in self.recorders.items():
            if name != "output" and attended is not None and recorder.wanted(attended):
                streams = _streams(args, kwargs)
                if name != "packed":
                    recorder.expect([attended], [self._batch_first(streams[name])])
                elif _same(streams["query"], streams["key"]) and _same(streams["key"], streams["value"]):
                    recorder.expect([attended], [self._batch_first(streams["query"])])
                else:
                    recorder.expect([attended], [self._batch_first(x) for x in streams.values()])

    def _batch_first(self, x: Tensor) -> Tensor:
        return x if self.module.batch_first or x.dim() == 2 else x.transpose(0, 1)


def _streams(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    names = ("query", "key", "value")
    return dict(zip(names, args, strict=False)) | {name: kwargs[name] for name in names if name in kwargs}


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether they are one tensor: a sharded module is given an alias of each argument."""
    return a is b or (
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    )


_linear = F.linear
_lock = threading.Lock()
_open_watches = 0
_local = threading.local()


class _Watch:
    """Waits for the one multiplication by an attention's output projection."""

    def __init__(self, recorder: Recorder, weight: Tensor, shape: torch.Size, *, batch_first: bool) -> None:
        self.recorder = recorder
        self.weight = weight
        self.shape = shape if len(shape) == 1 or not batch_first else shape[::-1]  # [T, B], or [T] without a batch

    def seen(self, x: Tensor, output: Tensor) -> None:
        """Expect a gradient at the projection's output, whose rows are in the order [T, B]."""
        if self.recorder.wanted(output):
            x = x.reshape(*self.shape, x.shape[-1])
            self.recorder.expect([output], [x.transpose(0, 1) if len(self.shape) == 2 else x])

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


@untraced
def _watched_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output = _linear(input, weight, bias)
    for watch in getattr(_local, "watches", []):
        if weight is watch.weight:
            watch.seen(input, output)
    return output

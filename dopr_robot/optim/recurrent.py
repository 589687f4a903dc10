"""``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells: their uses of their weights, and how they are watched.

An input weight multiplies x_t and a hidden weight h_{t-1}, at every step t of every sequence: each is one input vector. The hidden states
are a layer's outputs, shifted by a step. Those between the layers of a module, whose dropout no second run would draw again, are seen
because the module's layers are run one by one, by the same kernel, at no cost in multiplications.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dopr_robot.optim.capture import Beginning, Hook, Recorder, watch_run
from dopr_robot.optim.layers import Layer, Part
from dopr_robot.optim.untraced import untraced

_KERNELS = ("rnn_tanh", "rnn_relu", "lstm", "gru")


def find_recurrent(module: nn.Module, include_bias: bool) -> Iterator[Layer]:
    """An input and a hidden weight for each layer and direction. (An LSTM's ``proj_size`` adds one whose inputs never leave the kernel.)"""
    for name, weight in module._parameters.items():
        if weight is not None and name.startswith(("weight_ih", "weight_hh")):
            bias = module._parameters.get(name.replace("weight", "bias")) if include_bias else None
            use = "inputs" if name.startswith("weight_ih") else "hidden states"
            yield Part(module, weight, bias, role=name, kind=f"{type(module).__name__}, {use} of every step")


def watch_recurrent(module: nn.Module, recorders: Mapping[str, Recorder]) -> list[Any]:
    """Watch a module of layers; returns the handles."""
    return watch_run(module, RecurrentRecorder(recorders))


def watch_cell(module: nn.Module, recorders: Mapping[str, Recorder]) -> list[Any]:
    """Watch a cell, of one step; returns the handles."""
    return [module.register_forward_hook(CellRecorder(recorders), with_kwargs=True)]


class RecurrentRecorder(Beginning):
    """Forward pre-hook of a module of layers."""

    def __init__(self, recorders: Mapping[str, Recorder]) -> None:
        self.recorders = recorders
        self.running: list[_LayerByLayer] = []

    @untraced
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if torch.is_grad_enabled() and any(recorder.factor.due for recorder in self.recorders.values()):
            self.running.append(_LayerByLayer(self.recorders))
            self.running[-1].__enter__()

    def end(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if self.running:
            self.running.pop().__exit__(None, None, None)


class CellRecorder(Hook):
    """Forward hook of a cell."""

    def __init__(self, recorders: Mapping[str, Recorder]) -> None:
        self.recorders = recorders

    @untraced
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        x, hidden = _cell_inputs(*args, **kwargs)
        if hidden is None:
            hidden = torch.zeros_like(outputs[0])
        _expect(self.recorders, {"weight_ih": x, "weight_hh": hidden}, outputs)


def _cell_inputs(input: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
    return input, hx[0] if isinstance(hx, tuple) else hx


@untraced
def _expect(recorders: Mapping[str, Recorder], inputs: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> None:
    for name, x in inputs.items():
        recorder = recorders.get(name)
        if recorder is not None and any(recorder.wanted(output) for output in outputs):
            recorder.expect(outputs, [x])


class _LayerByLayer(TorchFunctionMode):
    """Runs the kernel once for each layer, and sees what each takes and gives."""

    def __init__(self, recorders: Mapping[str, Recorder]) -> None:
        super().__init__()
        self.recorders = recorders

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", None) not in _KERNELS:
            return func(*args, **(kwargs or {}))
        if isinstance(args[3], bool):  # sequences of one length: [T, B, d], or batch first
            x, hx, weights, has_bias, layers, dropout, train, bidirectional, batch_first = args
            x, sizes = x.transpose(0, 1) if batch_first else x, None
        else:  # packed: [steps of all sequences, d]
            x, sizes, hx, weights, has_bias, layers, dropout, train, bidirectional = args
            batch_first = False
        first = (x,) if sizes is None else (x, sizes)
        last = (False,) if sizes is None else ()
        directions, each = 1 + bidirectional, len(weights) // layers
        finals = []
        for layer in range(layers):
            here = slice(layer * directions, (layer + 1) * directions)
            state = tuple(part[here] for part in hx) if isinstance(hx, tuple) else hx[here]
            own = weights[layer * each : (layer + 1) * each]
            output, *final = func(*first, state, own, has_bias, 1, 0.0, train, bidirectional, *last)
            h0 = state[0] if isinstance(state, tuple) else state
            self._expect_layer(layer, first[0], output, h0, sizes, final)
            finals.append(final)
            below = dropout and train and layer < layers - 1
            first = (F.dropout(output, dropout) if below else output, *first[1:])
        return (
            output.transpose(0, 1) if batch_first else output,
            *(torch.cat(part) for part in zip(*finals, strict=True)),
        )

    def _expect_layer(
        self, layer: int, x: Tensor, output: Tensor, h0: Tensor, sizes: Tensor | None, final: Sequence[Tensor]
    ) -> None:
        for direction, hidden in enumerate(output.detach().chunk(len(h0), -1)):
            suffix = f"l{layer}" + "_reverse" * direction
            before = _before(hidden, h0[direction].detach(), sizes, reverse=direction == 1)
            inputs = {f"weight_ih_{suffix}": x, f"weight_hh_{suffix}": before}
            if sizes is None:
                inputs = {name: part.transpose(0, 1) for name, part in inputs.items()}
            _expect(self.recorders, inputs, (output, *final))


def _before(hidden: Tensor, h0: Tensor, sizes: Tensor | None, *, reverse: bool) -> Tensor:
    """The hidden states that each step began with, from those that it ended with and the first [B, d]."""
    if sizes is None:
        return torch.cat([hidden[1:], h0.unsqueeze(0)] if reverse else [h0.unsqueeze(0), hidden[:-1]])
    # Step t of the sequences that are that long lies at starts[t] .. starts[t] + sizes[t]; longer sequences come first.
    starts = sizes.cumsum(0) - sizes
    sequence = torch.arange(int(sizes.sum())) - starts.repeat_interleave(sizes)
    none = sizes.new_zeros(1)
    if reverse:
        neighbour, there = torch.cat([starts[1:], none]), torch.cat([sizes[1:], none])
    else:
        neighbour, there = torch.cat([none, starts[:-1]]), torch.cat([none, sizes[:-1]])
    inside = sequence < there.repeat_interleave(sizes)
    place = torch.where(inside, len(h0) + neighbour.repeat_interleave(sizes) + sequence, sequence)
    return torch.cat([h0, hidden])[place.to(hidden.device)]

"""The kinds of modules: a table of which uses each makes of its weights, and how the inputs that they meet are watched."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from dopr_robot.optim.attention import find_attention, watch_attention
from dopr_robot.optim.capture import Recorder, watch_output
from dopr_robot.optim.layers import (
    Bilinear,
    Convolution,
    Embedding,
    EmbeddingBag,
    Layer,
    TransposedConvolution,
    TransposedLinear,
    UnfoldedConvolution,
)
from dopr_robot.optim.recurrent import find_recurrent, watch_cell, watch_recurrent
from dopr_robot.optim.stacks import UNSEEN, Use, find_stacks, stacks_of


class Options(NamedTuple):
    """What decides about uses: ``conv`` and ``include_bias`` of ``ActivationPreconditioner``, and the uses of stacks seen so far."""

    conv: str = "sua"
    include_bias: bool = False
    stacks: Mapping[nn.Parameter, Use] = MappingProxyType({})


DEFAULT = Options()
Uses = Iterator[Layer]


class Kind(NamedTuple):
    """One row of the table.

    Attributes:
        classes: of the modules, subclasses included as long as they keep the forward.
        find: the uses that such a module itself, without its children, makes of its weights.
        watch: has the inputs of a module recorded, by a recorder for each of its uses, under their roles; returns handles of hooks. None:
            see :func:`dopr_robot.optim.stacks.watch_stacks`.
    """

    classes: tuple[type[nn.Module], ...]
    find: Callable[[Any, Options], Uses]
    watch: Callable[[Any, Mapping[str, Recorder]], list[Any]] | None = watch_output


def _one(use: Callable[..., Layer], *, bias: bool = True) -> Callable[[Any, Options], Uses]:
    """For modules with one weight, under that name."""

    def find(module: nn.Module, options: Options) -> Uses:
        weight = module._parameters.get("weight")
        if weight is not None and not isinstance(weight, nn.UninitializedParameter):
            yield use(module, weight, *([module._parameters.get("bias")] if bias and options.include_bias else []))

    return find


def _several(find: Callable[[Any, bool], Uses]) -> Callable[[Any, Options], Uses]:
    """For modules that know their own weights, by a function of the module and ``include_bias``."""
    return lambda module, options: find(module, options.include_bias)


def _convolution(module: Any, options: Options) -> Uses:
    if options.conv == "unfold":
        return _one(UnfoldedConvolution)(module, options)
    # Under SUA a tap's inputs have no constant coordinate in common with the bias, unless there is one tap only.
    pointwise = math.prod(module.kernel_size) == 1 and not any(module._reversed_padding_repeated_twice)
    return _one(Convolution, bias=pointwise)(module, options)


def _nothing(module: nn.Module, options: Options) -> Uses:
    return iter(())


KINDS = (
    # out_proj of nn.MultiheadAttention, whose forward never runs: its attention yields it.
    Kind((nn.modules.linear.NonDynamicallyQuantizableLinear,), _nothing),
    Kind((nn.Linear,), _one(Layer)),
    Kind((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    Kind((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _one(TransposedConvolution, bias=False)),
    Kind((nn.Embedding,), _one(Embedding, bias=False)),
    Kind((nn.EmbeddingBag,), _one(EmbeddingBag, bias=False)),
    Kind((nn.Bilinear,), _one(Bilinear)),
    Kind((nn.MultiheadAttention,), _several(find_attention), watch_attention),
    Kind((nn.RNN, nn.LSTM, nn.GRU), _several(find_recurrent), watch_recurrent),
    Kind((nn.RNNCell, nn.LSTMCell, nn.GRUCell), _several(find_recurrent), watch_cell),
)
_CONV1D = Kind((), _one(TransposedLinear))  # Hugging Face's, known by its looks: transformers is not imported
STACK = Kind((), lambda module, options: find_stacks(module, options.stacks), None)  # any other that has one
_PARAMETRIZED = Kind((), _nothing)


def kind_of(module: nn.Module) -> Kind | None:
    """The row that a module belongs to."""
    for kind in KINDS:
        if isinstance(module, kind.classes):
            return kind
    if isinstance(module, ParametrizationList):
        return _PARAMETRIZED
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return _CONV1D
    return STACK if stacks_of(module) else None


def find_layers(module: nn.Module, options: Options = DEFAULT) -> Uses:
    """The uses that ``module`` itself, without its children, makes of its weights. Nothing for an unsupported module."""
    kind = kind_of(module)
    if kind is not None:
        left = reasons_to_leave(module, options)
        yield from (layer for layer in kind.find(module, options) if layer.weight not in left)


def reasons_to_leave(module: Any, options: Options = DEFAULT) -> dict[nn.Parameter | None, str]:
    """Why parameters of ``module`` are left to the base though they look like those of a supported module."""
    kind = kind_of(module)
    if kind is STACK:
        uses = {weight: options.stacks.get(weight, UNSEEN) for weight in stacks_of(module).values()}
        return {weight: use for weight, use in uses.items() if isinstance(use, str)}
    if isinstance(module, nn.LSTM) and module.proj_size:
        return {
            weight: "the projection of an LSTM with proj_size: its inputs never leave the kernel"
            for name, weight in module._parameters.items()
            if name.startswith("weight_hr")
        }
    why = None if kind is None else _reason(module, kind)
    return {} if why is None else dict.fromkeys(module._parameters.values(), why)


def _reason(module: Any, kind: Kind) -> str | None:
    """Why a whole module is left."""
    if kind is _PARAMETRIZED:
        names = ", ".join(type(part).__name__.lstrip("_") for part in module)
        return f"parametrized ({names}): the weight is computed from it, so its gradient is not a sum of products with the inputs"
    for known in kind.classes:
        # A subclass that standardises or scales its weight, or pads its input first, has other inputs than are known here.
        if isinstance(module, known) and type(module).forward is not known.forward:  # type: ignore[attr-defined]
            return f"{type(module).__name__} has a forward of its own, other than {known.__name__}'s"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return "its gradient is sparse"
    if isinstance(module, nn.EmbeddingBag) and module.mode == "max":
        return "the maximum over a bag takes another row for every column, so that there is no one matrix"
    return None

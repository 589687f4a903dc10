"""How each kind of layer uses its weight: which vectors it multiplies, and how its gradient looks as a matrix.

Every supported layer is, seen from its weight, one or several matrices that multiply vectors z. A :class:`Layer` says so for one
weight of one module: :meth:`Layer.inputs` turns what the module was called with into ``[groups, n, d]``, and :meth:`Layer.view` shows
the weight's gradient as ``[groups, rows, ..., d]``, so that activation preconditioning is ``view @ inverse`` for all of them.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Layer:
    """One use of one weight by one module: ``y = W z`` for every input vector z of length ``dim``.

    Args:
        module: the module whose forward multiplies by the weight.
        weight: the parameter.
        bias: its bias where that is to be preconditioned with it, as the weight of an input that is always 1.

    Attributes:
        groups: number of matrices that the weight holds side by side, each with inputs of its own.
        dim: length of an input vector, with the homogeneous coordinate where there is a bias.
        diagonal: whether the inputs are one-hot, so that their second moment is a diagonal.
    """

    kind = "linear"
    role = "input"
    groups = 1
    diagonal = False

    def __init__(self, module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        self.module = module
        self.weight = weight
        self.bias = bias
        self.dim = self.width() + (bias is not None)

    def width(self) -> int:
        """Length of an input vector without the homogeneous coordinate."""
        return self.weight.shape[1]

    def inputs(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """The input vectors ``[groups, n, dim]`` of a call with ``x``, and how many of them count.

        ``mask`` is bool, true where a token counts, and has the shape of the tokens; vectors that do not count come back as zeros.
        """
        z = self.vectors(x)
        if self.bias is not None:
            z = F.pad(z, (0, 1), value=1.0)
        if mask is None:
            return z, z.shape[1]
        keep = mask.reshape(1, -1, 1).to(z.dtype)
        return z * keep, keep.sum()

    def tokens(self, x: Tensor) -> torch.Size:
        """Shape of the tokens in ``x``, which a mask has to match."""
        return x.shape[:-1]

    def vectors(self, x: Tensor) -> Tensor:
        """The input vectors ``[groups, n, width]``."""
        return x.reshape(1, -1, x.shape[-1])

    def output_rows(self, gradient: Tensor) -> Tensor | None:
        """The gradient at the output of a call as ``[groups, n, rows]``, where it meets the input vectors one to one; else None."""
        return gradient.reshape(1, -1, gradient.shape[-1]) if type(self) in (Layer, TransposedLinear) else None

    def view(self, gradient: Tensor) -> Tensor:
        """The weight's gradient as ``[groups, rows, ..., width]``; a view on it where it is dense in memory."""
        return gradient.unsqueeze(0)


class TransposedLinear(Layer):
    """A weight stored as ``[in, out]``: Hugging Face's ``Conv1D``."""

    def width(self) -> int:
        return self.weight.shape[0]

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.t().unsqueeze(0)


class Convolution(Layer):
    """A convolution whose patches count as uncorrelated in space (SUA): the channels' second moment serves every kernel tap.

    Source: Grosse & Martens, "A Kronecker-factored approximate Fisher matrix for convolution layers", 2016, section 4.2.
    """

    kind = "convolution, SUA"

    def __init__(self, module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None = None) -> None:
        self.groups = int(module.groups)  # type: ignore[arg-type]
        super().__init__(module, weight, bias)

    def batched(self, x: Tensor) -> Tensor:
        """``x`` as ``[B, C, *space]``."""
        return x if x.dim() == self.weight.dim() else x.unsqueeze(0)

    def tokens(self, x: Tensor) -> torch.Size:
        x = self.batched(x)
        return x.shape[:1] + x.shape[2:]

    def vectors(self, x: Tensor) -> Tensor:
        x = self.batched(x)
        x = x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, -1)  # [B, g, C/g, positions]
        return x.permute(1, 0, 3, 2).reshape(self.groups, -1, x.shape[2])

    def view(self, gradient: Tensor) -> Tensor:
        shape = self.weight.shape
        taps = gradient.reshape(self.groups, shape[0] // self.groups, shape[1], math.prod(shape[2:]))
        return taps.transpose(2, 3)  # [g, out/g, taps, in/g]


class UnfoldedConvolution(Convolution):
    """A convolution taken exactly: a matrix that multiplies patches of channels x kernel, zeros of the padding included."""

    kind = "convolution, unfolded"

    def width(self) -> int:
        return math.prod(self.weight.shape[1:])

    def tokens(self, x: Tensor) -> torch.Size:
        return torch.Size()  # a patch spans several tokens: no mask fits

    def vectors(self, x: Tensor) -> Tensor:
        module, x = self.module, self.batched(x)
        kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)  # type: ignore[arg-type]
        for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):  # type: ignore[arg-type]
            x = x.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
        space = len(kernel)  # type: ignore[arg-type]
        x = x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])  # [B, g, C/g, *positions, *kernel]
        x = x.movedim(2, 2 + space)  # [B, g, *positions, C/g, *kernel]
        return x.transpose(0, 1).reshape(self.groups, -1, self.width())

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(self.groups, -1, self.width())


class TransposedConvolution(Convolution):
    """A transposed convolution: each input vector of channels meets one matrix ``[out x kernel, in]``, without approximation."""

    kind = "transposed convolution"

    def width(self) -> int:
        return self.weight.shape[0] // self.groups

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(self.groups, self.width(), -1).mT


class Embedding(Layer):
    """A table ``[V, D]``, which multiplies one-hot vectors: S is diagonal, the tokens' frequencies, ``padding_idx`` left out."""

    kind = "embedding"
    diagonal = True

    def width(self) -> int:
        return self.weight.shape[0]

    def tokens(self, x: Tensor) -> torch.Size:
        return x.shape

    def inputs(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        """How often each token occurs ``[V]``, and the number of tokens."""
        x = x.reshape(-1)
        counts = torch.ones(x.shape, device=x.device) if mask is None else mask.reshape(-1).float()
        if self.module.padding_idx is not None:
            counts = counts * (x != self.module.padding_idx)
        return counts.new_zeros(self.dim).index_add_(0, x, counts), counts.sum()

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.t().unsqueeze(0)


class PackedProjection(Layer):
    """The packed query, key and value projections ``[3E, E]`` of ``nn.MultiheadAttention``.

    One second moment serves all three while query, key and value are one tensor (``groups = 1``). The first call with different
    ones makes it three (``groups = 3``), see :meth:`split`.
    """

    kind = "attention input"
    role = "packed"

    def split(self) -> None:
        """From now on query, key and value have a second moment each."""
        self.groups = 3

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(self.groups, -1, gradient.shape[1])


class Projection(Layer):
    """One projection of ``nn.MultiheadAttention`` with a weight of its own: query, key, value or output."""

    def __init__(self, module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None, role: str) -> None:
        super().__init__(module, weight, bias)
        self.role = role
        self.kind = f"attention {role}"


class Blocks(Layer):
    """Another layer's use of its weight, whose inputs are taken in parts of equal length as if they were uncorrelated: S in blocks on
    the diagonal.

    Args:
        inner: the layer, of one group.
        blocks: how many parts; the length of an input is a multiple of it.
    """

    def __init__(self, inner: Layer, blocks: int) -> None:
        self.inner, self.groups, self.role = inner, blocks, inner.role
        super().__init__(inner.module, inner.weight)
        self.kind = f"{inner.kind}, in {blocks} blocks of {self.dim}"

    def width(self) -> int:
        return self.inner.width() // self.groups

    def tokens(self, x: Tensor) -> torch.Size:
        return self.inner.tokens(x)

    def inputs(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | int]:
        z, n = self.inner.inputs(x, mask)
        return z[0].unflatten(1, (self.groups, -1)).transpose(0, 1), n

    def output_rows(self, gradient: Tensor) -> Tensor | None:
        rows = self.inner.output_rows(gradient)
        return None if rows is None else rows.expand(self.groups, -1, -1)

    def view(self, gradient: Tensor) -> Tensor:
        return self.inner.view(gradient)[0].unflatten(-1, (self.groups, -1)).movedim(-2, 0)


def in_blocks(layer: Layer, max_dim: int | None) -> Layer | None:
    """The layer itself where its inputs are at most ``max_dim`` long, else in as few blocks as make them so; None where that cannot be:
    several groups, or a length without a divisor.
    """
    if layer.diagonal or max_dim is None or layer.dim <= max_dim:
        return layer
    width = layer.width()
    fitting = (blocks for blocks in range(2, width // 2 + 1) if width % blocks == 0 and width // blocks <= max_dim)
    blocks = next(fitting, None)
    return None if blocks is None or layer.groups > 1 or isinstance(layer, PackedProjection) else Blocks(layer, blocks)


_KNOWN = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED, nn.Embedding, nn.MultiheadAttention)


def own_forward(module: nn.Module) -> str | None:
    """Why a subclass of a supported layer is not taken for one: its forward is not the one whose inputs are known (a weight that is
    standardised or scaled, an input that is padded first). None where there is nothing of the kind.
    """
    for known in _KNOWN:
        if isinstance(module, known) and type(module).forward is not known.forward:
            return f"{type(module).__name__} has a forward of its own, other than {known.__name__}'s"
    return None


def find_layers(module: nn.Module, conv: str, include_bias: bool) -> Iterator[Layer]:
    """The uses that ``module`` itself, without its children, makes of its weights. Nothing for an unsupported module."""
    weight = module._parameters.get("weight")
    bias = module._parameters.get("bias") if include_bias else None
    if own_forward(module) is not None:
        return
    if isinstance(module, nn.MultiheadAttention):
        yield from _find_attention(module, include_bias)
    elif weight is None or isinstance(weight, nn.UninitializedParameter):
        return
    elif isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return  # out_proj of nn.MultiheadAttention, whose forward never runs: its attention yields it
    elif isinstance(module, nn.Linear):
        yield Layer(module, weight, bias)
    elif isinstance(module, _CONVOLUTIONS):
        pointwise = math.prod(module.kernel_size) == 1 and not any(module._reversed_padding_repeated_twice)
        if conv == "unfold":
            yield UnfoldedConvolution(module, weight, bias)
        else:
            # Under SUA a tap's inputs have no constant coordinate in common with the bias, unless there is one tap only.
            yield Convolution(module, weight, bias if pointwise else None)
    elif isinstance(module, _TRANSPOSED):
        yield TransposedConvolution(module, weight)
    elif isinstance(module, nn.Embedding) and not module.sparse:
        yield Embedding(module, weight)
    elif type(module).__name__ == "Conv1D" and hasattr(module, "nf") and weight.dim() == 2:
        yield TransposedLinear(module, weight, bias)


def _find_attention(module: nn.MultiheadAttention, include_bias: bool) -> Iterator[Layer]:
    def parameter(name: str) -> nn.Parameter | None:
        return module._parameters.get(name)

    packed = parameter("in_proj_weight")
    if packed is not None:
        yield PackedProjection(module, packed, parameter("in_proj_bias") if include_bias else None)
    for role, name in (("query", "q_proj_weight"), ("key", "k_proj_weight"), ("value", "v_proj_weight")):
        weight = parameter(name)
        if weight is not None:
            yield Projection(module, weight, None, role)  # the bias is one vector for all three: left to the base
    out = module.out_proj
    weight = out._parameters.get("weight")
    if weight is not None:
        yield Projection(module, weight, out._parameters.get("bias") if include_bias else None, "output")

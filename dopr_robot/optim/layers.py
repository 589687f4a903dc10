"""How each kind of layer uses its weight: which vectors it multiplies, and how its gradient looks as a matrix.

Every supported layer is, seen from its weight, one or several matrices that multiply vectors z. A :class:`Layer` says so for one
weight of one module: :meth:`Layer.collect` turns what the module was called with into ``[groups, n, d]``, and :meth:`Layer.view` shows
the weight's gradient as ``[groups, rows, ..., d]``, so that activation preconditioning is ``view @ inverse`` for all of them. Which module
has which of them, and how its inputs are watched, is the table of :mod:`dopr_robot.optim.kinds`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Stream = tuple[Tensor, Tensor | None]  # an input of a call, and the padding mask that fits it


class Layer:
    """One use of one weight by one module: ``y = W z`` for every input vector z of length ``dim``.

    Args:
        module: the module whose forward multiplies by the weight.
        weight: the parameter.
        bias: its bias where that is to be preconditioned with it, as the weight of an input that is always 1.

    Attributes:
        groups: number of matrices that the weight holds side by side, each with inputs of its own.
        dim: length of an input vector, with the homogeneous coordinate where there is a bias.
        diagonal: whether the second moment is a diagonal, as that of one-hot inputs.
        role: which of the module's inputs it takes, where it has several weights.
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

    def streams(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """What the weight meets of the arguments that the module was called with."""
        return [args[0] if args else next(iter(kwargs.values()))]

    def collect(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor | int]:
        """The input vectors ``[groups, n, dim]`` of a call, zeros where one does not count, and how many count, of each group or all."""
        ((x, mask),) = streams
        return self.inputs(x, mask)

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
        return gradient.reshape(1, -1, gradient.shape[-1]) if type(self) in _ROW_BY_ROW else None

    @property
    def by_rows(self) -> bool:
        """Whether some of the weight's entries along dimension 0 are some of its matrix's rows, whichever they are."""
        return self.groups == 1

    def view(self, gradient: Tensor) -> Tensor:
        """The weight's gradient as ``[groups, rows, ..., width]``; a view on it where it is dense in memory."""
        return gradient.unsqueeze(0)


class TransposedLinear(Layer):
    """A weight stored as ``[in, out]``: Hugging Face's ``Conv1D``."""

    by_rows = False

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
        shape = gradient.shape
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
    by_rows = False

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

    def collect(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor | int]:
        parts = [self.inputs(x, mask) for x, mask in streams]
        z, n = parts[0]
        if len(parts) == 1:  # query, key and value are one tensor
            return z.expand(self.groups, -1, -1), n
        longest = max(z.shape[1] for z, _ in parts)
        z = torch.cat([F.pad(z, (0, 0, 0, longest - z.shape[1])) for z, _ in parts])
        return z, torch.stack([n.to(z.dtype) if isinstance(n, Tensor) else z.new_full((), n) for _, n in parts])

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.reshape(self.groups, -1, gradient.shape[1])


class Part(Layer):
    """One weight of a module that has several: ``role`` says which."""

    def __init__(
        self, module: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None = None, *, role: str, kind: str
    ) -> None:
        super().__init__(module, weight, bias)
        self.role, self.kind = role, kind


class Bilinear(Layer):
    """``y_k = a^T W_k b``: a matrix that multiplies the products of the entries of two inputs, without approximation."""

    kind = "bilinear"

    def width(self) -> int:
        return math.prod(self.weight.shape[1:])

    def streams(self, input1: Tensor, input2: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [input1, input2]

    def collect(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor | int]:
        (a, mask), (b, _) = streams
        return self.inputs((a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2), mask)

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(1).unsqueeze(0)


class EmbeddingBag(Embedding):
    """A table whose rows are added up, or averaged, over bags: it multiplies vectors z of the rows' weights in a bag, of which S is taken
    by its diagonal, as if rows were uncorrelated. With one row a bag it is an embedding's.
    """

    kind = "embedding bag, rows as if uncorrelated"

    def streams(  # type: ignore[override]
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> list[Tensor]:
        """Every row that is taken, the bag that it goes to, its weight there, and the bags."""
        device, dtype = input.device, torch.promote_types(self.weight.dtype, torch.float32)
        if input.dim() == 2:
            bags = torch.arange(len(input), device=device)
            bag = bags.unsqueeze(-1).expand_as(input).flatten()
        else:
            assert offsets is not None
            starts = offsets[:-1] if self.module.include_last_offset else offsets
            bags = torch.arange(len(starts), device=device)
            bag = torch.bucketize(torch.arange(len(input), device=device), starts, right=True) - 1
        rows = input.flatten()
        weights = torch.ones(rows.shape) if per_sample_weights is None else per_sample_weights.flatten()
        weights = weights.to(device, dtype)
        if self.module.padding_idx is not None:
            weights = weights * (rows != self.module.padding_idx)
        if self.module.mode == "mean":
            weights = weights / weights.new_zeros(len(bags)).index_add_(0, bag, weights).clamp_min(1)[bag]
        return [rows, bag, weights, bags]

    def tokens(self, x: Tensor) -> torch.Size:
        return torch.Size()  # a bag holds several tokens: no mask fits

    def collect(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor | int]:
        rows, bag, weights, bags = (x for x, _ in streams)
        pairs, place = torch.unique(bag * self.dim + rows, return_inverse=True)  # a row may be in a bag twice
        z = weights.new_zeros(len(pairs)).index_add_(0, place, weights)
        return z.new_zeros(self.dim).index_add_(0, pairs % self.dim, z.square()), len(bags)


class Experts(Layer):
    """A stack of matrices in one parameter ``[experts, out, in]``, or ``[experts, in, out]``, each with inputs of its own.

    Args:
        role: the parameter's name in its module.
        transposed: whether it is ``[experts, in, out]``.
    """

    kind = "stack of matrices"

    def __init__(self, module: nn.Module, weight: nn.Parameter, *, role: str, transposed: bool) -> None:
        self.groups, self.role, self.transposed = weight.shape[0], role, transposed
        super().__init__(module, weight)
        self.kind = f"{self.groups} matrices, each with its own S"

    def width(self) -> int:
        return self.weight.shape[1 if self.transposed else 2]

    def collect(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor | int]:
        """From streams of inputs ``[n, width]``, each with the expert of every row."""
        x = torch.cat([x for x, _ in streams])
        expert = torch.cat([e for _, e in streams if e is not None])
        order = expert.argsort(stable=True)
        counts = torch.bincount(expert, minlength=self.groups)
        starts = counts.cumsum(0) - counts
        place = torch.arange(len(x), device=x.device) - starts.repeat_interleave(counts)
        z = x.new_zeros(self.groups, int(counts.max()), self.dim)
        z[expert[order], place] = x[order]
        return z, counts.to(z.dtype)

    def view(self, gradient: Tensor) -> Tensor:
        return gradient.mT if self.transposed else gradient


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

    @property
    def by_rows(self) -> bool:
        return self.inner.by_rows

    def streams(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return self.inner.streams(*args, **kwargs)

    def collect(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor | int]:
        z, n = self.inner.collect(streams)
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


_ROW_BY_ROW = (Layer, TransposedLinear, Bilinear)

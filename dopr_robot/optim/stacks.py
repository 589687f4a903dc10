"""Stacks of matrices in one parameter, as mixtures of experts have them: how their products are found, and watched.

Nothing but the products themselves says that a three-dimensional parameter is a stack, and which of its dimensions the inputs meet. So a
module that has one is watched while it runs: ``F.linear`` with ``weight[e]``, ``@``, ``bmm``, ``einsum``, ``grouped_mm`` with the stack,
with a part of it, or with what ``weight[ids]`` took out of it.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dopr_robot.optim.capture import Beginning, Recorder, watch_run
from dopr_robot.optim.layers import Experts, Layer
from dopr_robot.optim.untraced import untraced

Use = bool | str  # whether the stack is [experts, in, out], or why it is left to the base
_PATIENCE = 10  # since watching costs time
UNSEEN = "a stack of matrices: to be preconditioned once a product with it was seen"


def stacks_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that may be stacks."""
    return {name: p for name, p in module._parameters.items() if p is not None and p.dim() == 3 and p.shape[0] > 1}


def find_stacks(module: nn.Module, uses: Mapping[nn.Parameter, Use]) -> Iterator[Layer]:
    """Those whose use is known."""
    for name, weight in stacks_of(module).items():
        transposed = uses.get(weight)
        if isinstance(transposed, bool):
            yield Experts(module, weight, role=name, transposed=transposed)


def watch_stacks(
    owner: Any, modules: Iterable[nn.Module], recorders: Mapping[nn.Module, Mapping[str, Recorder]]
) -> list[Any]:
    """Watch modules that may have stacks, and tell ``owner.stack_used`` of each use that is new; returns the handles."""
    return [
        handle
        for module in modules
        for handle in watch_run(module, StackRecorder(owner, module, recorders.get(module, {})))
    ]


class StackRecorder(Beginning):
    """Forward pre-hook of a module that may have stacks."""

    def __init__(self, owner: Any, module: nn.Module, recorders: Mapping[str, Recorder]) -> None:
        self.owner = weakref.ref(owner)
        self.module = module
        self.weights = stacks_of(module)
        self.recorders = dict(recorders)
        self.left: set[str] = set()
        self.idle: Counter[str] = Counter()
        self.running: list[_Products] = []

    @untraced
    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        names = [
            name
            for name in self.weights
            if name not in self.left
            and self.weights[name].requires_grad
            and (name not in self.recorders or self.recorders[name].factor.due)
        ]
        if names and torch.is_grad_enabled():
            # The module's own, since a sharded model exchanges them for the run.
            self.running.append(_Products({name: module._parameters[name] for name in names}))
            self.running[-1].__enter__()

    def end(self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        if not self.running:
            return
        products = self.running.pop()
        products.__exit__(None, None, None)
        for name, seen in products.seen.items():
            ways = {product.transposed for product in seen}
            why = products.odd.get(name) or ("multiplied from both sides" if len(ways) > 1 else None)
            if why is None and not ways:
                self.idle[name] += 1
                if name in self.recorders or self.idle[name] < _PATIENCE:
                    continue
                why = f"multiplied by nothing in {_PATIENCE} runs"
            layer = Experts(self.module, self.weights[name], role=name, transposed=ways == {True})
            why = why and f"a stack of matrices that is {why}: left to the base"
            if why is not None or name not in self.recorders:
                owner = self.owner()
                recorder = None if owner is None else owner.stack_used(layer, why)
                if recorder is None:
                    self.left.add(name)
                    continue
                self.recorders[name] = recorder
            parts = [(product.x, product.expert) for product in seen]
            self.recorders[name].await_([product.output for product in seen], parts)


class _Product(NamedTuple):
    """Inputs [n, d], the matrix that each met [n], and what came out."""

    x: Tensor
    expert: Tensor
    output: Tensor
    transposed: bool


class _Products(TorchFunctionMode):
    """Looks for products with stacks.

    Attributes:
        seen: by the stack's name.
        odd: what else was done with one.
    """

    def __init__(self, weights: Mapping[str, Any]) -> None:
        super().__init__()
        self.seen: dict[str, list[_Product]] = {name: [] for name in weights}
        self.odd: dict[str, str] = {}
        # The stacks, and what was taken out of them: which of their matrices each holds.
        self._sources = [
            _Source(name, weight, torch.arange(len(weight), device=weight.device)) for name, weight in weights.items()
        ]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not (isinstance(output, Tensor) and output.requires_grad):
            return output  # views in a tuple among others
        operands = [a for each in args for a in (each if isinstance(each, list | tuple) else (each,))]
        for source in list(self._sources):
            mine = [a for a in operands if isinstance(a, Tensor) and _part_of(a, source.tensor)]
            if mine and not _part_of(output, source.tensor):
                self._note(source, mine, getattr(func, "__name__", str(func)), args, kwargs, output)
        return output

    def _note(self, source: "_Source", mine: list[Tensor], name: str, args: Any, kwargs: Any, output: Tensor) -> None:
        if name == "__getitem__" and mine[0] is source.tensor:
            index = args[1]
            if isinstance(index, Tensor) and index.dim() == 1 and index.dtype in (torch.int32, torch.int64):
                self._sources.append(_Source(source.name, output, source.which[index]))
                return
        found = _factors_of(name, args, kwargs, mine[0]) if len(mine) == 1 else None
        product = None if found is None else source.product(mine[0], *found, output)
        if product is None:
            self.odd.setdefault(source.name, f"used otherwise too (by {name})")
        else:
            self.seen[source.name].append(product)


class _Source(NamedTuple):
    """Matrices of one stack: ``tensor`` [m, rows, columns], and which they are there [m]."""

    name: str
    tensor: Tensor
    which: Tensor

    def product(self, w: Tensor, x: Tensor, side: int, offsets: Tensor | None, output: Tensor) -> _Product | None:
        """Of ``x`` [..., d] and ``w``, one of the matrices or several, whose dimension ``side`` the inputs meet. None where it is not."""
        width, (step, *strides) = w.shape[side], self.tensor.stride()
        if width == self.tensor.shape[2] and w.stride(side) == strides[1]:
            transposed = False
        elif width == self.tensor.shape[1] and w.stride(side) == strides[0]:
            transposed = True
        else:
            return None
        x, first = x.detach(), (w.storage_offset() - self.tensor.storage_offset()) // step
        if w.dim() == 2:
            x = x.reshape(-1, width)
            return _Product(x, self.which[first].expand(len(x)), output, transposed)
        which = self.which[first : first + len(w)]
        if w.stride(0) != step or (offsets is not None and x.dim() != 2):
            return None
        if offsets is not None:
            lengths = offsets.diff(prepend=offsets.new_zeros(1))
            return _Product(x[: int(offsets[-1])], which.repeat_interleave(lengths), output, transposed)
        x = x.expand(*x.shape[:-3], len(w), *x.shape[-2:]).movedim(-3, 0).reshape(len(w), -1, width)
        return _Product(x.flatten(0, 1), which.repeat_interleave(x.shape[1]), output, transposed)


def _part_of(x: Tensor, weight: Tensor) -> bool:
    """Whether ``x`` is the weight or a view of it."""
    if x is weight:
        return True
    if x.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr() or not x.numel():
        return False
    return 0 <= x.storage_offset() - weight.storage_offset() < weight.numel()


def _factors_of(name: str, args: Any, kwargs: Any, w: Tensor) -> tuple[Tensor, int, Tensor | None] | None:
    """What ``w`` was multiplied by as ``[..., d]``, the dimension of ``w`` that was summed over, and where groups of inputs end."""
    if name == "linear" and args[1] is w:
        return args[0], -1, None
    if name in ("matmul", "__matmul__", "mm", "bmm"):
        a, b = args[:2]
        if a.dim() < 2 or b.dim() < 2:
            return (a.unsqueeze(0), -2, None) if b is w else None
        return (a, -2, None) if b is w else (b.mT, -1, None)
    if name in ("_grouped_mm", "grouped_mm", "grouped_mm_fallback") and args[1] is w:
        offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
        return None if offsets is None else (args[0], -2, offsets)
    if name == "einsum":
        return _einsum_factors(args[0], args[1] if isinstance(args[1], list | tuple) else args[1:], w)
    return None


def _einsum_factors(equation: str, operands: Sequence[Tensor], w: Tensor) -> tuple[Tensor, int, None] | None:
    letters, arrow, out = equation.replace(" ", "").partition("->")
    terms = letters.split(",")
    if not arrow or len(operands) != 2 or "." in equation or any(len(set(term)) < len(term) for term in terms):
        return None
    here = 0 if operands[0] is w else 1
    mine, others, x = terms[here], terms[1 - here], operands[1 - here]
    summed = set(mine) - set(out)
    if len(summed) != 1 or not summed <= set(others) or set(others) - set(out) != summed:
        return None
    (letter,) = summed
    shared = [each for each in mine if each in others and each != letter]
    if shared not in ([], [mine[0]]) or (shared and w.dim() != 3):
        return None
    rest = [each for each in others if each not in (letter, *shared)]
    x = x.permute([others.index(each) for each in (*shared, *rest, letter)])
    return x.reshape(x.shape[0] if shared else 1, -1, x.shape[-1]), mine.index(letter) - len(mine), None

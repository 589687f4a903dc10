"""Which parameters are preconditioned, and why the others are not."""

import fnmatch
from collections.abc import Container, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from dopr_robot.optim.factors import Factor
from dopr_robot.optim.kinds import Options, find_layers, reasons_to_leave
from dopr_robot.optim.layers import Blocks, Layer, in_blocks
from dopr_robot.optim.stacks import UNSEEN, Use


def find_factors(
    model: Any,
    *,
    form: str = "batch",
    conv: str,
    include_bias: bool,
    stacks: Mapping[nn.Parameter, Use] = MappingProxyType({}),
    max_dim: int | None = None,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    must_match: bool = True,
) -> tuple[list[Factor], dict[str, str]]:
    """The factors of ``model``'s weights, and for every parameter without one the reason.

    Args:
        model: a module, or what has ``named_parameters()`` and ``modules()`` like one.
        stacks: the uses of stacks of matrices that were seen.
        must_match: whether every pattern of ``include`` and ``exclude`` has to match a weight.

    Raises:
        ValueError: where one does not.
    """
    names = {parameter: plain_name(name) for name, parameter in model.named_parameters()}
    allowed = set(names if parameters is None else parameters)
    uses: dict[nn.Parameter, list[Layer]] = {}
    odd: dict[nn.Parameter | None, str] = {}
    options = Options(conv, include_bias, stacks)
    for module in model.modules():
        odd |= reasons_to_leave(module, options)
        for layer in find_layers(module, options):
            uses.setdefault(layer.weight, []).append(layer)
    known = [weight for weight in (*uses, *(p for p, why in odd.items() if why == UNSEEN)) if weight in names]
    chosen = select([names[weight] for weight in known], include, exclude, must_match=must_match)
    factors: list[Factor] = []
    left: dict[str, str] = {}
    for parameter, name in names.items():
        layers = uses.get(parameter)
        reason = _reason_to_leave(parameter, layers)
        if layers is not None and name not in chosen:
            reason = "not chosen by include/exclude"
        elif parameter not in allowed:
            reason = "not a parameter of the base optimizer"
        if reason is None and layers is not None:
            _leave_odd_biases(layers)
            narrow = [each for layer in layers if (each := in_blocks(layer, max_dim)) is not None]
            blocked = any(isinstance(layer, Blocks) for layer in narrow)
            if len(narrow) < len(layers) or (blocked and any(layer.diagonal for layer in layers)):
                wide = max(layer.dim for layer in layers if not layer.diagonal)
                left[name] = f"its {wide:,} inputs are more than max_dim={max_dim:,}, and have no blocks"
                continue
            factors.append(Factor(name, narrow, form))
        else:
            left[name] = odd.get(parameter) or reason or "not the weight of a supported layer"
    with_bias = {names[factor.bias] for factor in factors if factor.bias is not None}
    return factors, {name: reason for name, reason in left.items() if name not in with_bias}


def select(
    names: Sequence[str], include: Iterable[str] | None, exclude: Iterable[str] | None, *, must_match: bool = True
) -> set[str]:
    """The names that patterns choose. Raises ValueError for a pattern that matches none, where it must."""
    for kind, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{kind}={patterns!r} must be a list of patterns: [{patterns!r}]")
        for pattern in patterns or ():
            if must_match and not fnmatch.filter(names, pattern):
                raise ValueError(f"{kind} pattern {pattern!r} matches no weight: the first are {', '.join(names[:3])}")
    chosen = set(names) if include is None else {name for pattern in include for name in fnmatch.filter(names, pattern)}
    return chosen - {name for pattern in exclude or () for name in fnmatch.filter(names, pattern)}


def _reason_to_leave(parameter: nn.Parameter, layers: Sequence[Layer] | None) -> str | None:
    """Why a parameter cannot be preconditioned, or None."""
    if layers is None:
        return (
            "a bias, a norm's scale or another vector" if parameter.dim() < 2 else "not the weight of a supported layer"
        )
    full = {(type(layer), layer.groups, layer.width()) for layer in layers if not layer.diagonal}
    if len(full) > 1 or (
        len(full) == 1 and any(layer.diagonal for layer in layers) and full != {(Layer, 1, parameter.shape[1])}
    ):
        return "tied between layers that use it as different matrices"
    return None


def reason_to_leave_stack(name: str, layer: Layer, options: Mapping[str, Any]) -> str | None:
    """Why a stack of matrices is left to the base under ``options`` of :func:`find_factors`, or None."""
    if not select([name], options["include"], options["exclude"], must_match=False):
        return "not chosen by include/exclude"
    if in_blocks(layer, options["max_dim"]) is None:
        return f"its {layer.dim:,} inputs are more than max_dim={options['max_dim']:,}, and have no blocks"
    return None


def _leave_odd_biases(layers: Sequence[Layer]) -> None:
    """Biases of tied layers join only where they are tied too: one weight cannot be extended by two biases."""
    if len({id(layer.bias) for layer in layers}) > 1:
        for layer in layers:
            if layer.bias is not None:
                layer.bias, layer.dim = None, layer.dim - 1


NEW = "came into the model after the optimizer was made: give it to add_param_group"
_WRAPPERS = ("module.", "_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers add: DDP, ``torch.compile``, activation checkpointing, FSDP.

    >>> plain_name("module.net._orig_mod.0.weight")
    'net.0.weight'
    """
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper) if name.startswith(wrapper) else name.replace(f".{wrapper}", ".")
    return name if not name.startswith(_WRAPPERS) else plain_name(name)


class Row(NamedTuple):
    """One parameter of the report."""

    name: str
    shape: tuple[int, ...]
    preconditioned: bool
    how: str

    @property
    def numel(self) -> int:
        """Number of entries."""
        total = 1
        for size in self.shape:
            total *= size
        return total


class Coverage(list[Row]):
    """The rows of the report; ``str()`` is the table to print."""

    @classmethod
    def of(
        cls,
        model: Any,
        factors: Sequence[Factor],
        left: dict[str, str],
        *,
        started: bool,
        off: Container[nn.Parameter] = (),
        others: Iterable[tuple[str, nn.Parameter]] = (),
    ) -> "Coverage":
        """The report over ``model`` as it is now.

        Args:
            started: whether a step was taken, so that a layer that saw no input never fired.
            off: weights whose group says ``precondition=False``.
            others: parameters of the optimizer that are not the model's.
        """
        rows: dict[nn.Parameter, tuple[bool, str]] = {}
        for factor in factors:
            kind = " + ".join(dict.fromkeys(layer.kind for layer in factor.layers))
            if len(factor.layers) > 1:
                kind += f", {len(factor.layers)} modules"
            fired = factor.refreshed >= 0 or not started
            if not factor.weight.requires_grad:
                rows[factor.weight] = (False, "wants no gradient")
            elif factor.weight in off:
                rows[factor.weight] = (False, f"{kind}; its group says precondition=False")
            elif fired:
                own = "" if factor.damping is None else f", damping {factor.damping:g}"
                rows[factor.weight] = (True, f"{kind}; {factor.described()}{own}")
            else:
                rows[factor.weight] = (False, f"{kind}: NEVER FIRED, no input was seen; left to the base")
            if factor.bias is not None:
                rows[factor.bias] = (rows[factor.weight][0], f"with {factor.name}")
        report = cls(
            Row(name, tuple(parameter.shape), *rows.get(parameter, (False, left.get(name, NEW))))
            for name, parameter in ((plain_name(name), p) for name, p in model.named_parameters())
        )
        report += [Row(name, tuple(p.shape), False, "not a parameter of the model") for name, p in others]
        return report

    @property
    def matrix_share(self) -> float:
        """Share of the entries of weight matrices (two dimensions or more) that are preconditioned."""
        matrices = [row for row in self if len(row.shape) > 1]
        return sum(row.numel for row in matrices if row.preconditioned) / max(sum(row.numel for row in matrices), 1)

    @property
    def never_fired(self) -> list[str]:
        """Names of weights that look covered and whose layers saw no input."""
        return [row.name for row in self if "NEVER FIRED" in row.how]

    def __str__(self) -> str:
        width = max((len(row.name) for row in self), default=4)
        lines = [f"{'parameter':<{width}}  {'shape':>20}  preconditioned"]
        for row in self:
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append(f"{row.name:<{width}}  {shape:>20}  {'yes: ' if row.preconditioned else 'no: '}{row.how}")
        lines.append(f"{self.matrix_share:.1%} of the entries of weight matrices are preconditioned")
        return "\n".join(lines)

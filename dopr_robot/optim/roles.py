"""Which weights go to Muon, and why the others do not: ``print(muon_roles(model))``."""

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from dopr_robot.optim.coverage import find_factors, plain_name
from dopr_robot.optim.role_rules import HIDDEN, Found, find_roles


class Role(NamedTuple):
    """What one parameter is to Muon.

    Attributes:
        name, shape: the parameter's.
        role: ``"hidden matrix"``, or what it is else.
        muon: whether it goes to Muon; else to AdamW.
        parts: so many matrices lie on top of one another in it (the gates of an LSTM, packed query, key and value), each of which Muon
            takes by itself.
        transposed: whether its rows are inputs: Hugging Face's ``Conv1D``, transposed convolutions.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    muon: bool
    parts: int = 1
    transposed: bool = False


class Roles(list[Role]):
    """A row for each parameter that wants a gradient; ``str()`` is a table of the matrices."""

    def __str__(self) -> str:
        matrices = [row for row in self if len(row.shape) > 1]
        width = max((len(row.name) for row in matrices), default=9)
        lines = [f"{'parameter':<{width}}  {'shape':>20}  goes to"]
        for row in matrices:
            shape = "x".join(map(str, row.shape))
            parts = f", {row.parts} in one" if row.muon and row.parts > 1 else ""
            lines.append(f"{row.name:<{width}}  {shape:>20}  {'Muon' if row.muon else 'AdamW'}: {row.role}{parts}")
        return "\n".join([*lines, self.summary()])

    def summary(self) -> str:
        """In one line: how many go to Muon, and by what role the other matrices do not."""
        hidden, others = [row for row in self if row.muon], [row for row in self if not row.muon and len(row.shape) > 1]
        named: dict[str, list[str]] = {}
        for row in others:
            named.setdefault(row.role, []).append(row.name)
        listed = "; ".join(
            f"{role} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for role, names in named.items()
        )
        return f"Muon takes {len(hidden)} hidden matrices; AdamW takes vectors" + (f" and {listed}" if listed else "")


def muon_roles(model: nn.Module, hidden: str | Sequence[str] = "roles") -> Roles:
    """Which of ``model``'s parameters go to Muon, and why the others do not.

    Args:
        model: of any kind; it is not run.
        hidden: ``"roles"``: what the layers are decides. ``"order"``, the rule of former releases: all matrices but embeddings and the one
            registered last. Or glob patterns of names: just these, of which those that begin with ``!`` are none (with such alone: by role,
            without them).

    Raises:
        ValueError: for a pattern that matches no matrix, or another word.
    """
    if isinstance(hidden, str) and hidden not in ("roles", "order"):
        raise ValueError(f"hidden={hidden!r} must be 'roles', 'order' or a list of patterns: [{hidden!r}]")
    parameters = [(plain_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
    found, former = find_roles(model), _by_order(model) if hidden == "order" else set()
    rows = Roles()
    for name, parameter in parameters:
        shape = tuple(parameter.shape)
        role, parts, transposed = found.get(parameter, Found("vector" if len(shape) < 2 else "no layer's weight"))
        if hidden == "order":
            rows.append(Role(name, shape, HIDDEN if name in former else role, name in former))
        else:
            rows.append(Role(name, shape, role, role == HIDDEN, parts, transposed))
    return rows if isinstance(hidden, str) else _named(rows, hidden)


def _named(rows: Roles, patterns: Sequence[str]) -> Roles:
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    matrices = [row.name for row in rows if len(row.shape) > 1]
    for pattern in (*wanted, *unwanted):
        if not fnmatch.filter(matrices, pattern):
            raise ValueError(f"hidden pattern {pattern!r} matches no matrix: the first are {', '.join(matrices[:3])}")
    chosen = {name for pattern in wanted for name in fnmatch.filter(matrices, pattern)}
    if not wanted:
        chosen = {row.name for row in rows if row.muon}
    chosen -= {name for pattern in unwanted for name in fnmatch.filter(matrices, pattern)}

    def decided(row: Role) -> Role:
        if row.muon == (row.name in chosen):
            return row
        return row._replace(muon=not row.muon, role=f"{row.role}, by name")

    return Roles(decided(row) for row in rows)


def _by_order(model: nn.Module) -> set[str]:
    """Names of the matrices that are neither a table nor the last one: the rule before there were roles."""
    factors, _ = find_factors(model, conv="sua", include_bias=False)
    hidden = [factor.name for factor in factors if factor.diagonal is None]
    tied_output = any(factor.diagonal is not None and factor.matrix is not None for factor in factors)
    return set(hidden if tied_output else hidden[:-1])

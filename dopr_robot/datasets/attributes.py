"""What a store says about itself: task, control rate, observations, the action's meaning, origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dopr_robot.errors import UserError

SCHEMA_VERSION = 2
"""What is written. 2 has the task's options; in 1 what ``dopr collect`` noted (``carried``) held them."""
GROUP_KEY = "demonstrations"
"""The attribute of the root group that holds :class:`Attributes`."""


@dataclass(frozen=True)
class ActionAttributes:
    """What the numbers of an action mean.

    Attributes:
        meaning: "joint position", "joint delta", "end-effector pose", "motor thrust", ...
        absolute: whether the action is a target (True) or a change (False); None where unknown.
        units: of all entries, or one text an entry ("m", "rad"); empty where unknown.
        names: of the entries; empty where unknown.
        low, high: bounds, one number an entry; empty where there are none.
    """

    meaning: str = ""
    absolute: bool | None = None
    units: str | tuple[str, ...] = ""
    names: tuple[str, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_type("action.meaning", self.meaning, str)
        _check_type("action.absolute", self.absolute, bool | None)
        if not isinstance(self.units, str):
            _set_tuple(self, "units", "action.units", str)
        for name, kind in (("names", str), ("low", float), ("high", float)):
            _set_tuple(self, name, f"action.{name}", kind)
        if len(self.low) != len(self.high):
            raise UserError(f"action.low has {len(self.low)} entries and action.high {len(self.high)}: give both alike")


@dataclass(frozen=True)
class Attributes:
    """The root group's attribute ``demonstrations``; it checks itself when made.

    A store without it (somebody else's) has ``Attributes()``: nothing known, everything else works.

    Attributes:
        task: Gymnasium id of the task, or None.
        control_hz: steps a second, or None.
        observations: the keys under ``data/`` that are observations.
        action: what the action means.
        simulator, simulator_version: what the episodes were made in ("mujoco", "4.0.0"; "real robot").
        source: where the data come from: a program, a person, an address.
        licence: an SPDX identifier, or the words of the source.
        provenance: what was done to them since, one line a step.
        carried: what another format's file had and this layout has no place for (environment metadata and the like),
            JSON values by name; written back when the store is converted to that format.
        options: of the task, JSON values by name; empty: its defaults.
        schema_version: of this description.
    """

    task: str | None = None
    control_hz: float | None = None
    observations: tuple[str, ...] = ()
    action: ActionAttributes = field(default_factory=ActionAttributes)
    simulator: str = ""
    simulator_version: str = ""
    source: str = ""
    licence: str = ""
    provenance: tuple[str, ...] = ()
    carried: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise UserError(
                f"schema_version is {self.schema_version!r} and this dopr_robot reads 1 to {SCHEMA_VERSION}: "
                "use the dopr_robot that wrote it, or a newer one"
            )
        _check_type("task", self.task, str | None)
        for name in ("simulator", "simulator_version", "source", "licence"):
            _check_type(name, getattr(self, name), str)
        if self.control_hz is not None:
            _check_type("control_hz", self.control_hz, int | float)
            if not 0 < self.control_hz < float("inf"):
                raise UserError(f"control_hz is {self.control_hz!r}: it must be a positive number of steps a second")
            object.__setattr__(self, "control_hz", float(self.control_hz))
        if isinstance(self.action, Mapping):
            object.__setattr__(self, "action", _from_mapping(ActionAttributes, self.action, "action."))
        _check_type("action", self.action, ActionAttributes)
        _check_type("options", self.options, Mapping)
        _check_type("carried", self.carried, Mapping)
        _set_tuple(self, "observations", "observations", str)
        _set_tuple(self, "provenance", "provenance", str)

    @classmethod
    def from_json(cls, value: object) -> Attributes:
        """The attributes that :meth:`to_json` wrote. Raises UserError naming the field that is wrong."""
        if not isinstance(value, Mapping):
            raise UserError(f"{GROUP_KEY} is {type(value).__name__}: a JSON object is expected")
        return _from_mapping(cls, _upgraded(value), "")

    def to_json(self) -> dict[str, Any]:
        """JSON values only; tuples become lists."""
        return dataclasses.asdict(self)

    def with_provenance(self, line: str, **changes: Any) -> Attributes:
        """A copy with ``changes`` and one more line of provenance."""
        return dataclasses.replace(self, provenance=(*self.provenance, line), **changes)


def _upgraded(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Attributes of schema version 1 in today's form."""
    if value.get("schema_version") != 1:
        return value
    carried = value.get("carried")
    noted = carried.get("collect") if isinstance(carried, Mapping) else None
    options = noted.get("options") if isinstance(noted, Mapping) else None
    value = {**value, "schema_version": SCHEMA_VERSION}
    if not isinstance(carried, Mapping) or not isinstance(noted, Mapping) or not isinstance(options, Mapping):
        return value
    noted = {name: each for name, each in noted.items() if name != "options"}
    return {**value, "options": options, "carried": {**carried, "collect": noted}}


def _from_mapping(cls: type, value: Mapping[str, Any], prefix: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(value) - known)
    # An unknown version is the better explanation of an unknown field, so it is left to the class to refuse.
    if unknown and value.get("schema_version", SCHEMA_VERSION) == SCHEMA_VERSION:
        raise UserError(f"unknown field {prefix}{unknown[0]} (known: {', '.join(sorted(known))})")
    return cls(**{name: entry for name, entry in value.items() if name in known})


def _check_type(name: str, value: object, kind: Any) -> None:
    # bool is an int to Python, and never a rate or a version to us.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind == (int | float)):
        wanted = getattr(kind, "__name__", str(kind))
        raise UserError(f"{name} is {value!r}: {wanted} is expected")


def _set_tuple(instance: object, attribute: str, name: str, kind: type) -> None:
    value = getattr(instance, attribute)
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise UserError(f"{name} is {value!r}: a list of {kind.__name__} is expected")
    try:
        converted = tuple(float(entry) if kind is float else entry for entry in value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is {value!r}: a list of numbers is expected") from None
    for entry in converted:
        _check_type(name, entry, kind)
    object.__setattr__(instance, attribute, converted)

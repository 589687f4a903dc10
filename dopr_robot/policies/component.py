"""An exchangeable part of a policy."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar

from dopr_robot.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Component(Generic[T]):
    """How to build a part, the dataclass of its options (whose first argument it takes), and a few words on it.

    Raises:
        UserError: ``config`` is no dataclass with defaults for everything, or has no ``name``.
    """

    build: Callable[..., T]
    config: type[Any]
    summary: str

    def __post_init__(self) -> None:
        named = is_dataclass(self.config) and isinstance(self.config, type)
        if not named or "name" not in {each.name for each in fields(self.config)}:
            raise UserError(f"{self.config!r} has to be a dataclass with a field 'name' and defaults for all fields")

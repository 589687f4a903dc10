"""An exchangeable part of a policy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Component(Generic[T]):
    """How to build a part, the dataclass of its options (whose first argument it takes), and a few words on it."""

    build: Callable[..., T]
    config: type[Any]
    summary: str

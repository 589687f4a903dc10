"""Dataclass options from plain mappings, with the schema's names and types enforced."""

from collections.abc import Mapping
from typing import Any, TypeVar

from dopr_robot.settings import typed

T = TypeVar("T")


def options(schema: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass ``schema`` with ``values`` over its defaults.

    Raises:
        UserError: a key that the schema does not have (with the closest that it has), or a value of another type.
    """
    return typed(schema, values, where)

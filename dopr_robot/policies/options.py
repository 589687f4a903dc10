"""Dataclass options from plain mappings, with the schema's names and types enforced."""

from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from dopr_robot.errors import UnknownNameError, UserError

T = TypeVar("T")


def options(schema: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass ``schema`` with ``values`` over its defaults.

    Raises:
        UserError: a key that the schema does not have (with the closest that it has), or a value of another type.
    """
    base = OmegaConf.structured(schema)
    try:
        merged = OmegaConf.merge(base, OmegaConf.create(dict(values)))
    except ConfigKeyError as error:
        inner = str(error.full_key).rpartition(".")[0]
        known = OmegaConf.select(base, inner) if inner else base
        raise UnknownNameError(
            f"key in {where}{'.' * bool(inner)}{inner}", str(error.key), [str(key) for key in known]
        ) from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}.{error.full_key}: {str(error).splitlines()[0]}") from None
    made = OmegaConf.to_object(merged)
    assert isinstance(made, schema)
    return made

"""Training state on disk without pickles: tensors in safetensors, everything around them in JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dopr_robot.errors import DamagedError
from dopr_robot.reading import read_json

# JSON objects have text keys alone, and JSON has no tuples: both are written as tagged objects.
_TENSOR, _MAPPING, _TUPLE = "tensor", "mapping", "tuple"


def save_state(state: Any, stem: Path) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values to ``<stem>.safetensors`` and ``<stem>.json``.

    Raises:
        TypeError: a value that is none of these; the message gives its place.
    """
    tensors: dict[str, torch.Tensor] = {}

    def encode(value: Any, where: str) -> Any:
        if isinstance(value, torch.Tensor):
            # A copy of its own, since safetensors refuses tensors that share memory.
            tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {_TENSOR: where}
        if isinstance(value, dict):
            return {_MAPPING: [[encode(key, where), encode(each, f"{where}/{key}")] for key, each in value.items()]}
        if isinstance(value, tuple):
            return {_TUPLE: [encode(each, f"{where}/{index}") for index, each in enumerate(value)]}
        if isinstance(value, list):
            return [encode(each, f"{where}/{index}") for index, each in enumerate(value)]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(
            f"training state holds a {type(value).__name__} at {where}: only tensors and plain values can be saved"
        )

    skeleton = encode(state, "state")
    save_file(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(json.dumps(skeleton) + "\n", encoding="utf-8")


def load_state(stem: Path) -> Any:
    """What :func:`save_state` wrote, on the CPU. Raises DamagedError where it wrote something else."""
    try:
        tensors = load_file(stem.with_suffix(".safetensors"))
    except (SafetensorError, OSError) as error:
        raise DamagedError(
            f"{stem.with_suffix('.safetensors')} can not be read ({str(error).splitlines()[0]})"
        ) from None

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(each) for each in value]
        if not isinstance(value, dict):
            return value
        ((tag, content),) = value.items()
        if tag == _TENSOR:
            return tensors[content]
        if tag == _TUPLE:
            return tuple(decode(each) for each in content)
        return {decode(key): decode(each) for key, each in content}

    file = stem.with_suffix(".json")
    try:
        return decode(read_json(file, object))
    except (ValueError, TypeError, KeyError, RecursionError, OSError) as error:
        raise DamagedError(
            f"{file} is no training state ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
        ) from None

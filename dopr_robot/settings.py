"""Settings as people write them: ``key=value`` words and YAML files, one grammar for both, and the dataclasses that say what they mean.

A value's text is kept until the type of what it is for is known. For a text it is taken as it stands (``2024_11_06``,
``lr=3/a, b (1).zarr``); everything else is read by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema):
``1e-3`` is a number, ``yes`` a text. Nothing is ever evaluated: ``${...}`` is text like any other.
"""

import dataclasses
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dopr_robot.errors import UnknownNameError, UserError, closest

T = TypeVar("T")
LARGEST = 100_000
"""Values that a YAML file may hold; a few lines of aliases can stand for more than there is memory."""


class Word(str):
    """The value of a ``key=value`` word, as it was typed."""


class Plain(str):
    """A value of a YAML file that stands there without quotes."""


_NULL = re.compile(r"(?:null|Null|NULL|~|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*\Z")


# Reading and writing


def is_setting(word: str) -> bool:
    """Whether a word is ``key=value``: what stands before the first ``=`` is a key, and not the beginning of a path."""
    key, equals, _ = word.partition("=")
    return bool(equals) and _KEY.match(key) is not None


def parse_words(words: Iterable[str]) -> dict[str, Word]:
    """``["optimizer.lr=1e-3"]`` as ``{"optimizer.lr": Word("1e-3")}``; of two values for one key the later.

    Raises UserError for a word that is not ``key=value``.
    """
    for word in words:
        if not is_setting(word):
            raise UserError(f"{word!r} is not of the form key=value: optimizer.lr=1e-3")
    return {key: Word(value) for key, _, value in (word.partition("=") for word in words)}


def read_yaml(path: Path, kind: str, names: Iterable[str]) -> dict[str, Any]:
    """The mapping in a YAML file; values without quotes are :class:`Plain`.

    Args:
        path: the file, UTF-8.
        kind: what it should be, for messages.
        names: of the keys that are expected, for messages.

    Raises:
        UserError: no such file, not YAML, a key that stands there twice, or no mapping.
    """
    try:
        values = _load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} {'does not exist' if not path.exists() else f'can not be read: {error}'}") from None
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no {kind}: a mapping with {', '.join(names)} is expected")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML that :func:`read_yaml` and readers of YAML 1.1 both read as these values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Mappings, sequences and texts; what a text without quotes means is not decided here."""

    count = 0

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        self.count += 1
        if self.count > LARGEST:
            raise yaml.YAMLError(f"it holds more than {LARGEST} values")
        return self.yaml_constructors.get(node.tag, self.yaml_constructors[None])(self, node)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands there twice", key.start_mark)
        seen.add(name)
        if isinstance(value, yaml.ScalarNode) and value.value == "" and value.style is None and ":" in str(name):
            raise yaml.constructor.ConstructorError(
                None, None, f"{name!r} has no value: {{key: value}} wants a space after the colon", key.start_mark
            )
    loader.flatten_mapping(node)
    return {_hashable(loader, key): loader.construct_object(value) for key, value in node.value}


def _hashable(loader: _Loader, node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(None, None, "a key has to be a single value", node.start_mark)
    return loader.construct_object(node)


# The Loader's own tables: PyYAML's would read YAML 1.1, and make dates, sets and bytes.
_Loader.yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile(r"<<\Z"))]}
_Loader.yaml_constructors = {
    "tag:yaml.org,2002:str": lambda loader, node: Plain(node.value) if node.style is None else node.value,
    "tag:yaml.org,2002:seq": lambda loader, node: [loader.construct_object(each) for each in node.value],
    "tag:yaml.org,2002:map": _mapping,
    None: yaml.SafeLoader.construct_undefined,
}


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or the core schema of 1.2 takes for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _pattern in (_INT, _FLOAT, _BOOL, _NULL):
    _Dumper.add_implicit_resolver("tag:dopr,2026:quoted", _pattern, None)


def _load(text: str) -> Any:
    return yaml.load(text, _Loader)


# Meaning


def plain(value: Any) -> Any:
    """A value whose type is not declared anywhere: texts without quotes as the core schema reads them, all through.

    >>> plain(Word("[1, 1e-3, yes, null, 2024_11_06]"))
    [1, 0.001, 'yes', None, '2024_11_06']
    """
    value = _tree(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if not isinstance(value, Plain):
        return str(value) if isinstance(value, str) else value
    if _NULL.match(value):
        return None
    if _BOOL.match(value):
        return value.lower() == "true"
    if _INT.match(value) and len(value) < 400:
        return int(value, 0) if value[:2] in ("0o", "0x") else int(value)
    if _FLOAT.match(value):
        return float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return str(value)


def typed(schema: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """An instance of a dataclass with ``values`` over its defaults, each by the type of its field.

    ``1`` for a float is 1.0, ``1e4`` for a whole number 10000; text is text, whatever it looks like.

    Args:
        schema: the dataclass; fields may be dataclasses.
        values: real ones, or those of :func:`parse_words` and :func:`read_yaml`.
        where: what the keys are of, for messages (``policy.network``).

    Raises:
        UnknownNameError: a key that the dataclass does not have.
        UserError: a value of another type, or what the dataclass itself refuses.
    """
    found = typed_part(schema, values, where)
    for each in dataclasses.fields(schema):  # type: ignore[arg-type]
        bare = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if each.init and bare and each.name not in found:
            raise UserError(f"{f'{where}.' if where else ''}{each.name} has to be given: it has no default")
    return schema(**found)


def typed_part(schema: type[Any], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The given values alone, by the types of a dataclass's fields. Raises as :func:`typed`."""
    known = [each.name for each in dataclasses.fields(schema) if each.init]
    hints = _hints(schema)  # type: ignore[arg-type]
    found = {}
    for key, value in values.items():
        if key not in known:
            raise UnknownNameError(f"key in {where}" if where else "key", str(key), known)
        found[str(key)] = convert(value, hints.get(key, Any), f"{where}.{key}" if where else str(key))
    return found


def like(default: Any, value: Any, where: str) -> Any:
    """A value by the type of the default that it replaces: flags, numbers and lists. Raises UserError for another type."""
    if isinstance(default, bool):
        return convert(value, bool, where)
    if isinstance(default, float):
        return convert(value, float, where)
    if isinstance(default, int):
        return convert(value, int | float, where)
    if isinstance(default, list):
        return convert(value, list[type(default[0])] if default else list[Any], where)  # type: ignore[misc]
    return plain(value)


@cache
def _hints(schema: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(schema)
    except NameError:  # names that only type checkers import
        return {}


def convert(value: Any, kind: Any, where: str) -> Any:
    """A value as the type says (``int``, ``list[str]``, ``float | None``, a dataclass, ...). Raises UserError, naming ``where``."""
    if kind is Any or kind is object:
        return plain(value)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(value, inner, where)
    if kind is str:
        return _text(value, where)
    value = _tree(value, where)
    if origin is Literal:
        return _choice(value, inner, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        return typed(kind, _expect(value, Mapping, where, "a mapping {key: value}"), where)
    if kind in (bool, int, float):
        return _number(plain(value), kind, where)
    base = origin or kind
    if base in (list, tuple, Sequence):
        items = [
            convert(each, _item(inner, index), f"{where}[{index}]")
            for index, each in enumerate(_expect(value, list | tuple, where, "a list [a, b]"))
        ]
        return tuple(items) if base is tuple else items
    if base in (dict, Mapping):
        of_key, of_value = inner or (Any, Any)
        given = _expect(value, Mapping, where, "a mapping {key: value}")
        return {convert(key, of_key, where): convert(each, of_value, f"{where}.{key}") for key, each in given.items()}
    return plain(value)


def _tree(value: Any, where: str = "") -> Any:
    """A word's YAML; everything else as it is."""
    if not isinstance(value, Word):
        return value
    try:
        found = _load(value)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = error.problem if isinstance(error, yaml.MarkedYAMLError) and error.problem else str(error)
        raise UserError(f"{where or 'value'}={value} is not YAML: {' '.join(str(said).split())}") from None
    return Plain("") if found is None else found


def _text(value: Any, where: str) -> str:
    if isinstance(value, Word) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        found = _tree(value, where)
        return str(found) if isinstance(found, str) else str(value)
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}={_shown(value)} is no text")


def _one_of(value: Any, kinds: Sequence[Any], where: str) -> Any:
    if type(None) in kinds and (value is None or (isinstance(value, Word | Plain) and _NULL.match(value))):
        return None
    rest = sorted((kind for kind in kinds if kind is not type(None)), key=lambda kind: kind is str)
    for kind in rest[:-1]:
        try:
            return convert(value, kind, where)
        except UserError:
            continue
    return convert(value, rest[-1], where)


def _choice(value: Any, choices: Sequence[Any], where: str) -> Any:
    for read in (plain(value), str(value)):
        if read in choices:
            return read
    raise UserError(f"{where}={_shown(value)} is none of {', '.join(map(str, choices))}")


def _number(value: Any, kind: type, where: str) -> Any:
    if kind is bool:
        return _expect(value, bool, where, "true or false")
    expected = "a whole number" if kind is int else "a number"
    _expect(value, Real, where, expected)
    if isinstance(value, bool) or (kind is int and not isinstance(value, Integral) and not float(value).is_integer()):
        _expect(None, Real, where, expected, shown=value)
    return kind(value)


def _expect(value: Any, kind: Any, where: str, expected: str, shown: Any = None) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"{where}={_shown(value if shown is None else shown)}: {expected} is expected")
    return value


def _item(inner: Sequence[Any], index: int) -> Any:
    if not inner:
        return Any
    return inner[index] if len(inner) > index and Ellipsis not in inner else inner[0]


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def unknown_key(key: str, known: Sequence[str]) -> UnknownNameError:
    """The error of a dotted key that is not known: it names those that end alike, or else those beside it, or else all."""
    path, _, last = key.rpartition(".")
    alike = [each for each in known if each.rpartition(".")[2] == last]
    beside = [each for each in known if path and each.startswith(f"{path}.")]
    if alike or not beside:
        return UnknownNameError("config key", key, alike or known)
    near = closest(last, [each.removeprefix(f"{path}.") for each in beside])  # what they share is no likeness
    return UnknownNameError("config key", key, beside, f"{path}.{near}" if near else "")


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings; an empty mapping is a value."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

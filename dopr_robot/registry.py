"""Named things that outsiders can add to: tasks, policies, formats."""

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from dopr_robot.errors import UnknownNameError, UserError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from name to entry that is filled by :meth:`register` and by an entry-point group.

    A package outside this one adds an entry by naming, in the group ``dopr_robot.<plural>``, a function of no arguments that calls
    :meth:`register`. The group is read at the first look-up, so importing this package imports nobody else's.

    Args:
        kind: what an entry is, in the singular, for messages ("policy").
        group: the entry-point group, or None for names that only :meth:`register` adds.

    >>> colours = Registry[str]("colour")
    >>> colours.register("red", "#f00")
    >>> colours["red"]
    '#f00'
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}
        self._outsiders_loaded = group is None

    def register(self, name: str, entry: T) -> None:
        """Add an entry. Raises UserError where the name is taken by another one."""
        if name in self._entries and self._entries[name] != entry:
            raise UserError(f"{self.kind} {name!r} is registered already: choose another name")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        known = self._known()
        if name not in known:
            raise UnknownNameError(self.kind, name, known)
        return known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known()))

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> Mapping[str, T]:
        """All entries, outsiders' among them."""
        if not self._outsiders_loaded:
            self._outsiders_loaded = True
            for point in entry_points(group=self.group or ""):
                self._load(point)
        return self._entries

    def _load(self, point: EntryPoint) -> None:
        try:
            point.load()()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"entry point {point.name!r} ({point.value}) of the group {self.group} fails with {type(error).__name__}: "
                f"{' '.join(str(error).split())}"
            ) from error

"""zarr's groups and members, opened so that what zarr can not make sense of is an error of ours."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import zarr
import zarr.errors
import zarr.storage
from zarr.core.sync import sync

from dopr_robot.datasets.bounded import check_members
from dopr_robot.errors import DamagedError, MissingExtraError, UserError


def member(group: zarr.Group, path: str, name: str) -> zarr.Array | zarr.Group | None:
    """A member, or None. Raises DamagedError where zarr can not make sense of its description, in whatever way."""
    try:
        found = group.get(name)
    except Exception as error:
        raise DamagedError(f"{path}: {name}: cannot be opened ({one_line(error)})") from error
    if found is None and _is_described(group, name):
        raise DamagedError(f"{path}: {name}: cannot be opened (its description is incomplete)")
    return found


class Arrays:
    """The arrays of a group, each opened once.

    What another program adds or changes is not seen; a store is opened anew for that.
    """

    def __init__(self, group: zarr.Group, path: str) -> None:
        self.group = group
        self.path = path
        self._under: dict[str, dict[str, zarr.Array]] = {}
        self._found: dict[str, zarr.Array] = {}

    def under(self, name: str) -> dict[str, zarr.Array]:
        """The arrays anywhere under a member, by name, in alphabetic order. Raises DamagedError as :func:`member`."""
        if name not in self._under:
            self._under[name] = found = arrays_in(self.group, self.path, name)
            self._found |= {f"{name}/{key}": each for key, each in found.items()}
        return self._under[name]

    def get(self, name: str) -> zarr.Array | None:
        """One array; None where there is no such. Raises DamagedError as :func:`member`."""
        if name not in self._found:
            found = member(self.group, self.path, name)
            if not isinstance(found, zarr.Array):
                return None
            self._found[name] = found
        return self._found[name]

    def add(self, name: str, array: zarr.Array) -> zarr.Array:
        """An array that was just made."""
        self._under.clear()
        self._found[name] = array
        return array

    def remove(self, name: str) -> None:
        del self.group[name]
        self._under.clear()
        self._found.pop(name, None)


def arrays_in(group: zarr.Group, path: str, name: str) -> dict[str, zarr.Array]:
    """The arrays anywhere under a member, by name, in alphabetic order. Raises DamagedError as :func:`member`."""
    node: Any = member(group, path, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # files of other programs beside ours
        try:
            found = dict(node.members(max_depth=None))
        except Exception as error:
            if "imagecodecs" not in str(error) or not register_image_codecs():
                raise DamagedError(f"{path}: {name}: cannot be opened ({one_line(error)})") from error
            return arrays_in(group, path, name)
    # zarr passes over a member whose description lacks a field.
    groups = {f"{name}/": node} | {
        f"{name}/{key}/": each for key, each in found.items() if isinstance(each, zarr.Group)
    }
    for prefix, each in groups.items():
        for child in _children(each):
            if f"{prefix}{child}".removeprefix(f"{name}/") not in found:
                member(each, path, child)
    return {key: each for key, each in sorted(found.items()) if isinstance(each, zarr.Array)}


def _children(group: zarr.Group) -> list[str]:
    """Names of what lies in a group's folder; none where listing is another matter (http)."""
    place = group.store_path
    if not isinstance(place.store, zarr.storage.LocalStore | zarr.storage.ZipStore):
        return []

    async def names() -> list[str]:
        return [name async for name in place.store.list_dir(place.path)]

    return [name for name in sync(names()) if name not in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")]


def _is_described(group: zarr.Group, name: str) -> bool:
    files = ("zarr.json",) if group.metadata.zarr_format == 3 else (".zarray", ".zgroup")
    return any(sync((group.store_path / name / file).exists()) for file in files)


_OTHERS = "dopr convert SOURCE OUT.zarr makes a store of robomimic's, LeRobot's and others' files"


def is_store(path: str) -> bool:
    """Whether a path is for :class:`~dopr_robot.datasets.Store` to open, rather than a run or a checkpoint.

    Raises UserError where nothing is there.
    """
    if "://" in path:
        return True
    where = Path(path)
    if not where.exists():
        raise UserError(f"{path} does not exist: give a store, or the folder of a run, a checkpoint or a study")
    return where.is_file() or any((where / name).exists() for name in ("zarr.json", ".zgroup"))


def open_group(path: str) -> zarr.Group:
    try:
        if "://" in path or "::" in path:
            backend: Any = zarr.storage.FsspecStore.from_url(path, read_only=True)
        elif not Path(path).exists():
            raise UserError(f"{path}: no such file or folder")
        elif Path(path).is_file():
            with zipfile.ZipFile(path) as archive:
                check_members(archive)
            backend = zarr.storage.ZipStore(path, mode="r")
        else:
            backend = zarr.storage.LocalStore(path, read_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inside = _folder_in_zip(path) if isinstance(backend, zarr.storage.ZipStore) else ""
            return zarr.open_group(backend, mode="r", path=inside)
    except UserError:
        raise
    except DamagedError as error:
        raise DamagedError(f"{path}: {error}") from None
    except (FileNotFoundError, zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError):
        raise UserError(f"{path}: not a demonstration store: there is no zarr group ({_OTHERS})") from None
    except Exception as error:  # a broken zip, a protocol without its package, an address that does not answer
        for name in ("zarr.json", ".zgroup"):
            if Path(path).is_dir() and (Path(path) / name).exists():
                raise DamagedError(f"{path}: {name}: cannot be opened ({one_line(error)})") from error
        raise UserError(f"{path}: cannot be opened as a zarr store: {one_line(error)} ({_OTHERS})") from error


def _folder_in_zip(path: str) -> str:
    """The one folder at the root of an archive that was packed with it, or ""."""
    with zipfile.ZipFile(path) as archive:
        roots = {tuple(name.split("/", 1)) for name in archive.namelist()}
    folders = {root[0] for root in roots if root[0] != "__MACOSX"}
    alone = next(iter(folders)) if len(folders) == 1 else ""
    return alone if {(alone, ".zgroup"), (alone, "zarr.json")} & roots else ""


def register_image_codecs() -> bool:
    """Make JPEG-XL and the like known, if their package is there and they are not known yet."""
    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError:
        raise MissingExtraError("an image codec of this store", "imagecodecs") from None
    global _image_codecs_known
    if _image_codecs_known:
        return False
    register_codecs(verbose=False)
    _image_codecs_known = True
    return True


_image_codecs_known = False


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

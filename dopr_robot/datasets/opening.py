"""zarr's groups and members, opened so that what zarr can not make sense of is an error of ours."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import zarr
import zarr.errors
import zarr.storage

from dopr_robot.datasets.bounded import check_members
from dopr_robot.errors import DamagedError, MissingExtraError, UserError


def member(group: zarr.Group, path: str, name: str) -> zarr.Array | zarr.Group | None:
    """A member, or None. Raises DamagedError where zarr can not make sense of its description, in whatever way."""
    try:
        return group.get(name)
    except Exception as error:
        raise DamagedError(f"{path}: {name}: cannot be opened ({one_line(error)})") from error


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
            return zarr.open_group(backend, mode="r")
    except UserError:
        raise
    except DamagedError as error:
        raise DamagedError(f"{path}: {error}") from None
    except (FileNotFoundError, zarr.errors.GroupNotFoundError, zarr.errors.ContainsArrayError):
        raise UserError(f"{path}: not a demonstration store: there is no zarr group") from None
    except Exception as error:  # a broken zip, a protocol without its package, an address that does not answer
        for name in ("zarr.json", ".zgroup"):
            if Path(path).is_dir() and (Path(path) / name).exists():
                raise DamagedError(f"{path}: {name}: cannot be opened ({one_line(error)})") from error
        raise UserError(f"{path}: cannot be opened as a zarr store ({one_line(error)})") from error


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

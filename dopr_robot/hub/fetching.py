"""From the hub into its library's cache: whole, checked, and once."""

import glob
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dopr_robot.errors import DamagedError, UnknownNameError, UserError
from dopr_robot.files import replacing
from dopr_robot.hub.address import SCHEME, Address, is_address
from dopr_robot.hub.client import Client
from dopr_robot.hub.public import PUBLIC
from dopr_robot.progress import tell
from dopr_robot.tables import Shown

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched(Shown):
    """What was fetched; wherever a path is taken, it may be given.

    Attributes:
        path: where it lies now: a folder, or the one file that the name means.
        address: where it came from, its revision a commit.
        licence: that the repository's card says; empty: it says none.
        next: the call to go on with; empty for a model.
    """

    path: Path
    address: Address
    licence: str = ""
    next: str = ""

    def __fspath__(self) -> str:
        return str(self.path)

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {"path": str(self.path), "address": str(self.address), "licence": self.licence, "next": self.next}

    def _parts(self) -> Iterator[str]:
        yield f"{self.address}, licence: {self.licence or 'its card names none'}"
        if self.next:
            yield f"next: {self.next}"


def fetch(name: str, out: str | os.PathLike[str] | None = None) -> Fetched:
    """Public data or weights by name, as ``dopr fetch`` does.

    >>> convert(fetch("robomimic/lift-ph"), "data/lift.zarr")                  # doctest: +SKIP

    What is in the cache already (``HF_HOME``) is not fetched again: a call that was stopped goes on with the files that are missing, and
    a connection that breaks is taken up at the byte. Every file is compared with the checksum that the hub has of it.

    Args:
        name: one of :func:`dopr_robot.list_data`, ``user/name`` of any data set, or an address ``hf://user/name[@revision][/path]``,
            ``hf://models/user/name`` for a model.
        out: a folder to copy it into; None: it stays in the cache alone.

    Raises:
        UserError: no such name, no right to it, something is in the way, or the hub can not be reached: nothing is written then.
        DamagedError: a file is not what the hub says that it is; it is taken out of the cache.
        DoprError: the hub failed.
    """
    address, known = named(name)
    if out is not None and Path(out).exists():
        raise UserError(f"{out}: exists already; choose another path")
    found = _fetched(address, known)
    if out is None:
        return found
    target = Path(out) / found.path.name if found.path.is_file() else Path(out)
    with replacing(target, new=True) as beside:
        if found.path.is_file():
            shutil.copyfile(found.path, beside)
        else:
            shutil.copytree(found.path, beside)  # what the cache's links lead to
    return replace(found, path=target)


def local(where: str | os.PathLike[str], kind: str = "dataset") -> str | os.PathLike[str]:
    """A path as it is, or of what an address on the hub means, fetched. Raises as :func:`fetch`."""
    if not is_address(where):
        return where
    return _fetched(*named(os.fspath(where), kind)).path


def named(name: str, kind: str = "dataset") -> tuple[Address, str | None]:
    """The address that a name means, and the name, where it is one of :data:`PUBLIC`. Raises UserError."""
    plain = name.removeprefix(SCHEME)
    if kind == "dataset" and plain in PUBLIC:
        return Address.parse(PUBLIC[plain].address), plain
    if "/" not in plain:
        raise UnknownNameError("data set", name, PUBLIC)
    return Address.parse(name, kind), None


def _fetched(address: Address, known: str | None) -> Fetched:
    client = Client(address)
    with client.told():
        try:
            info = client.info()
        except client.unreached as error:
            if (folder := _kept(client, error)) is None:
                raise
            LOG.warning("%s can not be asked: %s as it was fetched before", client.endpoint, address)
            return _described(address, known, folder, None)
        files = _files(client, info.sha)
        size = sum(each.size for each in files.values())
        tell(f"fetch {address}: {len(files)} file{'s' * (len(files) > 1)}, {size / 2**20:,.1f} MiB")
        folder = Path(_snapshot(client))
        if folder.name != info.sha:  # it has changed just now
            files = _files(client, folder.name)
        _check(client, folder, files)
    return _described(address, known, folder, info)


def _described(address: Address, known: str | None, folder: Path, info: Any) -> Fetched:
    licence = getattr(getattr(info, "card_data", None), "license", None) or (PUBLIC[known].licence if known else "")
    licence = ", ".join(licence) if isinstance(licence, list) else str(licence)
    then = ""
    if known:
        then = f"dopr convert {SCHEME}{known} data/{known.rpartition('/')[2]}.zarr {PUBLIC[known].options}".rstrip()
    elif address.kind == "dataset":
        then = f"dopr convert {address} data/{address.name}.zarr"
    path = folder / address.path if address.path else folder
    return Fetched(path, replace(address, revision=folder.name), licence, then)


def _snapshot(client: Client, **ways: Any) -> str:
    """Bring what the address means into the cache; the folder that the repository has there, called by the commit."""
    path = glob.escape(client.address.path)
    return str(
        client.package.snapshot_download(
            revision=client.address.revision,
            allow_patterns=[path, f"{path}/*"] if path else None,
            endpoint=client.endpoint,
            **client.who,
            **client.place,
            **ways,
        )
    )


def _kept(client: Client, error: BaseException) -> Path | None:
    """The folder that an earlier call has left whole; None where there is none, or where the hub did answer."""
    if isinstance(error, client.errors.HfHubHTTPError):
        return None
    try:
        folder = Path(_snapshot(client, local_files_only=True))
    except OSError:  # not there, or not whole
        return None
    return folder if (folder / client.address.path).exists() else None


def _files(client: Client, commit: str) -> Mapping[str, Any]:
    """What the hub has of the address: by name, with ``size``, ``blob_id`` and ``lfs``."""
    path = client.address.path
    tree = client.api.list_repo_tree(recursive=True, revision=commit, **client.place)
    files = {each.path: each for each in tree if hasattr(each, "blob_id")}
    chosen = {name: each for name, each in files.items() if not path or name == path or name.startswith(f"{path}/")}
    if not chosen:
        if not path:
            raise UserError(f"{client.address} holds no file")
        raise UnknownNameError(f"file of {replace(client.address, path='')}", path, files)
    return chosen


def _check(client: Client, folder: Path, files: Mapping[str, Any]) -> None:
    """Compare every file with the hub's checksum; what differs is taken out of the cache. Raises DamagedError."""
    for name, entry in files.items():
        path = folder / name
        expected = entry.lfs.sha256 if entry.lfs is not None else entry.blob_id
        if (found := _checksum(path, entry.lfs is not None)) != expected:
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise DamagedError(
                f"{name} of {client.address} has the checksum {found[:12]}..., the hub says {expected[:12]}...: "
                "it is taken out of the cache, the same call fetches it anew"
            )


def _checksum(path: Path, large: bool) -> str:
    """SHA-256 of a large file, and of another one what git calls it by."""
    digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()

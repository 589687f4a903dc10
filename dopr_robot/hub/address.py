"""Where something lies on the hub: ``hf://user/name``, a revision behind an @, a file or folder of it behind a slash."""

import os
import re
from dataclasses import dataclass
from typing import Any

from dopr_robot.errors import UserError

SCHEME = "hf://"
KINDS = {"datasets": "dataset", "models": "model"}
"""What an address may begin with, as the hub's own do, and what it then is of."""
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_FORM = re.compile(rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>[^@\s/]+))?(?:/(?P<path>[^@\s].*))?")


@dataclass(frozen=True)
class Address:
    """A repository on the hub, or a part of it.

    Attributes:
        repository: ``user/name``.
        kind: "dataset" or "model".
        path: of a file or folder in it; empty: all.
        revision: a branch, a tag or a commit; None: what is newest.
    """

    repository: str
    kind: str = "dataset"
    path: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, kind: str = "dataset") -> "Address":
        """The address in a text, ``kind`` where it does not say which.

        >>> Address.parse("hf://models/ada/pusht@v2/policy.json")
        Address(repository='ada/pusht', kind='model', path='policy.json', revision='v2')

        Raises:
            UserError: it is none.
        """
        rest = text.removeprefix(SCHEME).strip("/")
        first, _, behind = rest.partition("/")
        if first in KINDS and behind.count("/"):
            kind, rest = KINDS[first], behind
        found = _FORM.fullmatch(rest)
        if found is None or ".." in (found["path"] or "").split("/"):
            raise UserError(f"{text!r} is no address on the hub: hf://user/name, hf://user/name/path or user/name is")
        return cls(found["repository"], kind, found["path"] or "", found["revision"])

    @property
    def name(self) -> str:
        """The repository's, without its owner."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        kind = "models/" if self.kind == "model" else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{kind}{self.repository}{revision}" + (f"/{self.path}" if self.path else "")


def is_address(where: Any) -> bool:
    """Whether something, a path perhaps, is an address on the hub."""
    return isinstance(where, str | os.PathLike) and os.fspath(where).startswith(SCHEME)

"""The hub's interface, with what goes wrong told in one line."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from dopr_robot import __version__
from dopr_robot.errors import DoprError, MissingExtraError, UserError, closest
from dopr_robot.hub.address import Address
from dopr_robot.hub.public import PUBLIC

TIMEOUT_S = 10.0
"""Of the first request, which says whether the hub can be reached at all; huggingface_hub gives each later one as much."""


class Client:
    """``huggingface_hub`` for one address.

    HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they mean to the hub's own programs.

    Args:
        address: what it is about.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
    """

    def __init__(self, address: Address) -> None:
        try:
            import huggingface_hub
            from huggingface_hub import errors, utils
        except ImportError:
            raise MissingExtraError(f"{address}", "hub") from None
        self.address, self.package = address, huggingface_hub
        self.errors, self.utils = cast(Any, errors), cast(Any, utils)
        self.who: Any = {"library_name": "dopr-robot", "library_version": __version__}
        # The library reads the variable when it is imported, which others may have done before it was set.
        self.api: Any = huggingface_hub.HfApi(
            endpoint=(os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None, **self.who
        )
        self.endpoint = str(self.api.endpoint)
        self.unreached: Any = (self.errors.OfflineModeIsEnabled, self.errors.HTTPError)
        """What is raised where there is no answer; HTTPError is that of the library which the hub's takes, and its own are of it too."""
        self.place: dict[str, Any] = {"repo_id": address.repository, "repo_type": address.kind}

    @property
    def page(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{'datasets/' * (self.address.kind == 'dataset')}{self.address.repository}"

    def info(self) -> Any:
        """What the hub says of the repository: ``sha``, ``card_data``. Raises what :meth:`told` tells."""
        return self.api.repo_info(revision=self.address.revision, timeout=TIMEOUT_S, **self.place)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Let what the hub answers become one line, and its library say nothing beside it.

        Raises:
            UserError: there is no such repository or revision, no right to it, or no hub that could be reached.
            DoprError: the hub failed; the same call goes on.
        """
        errors = self.errors
        try:
            with self._quiet():
                yield
        except errors.GatedRepoError:
            raise UserError(f"{self.address}: its owner grants access at {self.page}; then `hf auth login`") from None
        except errors.RepositoryNotFoundError:
            raise UserError(self._missing()) from None
        except errors.RevisionNotFoundError:
            raise UserError(f"{self.address}: {self.page} has no revision {self.address.revision}") from None
        except errors.LocalEntryNotFoundError as error:
            raise self._unreached(error.__cause__ or error) from None
        except errors.HfHubHTTPError as error:
            raise self._refused(error) from None
        except self.unreached as error:
            raise self._unreached(error) from None
        except OSError as error:
            if error.errno is not None:  # the disk's
                raise
            raise DoprError(f"{self.address}: broken off ({_line(error)}): the same call goes on") from None

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """The library warns of what is told here; its bars are shown on a terminal, where progress is shown at all."""
        utils = self.utils
        logger, before = logging.getLogger("huggingface_hub"), utils.are_progress_bars_disabled()
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        if not (sys.stderr.isatty() and logging.getLogger("dopr_robot").isEnabledFor(logging.WARNING)):
            utils.disable_progress_bars()
        try:
            yield
        finally:
            logger.setLevel(level)
            if not before:
                utils.enable_progress_bars()

    def _missing(self) -> str:
        what = "data set" if self.address.kind == "dataset" else "model"
        close = closest(self.address.repository, PUBLIC) if what == "data set" else None
        hint = f"did you mean {close!r}? " if close else ""
        return (
            f"there is no {what} {self.address.repository!r} at {self.endpoint}, or none that may be seen: {hint}"
            "`hf auth login` or HF_TOKEN lets one see what is private"
        )

    def _refused(self, error: Any) -> DoprError:
        status = error.response.status_code
        if status in (401, 403):
            return UserError(
                f"{self.page} refuses ({status}): the token has to be one that may, see `hf auth login` and HF_TOKEN"
            )
        if status == 404:
            return UserError(f"{self.address}: {self.endpoint} does not know it")
        return DoprError(f"{self.endpoint} failed ({_line(error)}): the same call goes on later")

    def _unreached(self, error: BaseException) -> UserError:
        if isinstance(error, self.errors.OfflineModeIsEnabled):
            return UserError(
                f"{self.address} is not all in the cache, and HF_HUB_OFFLINE keeps from fetching it: unset that"
            )
        return UserError(
            f"{self.endpoint} can not be reached for {self.address} ({_line(error)}): nothing was written; "
            "look at the connection, or set HF_ENDPOINT"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

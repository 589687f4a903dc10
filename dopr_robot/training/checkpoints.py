"""The ``checkpoints/`` of a run folder: written whole, verified when read, the newest kept."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dopr_robot.errors import DamagedError, DoprError
from dopr_robot.files import point_to, remove_traces, replacing, write_json
from dopr_robot.policies import Policy, checkpoint_steps, save_policy
from dopr_robot.policies.checkpoint import CHECKSUMS, numbered
from dopr_robot.reading import read_json
from dopr_robot.training.state import load_state, save_state

LOG = logging.getLogger(__name__)
LAST, BEST = "last", "best"
FILES = ("policy.json", "policy.safetensors", "training_state/state.json", "training_state/state.safetensors")
"""What every checkpoint has."""


class Checkpoints:
    """Checkpoints of one run, by step.

    Args:
        folder: ``<run>/checkpoints``.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of which there is a whole checkpoint, increasing."""
        return checkpoint_steps(self.folder)

    def save(self, step: int, policy: Policy, training_state: dict[str, Any], best: Sequence[int] = ()) -> Path:
        """Write a checkpoint, let ``last`` name it, and remove what is older than the newest ``keep`` and not among the best.

        Args:
            policy: what will act: the averaged weights, where there is an average.
            training_state: everything that the loop needs to go on.
            best: steps that are kept however old, the best first; ``best`` names that.

        Raises:
            DoprError: it could not be written (a full disk); what was there before is untouched.
        """
        place = self.folder / str(step)
        try:
            with replacing(place) as beside:
                (beside / "training_state").mkdir(parents=True)
                save_policy(policy, beside)
                save_state(training_state, beside / "training_state" / "state")
                write_json(beside / CHECKSUMS, _checksums(beside))
        except (OSError, SafetensorError) as error:
            left = f"checkpoint {max(before)} is untouched" if (before := self.steps()) else "there is none yet"
            raise DoprError(
                f"the checkpoint of step {step} can not be written ({error}); {left}: make room in {self.folder}, then --resume"
            ) from None
        point_to(self.folder / LAST, str(step))
        if best and (self.folder / str(best[0])).is_dir():
            point_to(self.folder / BEST, str(best[0]))
        oldest = self.steps()[-self.keep :][0]
        for old in {each for each in numbered(self.folder) if each < oldest} - set(best):
            shutil.rmtree(self.folder / str(old))
        return place

    def clear_traces(self) -> None:
        """Remove what a kill left half-written."""
        if self.folder.is_dir():
            remove_traces(self.folder)

    def load_last(self) -> tuple[int, dict[str, Any]] | None:
        """Step and training state of the newest checkpoint that is whole; None where there is none at all.

        Raises:
            DamagedError: there are checkpoints, and not one is whole.
        """
        steps = numbered(self.folder)
        for step in reversed(steps):
            damage = find_damage(self.folder / str(step))
            if damage is None:
                try:
                    return step, load_state(self.folder / str(step) / "training_state" / "state")
                except DamagedError as error:
                    damage = str(error)
            LOG.warning("checkpoint %s is damaged (%s): going back to the one before", self.folder / str(step), damage)
        if steps:
            raise DamagedError(f"no checkpoint in {self.folder} is whole: start again with another name")
        return None


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, by their recorded SHA-256; None where nothing is."""
    try:
        recorded = read_json(checkpoint / CHECKSUMS, {str: str})
        found = _checksums(checkpoint)
    except (OSError, DamagedError):
        return f"{CHECKSUMS} is missing or cut short"
    for name in FILES:
        if name not in recorded:
            return f"{CHECKSUMS} says nothing of {name}"
    for name, checksum in recorded.items():
        if found.get(name) != checksum:
            return f"{name} {'differs from its checksum' if name in found else 'is missing'}"
    return None


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(each for each in folder.rglob("*") if each.is_file() and each.name != CHECKSUMS)
    return {each.relative_to(folder).as_posix(): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}

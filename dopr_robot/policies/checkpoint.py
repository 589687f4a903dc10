"""A policy on disk: ``policy.safetensors`` (weights and normalisation) and ``policy.json`` (everything else)."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dopr_robot.errors import DamagedError, UserError
from dopr_robot.files import pointed
from dopr_robot.policies.policy import Policy
from dopr_robot.policies.registry import make_policy
from dopr_robot.policies.spec import PolicySpec

FORMAT_VERSION = 2
"""What is written: 2 added options (encoder, rotations, actions, acting) to 1, whose checkpoints have the defaults."""

READS = (1, 2)
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
CHECKSUMS = "checksums.json"


def save_policy(policy: Policy, folder: Path) -> None:
    """Write both files into an existing folder. The caller moves the folder into its place."""
    policy.normalizer.check()
    # Copies, since safetensors refuses weights that share memory, and modules may have such.
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in policy.state_dict().items()
    }
    save_file(weights, folder / WEIGHTS)
    description = {"format_version": FORMAT_VERSION, **policy.spec.to_json(), "policy": asdict(policy.config)}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the whole checkpoints in the ``checkpoints/`` of a run, increasing: folders called by a number with every file in them.

    What the files hold is not looked at (``dopr_robot.training.find_damage`` does).
    """
    return [step for step in numbered(folder) if _is_whole(folder / str(step))]


def numbered(folder: Path) -> list[int]:
    """Numbers that folders in ``folder`` are called by, increasing."""
    if not folder.is_dir():
        return []
    names = (each.name for each in folder.iterdir() if each.is_dir())
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal() and name == str(int(name)))


def _is_whole(checkpoint: Path) -> bool:
    names = {DESCRIPTION, WEIGHTS}
    with suppress(OSError, ValueError):
        recorded = json.loads((checkpoint / CHECKSUMS).read_text(encoding="utf-8"))
        names |= set(recorded) if isinstance(recorded, dict) else set()
    return all((checkpoint / name).is_file() for name in names)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the newest whole one of a run folder.

    Raises:
        UserError: it is neither.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run folder (runs/<name>) or one of its checkpoints/<step>")
    folder = pointed(path)  # last and best, where no links can be made
    if (folder / DESCRIPTION).is_file():
        return folder
    if steps := checkpoint_steps(path / "checkpoints"):
        return path / "checkpoints" / str(steps[-1])
    if (path / "config.yaml").is_file():
        raise UserError(f"{path} has no checkpoint yet: dopr train --resume {path} goes on with it")
    raise UserError(
        f"{path} is neither a run folder nor a checkpoint: it holds no {DESCRIPTION} and no checkpoints/<step>"
    )


def load_policy(
    path: str | Path, device: str | torch.device = "cpu", *, acting: Mapping[str, Any] | None = None
) -> Policy:
    """The policy of a run folder or checkpoint folder, ready to act, without the data that it was trained on.

    >>> policy = load_policy("runs/pick_place")                                  # doctest: +SKIP
    >>> actions = policy.act({"state": torch.zeros(1, policy.n_obs_steps, 26)})  # doctest: +SKIP

    Args:
        path: the folder.
        device: where the policy goes.
        acting: options of :class:`~dopr_robot.policies.acting.ActingConfig` over the checkpoint's (``{"ensemble": True}``).

    Raises:
        UserError: no checkpoint there, or one of an unknown format version.
        DamagedError: the files are cut short or do not fit each other.
    """
    folder = find_checkpoint(path)
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except json.JSONDecodeError as error:
        raise DamagedError(f"{folder / DESCRIPTION} is not JSON ({error}): use an earlier checkpoint") from None
    version = description.get("format_version")
    if version not in READS:
        raise UserError(
            f"{folder / DESCRIPTION} has format_version {version}, this dopr-robot reads {' and '.join(map(str, READS))}: "
            "open it with the release that wrote it"
        )
    config = dict(description["policy"])
    if acting:
        config["acting"] = {**config.get("acting", {}), **acting}
    policy = make_policy(config, PolicySpec.from_json(description))
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, FileNotFoundError, RuntimeError) as error:
        raise DamagedError(
            f"{folder / WEIGHTS} does not load ({str(error).splitlines()[0]}): use an earlier checkpoint"
        ) from None
    return policy.to(device).eval()

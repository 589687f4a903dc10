"""A policy on disk: ``policy.safetensors`` (weights and normalisation) and ``policy.json`` (everything else)."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dopr_robot.errors import DamagedError, UserError
from dopr_robot.policies.policy import Policy
from dopr_robot.policies.registry import make_policy
from dopr_robot.policies.spec import PolicySpec

FORMAT_VERSION = 3
"""What is written. 2 added options (encoder, rotations, actions, acting) to 1, whose checkpoints have the defaults. 3 added the
demonstrations' limits to the normalisation, diffusion's ``time_steps``, and every option that was left at its default."""

LOG = logging.getLogger(__name__)
READS = (1, 2, 3)
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"


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


def of_former_release(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a policy that was trained before format 3, with what was fixed then and is an option since."""
    objective = config.get("objective")
    if not isinstance(objective, Mapping) or objective.get("name") != "diffusion" or "time_steps" in objective:
        return dict(config)
    return {**config, "objective": {**objective, "time_steps": objective.get("train_steps", 100)}}


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the last one of a run folder.

    Raises:
        UserError: it is neither.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run folder (runs/<name>) or one of its checkpoints/<step>")
    for candidate in (path, path / "checkpoints" / "last"):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    raise UserError(
        f"{path} is neither a run folder nor a checkpoint: it holds no {DESCRIPTION} and no checkpoints/last"
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
            f"{folder / DESCRIPTION} has format_version {version}, this dopr-robot reads {', '.join(map(str, READS))}: "
            "open it with the release that wrote it"
        )
    config = dict(description["policy"])
    if version < 3:
        config = of_former_release(config)
    if acting:
        config["acting"] = {**config.get("acting", {}), **acting}
    policy = make_policy(config, PolicySpec.from_json(description))
    try:
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, FileNotFoundError, RuntimeError) as error:
        raise DamagedError(
            f"{folder / WEIGHTS} does not load ({str(error).splitlines()[0]}): use an earlier checkpoint"
        ) from None
    clip = getattr(policy.config, "objective", {}).get("clip")
    if version < 3 and clip is not None and (mode := policy.normalizer.modes["action"]) != "minmax":
        LOG.warning(
            "%s is of format %d, which does not say how far the demonstrations' actions went: under normalization=%s and "
            "objective.clip=%g they are held within %g of its zero, as they were; train again for the demonstrations' own limits",
            folder, version, mode, clip, clip,
        )  # fmt: skip
    return policy.to(device).eval()

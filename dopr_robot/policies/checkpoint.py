"""A policy on disk: ``policy.safetensors`` (weights and normalisation) and ``policy.json`` (everything else)."""

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from dopr_robot.errors import DamagedError, DoprError, UnknownNameError, UserError
from dopr_robot.files import pointed
from dopr_robot.hub import local
from dopr_robot.policies.acting import ActingConfig
from dopr_robot.policies.objectives import OBJECTIVES
from dopr_robot.policies.policy import Policy
from dopr_robot.policies.registry import make_policy
from dopr_robot.policies.spec import LONGEST, PolicySpec
from dopr_robot.reading import Maybe, read_json, require
from dopr_robot.settings import convert, typed_part

FORMAT_VERSION = 4
"""What is written. 2 added options (encoder, rotations, actions, acting) to 1, whose checkpoints have the defaults. 3 added the
demonstrations' limits to the normalisation, diffusion's ``time_steps``, and every option that was left at its default. 4 added the task's
options, which were not known before."""

LOG = logging.getLogger(__name__)
READS = (1, 2, 3, 4)
WEIGHTS = "policy.safetensors"
DESCRIPTION = "policy.json"
LARGEST = 10_000_000
"""Whole number that an option can be at most."""
SPARE = 4
"""How many times what the weights' file holds a policy may have while it is built: parts that are exchanged, or not saved."""
_STEPS, _ARRAY = range(1, LONGEST + 1), {"shape": [range(2**31)], "dtype": str}
FORM = {
    "To": _STEPS,
    "H": _STEPS,
    "Ta": _STEPS,
    "task": str | None,
    "task_options": Maybe({}),
    "observations": {str: _ARRAY},
    "action": {**_ARRAY, "meaning": dict},
    "policy": {"name": str},
}
"""Of ``policy.json``, see :mod:`dopr_robot.reading`."""
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
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def of_former_release(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a policy that was trained before format 3, with what was fixed then and is an option since."""
    objective = config.get("objective")
    if not isinstance(objective, Mapping) or objective.get("name") != "diffusion" or "time_steps" in objective:
        return dict(config)
    return {**config, "objective": {**objective, "time_steps": objective.get("train_steps", 100)}}


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
    with suppress(OSError, DamagedError):
        names |= set(read_json(checkpoint / CHECKSUMS, {str: str}))
    return all((checkpoint / name).is_file() for name in names)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The checkpoint folder that ``path`` means: itself, the newest whole one of a run folder, or one fetched from the hub.

    Raises:
        UserError: it is neither.
    """
    path = Path(local(path, "model"))
    if not path.exists():
        raise UserError(f"{path} does not exist: give a run folder (runs/<name>) or one of its checkpoints/<step>")
    folder = pointed(path)  # last and best, where no links can be made
    if (folder / DESCRIPTION).is_file():
        return folder
    if steps := checkpoint_steps(path / "checkpoints"):
        return path / "checkpoints" / str(steps[-1])
    if (path / "config.yaml").is_file():
        raise UserError(f"{path} has no checkpoint yet: dopr train --resume {path} goes on with it")
    inside = sorted([*path.glob("*/config.yaml"), *path.glob(f"*/{DESCRIPTION}"), *path.glob(f"*/*/{DESCRIPTION}")])
    hint = f" (inside of it one lies that does: {inside[0].parent})" if inside else ""
    raise UserError(
        f"{path} is neither a run folder nor a checkpoint: it holds no {DESCRIPTION} and no checkpoints/<step>{hint}"
    )


def load_policy(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", *, acting: Mapping[str, Any] | None = None
) -> Policy:
    """The policy of a run folder or checkpoint folder, ready to act, without the data that it was trained on.

    >>> policy = load_policy("runs/pick_place")                                  # doctest: +SKIP
    >>> actions = policy.act({"state": torch.zeros(1, policy.n_obs_steps, 26)})  # doctest: +SKIP

    Args:
        path: the folder, or ``hf://user/name`` for one on the hub.
        device: where the policy goes.
        acting: how it acts otherwise than the checkpoint says: options of :class:`~dopr_robot.policies.acting.ActingConfig`
            (``{"ensemble": True}``), ``n_action_steps``, and what the objective has for acting alone (``{"steps": 4}`` of a flow or
            diffusion policy, its ``integrator`` or ``sampler``, ``clip``).

    Raises:
        UserError: no checkpoint there, one of an unknown format version, or an option of acting that it does not have.
        DamagedError: the files are cut short or do not fit each other.
    """
    folder = find_checkpoint(path)
    description = read_description(folder)
    version = description["format_version"]
    config = dict(description["policy"])
    if version < 3:
        config = of_former_release(config)
    config, changed = _otherwise(config, description["Ta"], acting) if acting else (config, {})
    executed = changed.get("n_action_steps", description["Ta"])
    try:
        policy = _built(config, PolicySpec.from_json({**description, "Ta": executed}), folder / WEIGHTS)
        policy.changed = changed
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except UserError as error:
        if acting:
            raise
        raise UserError(f"{folder / DESCRIPTION}: {error}") from None
    except (SafetensorError, OSError, RuntimeError) as error:
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
    LOG.debug("loaded %s", folder)
    return policy.to(device).eval()


def _otherwise(
    config: Mapping[str, Any], executed: int, acting: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's options with ``acting`` over them, and what differs then of those that :class:`ActingConfig` does not have."""
    objective = config.get("objective")
    objective = dict(objective) if isinstance(objective, Mapping) and objective.get("name") in OBJECTIVES else {}
    schema = OBJECTIVES[objective["name"]].config if objective else None
    of_acting = getattr(schema, "of_acting", ())  # another package's options are any dataclass
    ways = [each.name for each in fields(ActingConfig)]
    known = ["n_action_steps", *ways, *of_acting]
    for key in acting:
        if key not in known:
            raise UnknownNameError("option of acting", key, known)
    own = {key: convert(acting[key], int, f"acting.{key}") for key in acting if key == "n_action_steps"}
    plans = typed_part(schema, {key: acting[key] for key in acting if key in of_acting}, "acting") if schema else {}
    told = {key: acting[key] for key in acting if key in ways}
    made = {**config, **own, "acting": {**(config.get("acting") or {}), **told}}
    if plans:
        made["objective"] = {**objective, **plans}
    before = {**objective, "n_action_steps": executed}
    return made, {key: value for key, value in {**own, **plans}.items() if value != before.get(key)}


def read_description(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's ``policy.json``, its form checked.

    Raises:
        UserError: a format version that is not read.
        DamagedError: it is cut short, or holds what no policy writes.
    """
    path = checkpoint / DESCRIPTION
    description = read_json(path, {"format_version": int})
    if (version := description["format_version"]) not in READS:
        raise UserError(
            f"{path} has format_version {version}, this dopr-robot reads {', '.join(map(str, READS))}: "
            "open it with the release that wrote it"
        )
    require(description, FORM, str(path))
    for place, size in _numbers(description["policy"], "policy"):
        if abs(size) > LARGEST:
            raise DamagedError(f"{path}: {place} is {size:.3g}: at most {LARGEST:,} is expected")
    return description


def read_spec(checkpoint: Path) -> PolicySpec:
    """What a checkpoint's policy reads and does, and its task, without its weights. Raises as :func:`read_description`."""
    description = read_description(checkpoint)
    try:
        return PolicySpec.from_json(description)
    except UserError as error:
        raise UserError(f"{checkpoint / DESCRIPTION}: {error}") from None


def _numbers(value: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(each, f"{place}.{key}")
    elif isinstance(value, int):
        yield place, value


def _built(config: Mapping[str, Any], spec: PolicySpec, weights: Path) -> Policy:
    """The policy, without its weights; given up as soon as it grows beyond what their file holds."""
    with safe_open(weights, "pt") as file:
        sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118 (no mapping)
    try:
        with _at_most(len(sizes), sum(sizes), weights):
            return make_policy(config, spec)
    except DoprError:
        raise
    except Exception as error:
        raise DamagedError(
            f"{weights.with_name(DESCRIPTION)} does not make a policy ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from error


class _Bounded(TorchFunctionMode):
    """Asks before a tensor is made; on the device ``meta`` the same would load torch's compiler, which takes longer than all the rest."""

    def __init__(self, elements: int, refuse: Callable[[], None]) -> None:
        super().__init__()
        self.elements, self.refuse = elements, refuse

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            size = kwargs["size"] if "size" in kwargs else args[0] if isinstance(args[0], tuple | list) else args
            if math.prod(size) > self.elements:
                self.refuse()
        return func(*args, **kwargs)


@contextmanager
def _at_most(tensors: int, elements: int, weights: Path) -> Iterator[None]:
    """Raise DamagedError as soon as this thread's modules get clearly more than so many, and before a tensor alone is larger."""
    found, thread = [0, 0], threading.get_ident()
    most = (SPARE * (tensors + 64), SPARE * (elements + 2**18))

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        if threading.get_ident() != thread or tensor is None:
            return
        found[0], found[1] = found[0] + 1, found[1] + tensor.numel()
        if found[0] > most[0] or found[1] > most[1]:
            refuse()

    def refuse() -> None:
        raise DamagedError(
            f"{weights.with_name(DESCRIPTION)} describes a larger policy than {WEIGHTS} holds "
            f"({tensors:,} tensors, {elements:,} numbers): use an earlier checkpoint"
        )

    handles = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        with _Bounded(most[1], refuse):
            yield
    finally:
        for handle in handles:
            handle.remove()

"""Learned experts of Gymnasium's MuJoCo tasks: deterministic actors, trained and written by ``benchmarks/train_expert.py``.

An actor is a network of a few layers in one file of safetensors, ``assets/experts/<task>.safetensors``: ``weight.0 [in, out]``,
``bias.0 [out]`` and so on, rectified between the layers, a tanh at the end that spans the range of the actions. Where it comes from stands
in the file's metadata: ``task``, and ``provenance`` as JSON (algorithm, library and version, steps, seed, versions of Gymnasium and MuJoCo,
return over 100 episodes).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.registration import TaskSpec, get_task
from dopr_robot.errors import UserError
from dopr_robot.files import replacing
from dopr_robot.reading import Maybe, parse_json, require

FORM = {
    "algorithm": str, "library": str, "library_version": str, "steps": int, "seed": int, "gymnasium": str, "mujoco": str,
    "episodes": Maybe(int), "return_mean": Maybe(float), "return_ci95": Maybe((float, float)),
}  # fmt: skip
"""Of the provenance, see :mod:`dopr_robot.reading`; what was best while training has no return yet."""
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]
FOLDER = Path(__file__).parents[1] / "assets" / "experts"
TRAINED_BY = "benchmarks/train_expert.py trains one"
SHARE = 0.1
"""Noise of collection, of an action's half range: about what the actors explored with at the end of their training."""


def weights(task_id: str) -> Path:
    """Where a task's actor lies; the file need not be there."""
    return FOLDER / f"{task_id}.safetensors"


@dataclass(frozen=True)
class Actor:
    """Observations to actions.

    Attributes:
        layers: weight ``[in, out]`` and bias ``[out]`` of each.
        task: id of the environment that it was trained in.
        provenance: where it comes from, JSON values.
    """

    layers: tuple[Layer, ...]
    task: str
    provenance: Mapping[str, Any]

    @classmethod
    def load(cls, path: Path, spec: TaskSpec) -> "Actor":
        """Read a file. Raises UserError where there is none, it is no actor's, or one that does not fit the task, and DamagedError
        where its provenance is spoiled."""
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise UserError(f"{path} is not there: {spec.id} has no actor ({TRAINED_BY})")
        try:
            with safe_open(path, framework="numpy") as file:
                told = file.metadata() or {}
                arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
            task, provenance = told["task"], require(parse_json(told["provenance"], str(path)), FORM, str(path))
            pairs = [(arrays[f"weight.{i}"], arrays[f"bias.{i}"]) for i in range(len(arrays) // 2)]
            sizes = [weight.shape[0] for weight, _ in pairs] + [len(pairs[-1][1])]
            if [weight.shape for weight, _ in pairs] != list(pairwise(sizes)):
                raise ValueError(f"its layers are {[weight.shape for weight, _ in pairs]}")
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("a weight is not finite")
        except (SafetensorError, KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no actor ({type(error).__name__}: {error}): {TRAINED_BY}") from None
        wanted = (sum(int(np.prod(shape)) for shape in spec.observations.values()), len(spec.action.low))
        if task != spec.id:
            raise UserError(f"{path} is an actor of {task}, not of {spec.id}: {TRAINED_BY}")
        if (sizes[0], sizes[-1]) != wanted:
            raise UserError(
                f"{path} makes {sizes[-1]} actions of {sizes[0]} observed numbers, {spec.id} takes {wanted[1]} of {wanted[0]}: {TRAINED_BY}"
            )
        return cls(tuple(pairs), task, provenance)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        from safetensors.numpy import save

        arrays = {f"weight.{i}": np.ascontiguousarray(weight) for i, (weight, _) in enumerate(self.layers)}
        arrays |= {f"bias.{i}": np.ascontiguousarray(bias) for i, (_, bias) in enumerate(self.layers)}
        with replacing(path) as beside:
            beside.write_bytes(save(arrays, {"task": self.task, "provenance": json.dumps(self.provenance)}))

    def __call__(self, observation: NDArray[Any], low: Sequence[float], high: Sequence[float]) -> NDArray[np.float32]:
        """Actions ``[N, A]`` between the bounds for observations ``[N, O]``; a row does not depend on the others."""
        # One product a row: a matrix's last bits vary with its size.
        hidden = np.asarray(observation, np.float32)[:, None]
        for number, (weight, bias) in enumerate(self.layers):
            hidden = (np.maximum(hidden, 0.0) if number else hidden) @ weight + bias
        least, most = np.asarray(low, np.float32), np.asarray(high, np.float32)
        return least + (most - least) * (np.tanh(hidden[:, 0]) + 1) / 2


@lru_cache
def told(task_id: str) -> str:
    """What the page of tasks says of an actor: how it was trained, and its return."""
    about = Actor.load(weights(task_id), get_task(task_id)).provenance
    trained = f"{about['algorithm']} of {about['library']} {about['library_version']}, {about['steps']:,} steps"
    if not about.get("return_ci95"):
        return f"{trained}; return not measured"
    low, high = about["return_ci95"]
    return (
        f"{trained}; return without noise {about['return_mean']:,.0f} over {about['episodes']} seeds "
        f"(95% interval {low:,.0f} to {high:,.0f})"
    )


class LearnedExpert:
    """The task's actor; it reads the observation."""

    noise: NDArray[np.float64]
    told: ClassVar = staticmethod(told)

    def __init__(self, env: Any) -> None:
        self.env = env
        self.actor = Actor.load(weights(env.task.id), env.task)

    def act(self) -> NDArray[np.float64]:
        """Clean actions, ``[N, A]``."""
        action = self.env.task.action
        return self.actor(self.env.observation["state"], action.low, action.high).astype(np.float64)


class HumanoidExpert(LearnedExpert):
    noise = np.full(17, 0.4 * SHARE)


class AntExpert(LearnedExpert):
    noise = np.full(8, SHARE)


class HalfCheetahExpert(LearnedExpert):
    noise = np.full(6, SHARE)


class Walker2dExpert(LearnedExpert):
    noise = np.full(6, SHARE)


class HopperExpert(LearnedExpert):
    noise = np.full(3, SHARE)

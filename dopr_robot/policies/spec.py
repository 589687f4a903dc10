"""What a policy sees and does: the part of a policy that is known before any network is."""

from dataclasses import dataclass, field
from typing import Any

from dopr_robot.errors import UserError

LONGEST = 65_536
"""Steps that a policy can see, predict and execute at most."""

LARGEST = 2**28
"""Numbers of one observation or action a step at most (a camera of 16,384 x 5,461 pixels)."""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class ArraySpec:
    """Shape (without batch and time) and dtype of one observation or of the action.

    Raises:
        UserError: a length that is no whole number of at least 1, or more numbers than :data:`LARGEST`.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not all(_whole(length) and length >= 1 for length in self.shape) or self.size > LARGEST:
            raise UserError(
                f"an observation or action can not have the shape {list(self.shape)} a step: whole numbers from 1 are expected, "
                f"together at most {LARGEST:,}"
            )
        if not isinstance(self.dtype, str):
            raise UserError(f"an observation or action can not have the dtype {self.dtype!r}: a name is expected")

    @property
    def size(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class PolicySpec:
    """The interface of a policy with its data and its environment; checks itself when made.

    Args:
        observations: what is read, by key, in the order in which it is concatenated.
        action: what is commanded, ``[A]``.
        n_obs_steps: To, observations that the policy sees.
        horizon: H, actions that it predicts. The first of them belongs to the first observation step, as in Diffusion Policy.
        n_action_steps: Ta, actions that it executes before it looks again, starting at the newest observation.
        task: Gymnasium id of the task it was trained for, or None.
        task_options: of that task, JSON values by name; pictures apart, which ``observations`` tell.
        action_meaning: what the numbers of an action are ("joint position, absolute, rad"), from the store.

    Raises:
        UserError: the steps do not fit each other (Ta > H - To + 1), or there is nothing to observe.
    """

    observations: dict[str, ArraySpec]
    action: ArraySpec
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    task: str | None = None
    action_meaning: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.observations:
            raise UserError("a policy needs at least one observation key: set data.observations")
        if len(self.action.shape) != 1:
            raise UserError(f"actions have to be vectors, the data's have shape {list(self.action.shape)} a step")
        for name in ("n_obs_steps", "horizon", "n_action_steps"):
            if not _whole(steps := getattr(self, name)) or not 1 <= steps <= LONGEST:
                raise UserError(f"policy.{name}={steps} has to be a whole number from 1 to {LONGEST:,}")
        longest = self.horizon - self.n_obs_steps + 1
        if self.n_action_steps > longest:
            raise UserError(
                f"policy.n_action_steps={self.n_action_steps} is more than the horizon leaves after the observations: "
                f"at most horizon - n_obs_steps + 1 = {longest}"
            )

    @property
    def action_dim(self) -> int:
        return self.action.shape[0]

    def to_json(self) -> dict[str, Any]:
        """The part of ``policy.json`` that ARCHITECTURE calls To, H, Ta, observations and action."""
        return {
            "To": self.n_obs_steps,
            "H": self.horizon,
            "Ta": self.n_action_steps,
            "task": self.task,
            "task_options": self.task_options,
            "observations": {
                key: {"shape": list(spec.shape), "dtype": spec.dtype} for key, spec in self.observations.items()
            },
            "action": {"shape": list(self.action.shape), "dtype": self.action.dtype, "meaning": self.action_meaning},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "PolicySpec":
        """The shapes that ``policy.json`` says."""
        return cls(
            observations={
                key: ArraySpec(tuple(spec["shape"]), spec["dtype"]) for key, spec in data["observations"].items()
            },
            action=ArraySpec(tuple(data["action"]["shape"]), data["action"]["dtype"]),
            n_obs_steps=data["To"],
            horizon=data["H"],
            n_action_steps=data["Ta"],
            task=data["task"],
            task_options=data.get("task_options") or {},
            action_meaning=data["action"]["meaning"],
        )

"""Options of parameter groups, and numbers that follow a schedule."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dopr_robot.optim.checks import check_whole, is_number

PLACE = "group "  # begins the name of a parameter that has none: its place
PER_GROUP = ("damping", "update_every", "precondition")
Damping = float | Callable[[int], float] | Mapping[str, Any]
_SCHEDULES = ("linear", "cosine", "geometric")


class Schedule:
    """A damping that goes from one value to another over a number of steps and stays there.

    Args:
        schedule: ``"linear"``, ``"cosine"`` (half a wave) or ``"geometric"`` (by equal factors).
        steps: how many steps it takes.
        start, end: in a configuration ``from`` and ``to``.

    >>> Schedule.of({"schedule": "linear", "from": 1.0, "to": 0.5, "steps": 10})(5)
    0.75
    """

    def __init__(self, schedule: str, start: float, end: float, steps: int) -> None:
        self.schedule, self.start, self.end, self.steps = schedule, start, end, steps

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Schedule":
        """From ``{"schedule": ..., "from": ..., "to": ..., "steps": ...}``. Raises ValueError, naming what is missing or wrong."""
        if set(options) != {"schedule", "from", "to", "steps"}:
            odd = sorted({"schedule", "from", "to", "steps"} ^ set(options))
            raise ValueError(
                f"damping={dict(options)!r}: a schedule has schedule, from, to and steps; look at {odd[0]!r}"
            )
        if options["schedule"] not in _SCHEDULES:
            raise ValueError(f"damping schedule={options['schedule']!r} must be one of {', '.join(_SCHEDULES)}")
        check_whole("damping steps", options["steps"], 1)
        start, end = (check_damping(options[key], f"damping {key}") for key in ("from", "to"))
        return cls(options["schedule"], start, end, options["steps"])

    def __call__(self, step: int) -> float:
        done = min(step / self.steps, 1.0)
        if self.schedule == "geometric":
            return self.start * (self.end / self.start) ** done
        if self.schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done

    def __repr__(self) -> str:
        return f"{self.schedule} from {self.start:g} to {self.end:g} over {self.steps} steps"


def check_damping(value: Any, name: str = "damping") -> float:
    """``value`` as a float. Raises ValueError, naming it, where it is no positive number."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name}={value!r} must be a positive number, such as 0.1 or 1")
    return float(value)


class Groups:
    """What preconditioning reads from an optimizer's param groups, at every step: another scheduler, or a loop, may write there.

    Args:
        defaults: ``damping, update_every, precondition`` of groups that do not have them.
    """

    def __init__(self, **defaults: Any) -> None:
        self.defaults = defaults
        self.groups: list[dict[str, Any]] = []
        self._schedules: list[Callable[[int], float] | None] = []
        self._index: dict[int, int] = {}
        self.step = 0  # which comes next

    def follow(self, groups: list[dict[str, Any]], step: int = 0, *, anew: bool = False) -> None:
        """Read from ``groups`` from here on, and write the defaults where a group has no value: so they are seen, scheduled and saved.
        ``anew``: they are another optimizer's than before, so that the schedules are too."""
        if anew:
            self._schedules = []
        elif groups is self.groups and len(groups) == len(self._schedules):
            return
        self.groups = groups
        for group in groups[len(self._schedules) :]:
            damping = group.get("damping", self.defaults["damping"])
            self._schedules.append(
                Schedule.of(damping) if isinstance(damping, Mapping) else damping if callable(damping) else None
            )
        for group, schedule in zip(groups, self._schedules, strict=True):
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            if schedule is not None:
                group["damping"] = _scheduled(schedule, step)
        self.index()
        self.check()

    def index(self) -> None:
        """Note which group each parameter is in, anew where the groups were copied."""
        self._index = {id(p): index for index, group in enumerate(self.groups) for p in group["params"]}

    def advance(self, step: int) -> None:
        """Write what schedules of ours say for ``step``."""
        for group, schedule in zip(self.groups, self._schedules, strict=True):
            if schedule is not None:
                group["damping"] = _scheduled(schedule, step)
        self.check()

    def check(self) -> None:
        """Raise ValueError, naming the value, for an option of a group that is out of range."""
        for group in self.groups:
            group["damping"] = check_damping(group["damping"])
            check_whole("update_every", group["update_every"], 1)
            if not isinstance(group["precondition"], bool):
                raise ValueError(f"precondition={group['precondition']!r} must be true or false")

    def of(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        """The options of the group that ``parameter`` is in."""
        index = self._index.get(id(parameter))
        return self.defaults if index is None else self.groups[index]

    def damping(self, parameter: nn.Parameter) -> float:
        """Of ``parameter`` at the step that comes next, also before :meth:`advance` has written it."""
        index = self._index.get(id(parameter))
        schedule = None if index is None else self._schedules[index]
        return check_damping(self.of(parameter)["damping"]) if schedule is None else _scheduled(schedule, self.step)

    def __repr__(self) -> str:
        dampings = dict.fromkeys(
            repr(schedule or group["damping"]) for group, schedule in zip(self.groups, self._schedules, strict=True)
        )
        return ", ".join(dampings)


def _scheduled(schedule: Callable[[int], float], step: int) -> float:
    return check_damping(schedule(step), f"damping(step={step})")


def named(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of an optimizer's groups, each with its name where the optimizer was given names, else with its place."""
    for index, group in enumerate(groups):
        names = group.get("param_names") or [
            f"{PLACE}{index}, parameter {place}" for place in range(len(group["params"]))
        ]
        yield from zip(names, group["params"], strict=True)

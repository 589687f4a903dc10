"""Tasks by name: what a task is, and which package it needs. How it is made: :mod:`dopr_robot.envs.making`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from typing import Any, Literal

import gymnasium

from dopr_robot.errors import MissingExtraError, UnknownNameError, UserError
from dopr_robot.registry import Registry

NAMESPACE = "dopr_robot"


@dataclass(frozen=True)
class ActionSpec:
    """What the numbers of an action mean, entry by entry.

    Attributes:
        meaning: "joint position", "collective thrust and torques", ...
        absolute: whether a number is a target (True) or a change (False).
        units: one text an entry, or one for all.
        names: one an entry.
        low, high: bounds.
    """

    meaning: str
    absolute: bool
    units: str | tuple[str, ...]
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        units = self.names if isinstance(self.units, str) else self.units
        sizes = {len(each) for each in (self.names, units, self.low, self.high)}
        if len(sizes) != 1 or not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise UserError(
                f"action {self.meaning!r}: names, units, low and high have one entry each for a number of the action, and low < high"
            )


@dataclass(frozen=True)
class TaskSpec:
    """A registered task.

    Attributes:
        id: Gymnasium id.
        kind: ``attain``: success at horizon h means reached by step h; ``sustain``: not yet failed at step h.
        control_hz: control steps a second.
        max_steps: longest horizon, in control steps.
        extensible: whether an evaluation may ask for horizons beyond it: the limit is the benchmark's and not the simulator's, and
            demonstrators often took longer.
        description: what has to be done and what success means, in a sentence.
        observations: shape of one step of every observation.
        action: what an action means.
        entry_point: ``module:callable`` that makes one ``gymnasium.Env``.
        arguments: keywords that the entry point always gets.
        vector_entry_point: ``module:callable`` that makes the batched one, or None: copies of the single one in worker processes.
        in_process: without a batched one, step the copies in this process: for simulators so light that a worker would cost more, and for
            experts that read the simulator's own state. What crashes or hangs outside Python then takes the program along.
        expert: ``module:class`` of the expert (:class:`~dopr_robot.envs.expert.Expert`), or None.
        expert_success: share of the seeds below ``expert_seeds`` on which it succeeded under the noise of collection, as
            ``benchmarks/expert_success.py`` measures it; None: not measured.
        expert_seeds: see ``expert_success``.
        expert_steps: mean length of its successful episodes, in control steps; None: not measured.
        expert_fault: where it fails, and why; "": nothing is known.
        reward: what the reward of a step pays, where its sum over an episode (the return) says more than success does; evaluation then
            reports return versus horizon too.
        segments: ``module:callable`` of what tells how few demonstrations become many (:mod:`dopr_robot.envs.segments`), or None.
        metrics: further figures in ``info`` and how an episode sums them up.
        shares: those of ``metrics`` that are shares of a whole, from 0 to 1, and so is the interval of their mean.
        stages: keys in ``info`` of the task's parts, in their order; true once a part is done.
        package: module that has to be importable, and the extra that brings it.
        extra: see ``package``.
        source: where the task comes from.
        options: names of the keywords that vary the task, with what each does.
        cameras: of pictures that an observation can have beside the state (``obs=("state", "wrist")``).
        opengl: whether it takes an OpenGL that works to draw them.
        start: parts of the simulator's state that ``reset(options={"initial_state_dict": {...}})`` of one environment takes; (): none.
        groups: names under which papers report several tasks together (``metaworld/easy``).
        length: the one of ``options`` that sets how long the task is (how many cubes), a positive integer; None: there is none.
    """

    id: str
    kind: Literal["attain", "sustain"]
    control_hz: float
    max_steps: int
    description: str
    observations: Mapping[str, tuple[int, ...]]
    action: ActionSpec
    entry_point: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    vector_entry_point: str | None = None
    in_process: bool = False
    expert: str | None = None
    expert_success: float | None = None
    expert_seeds: int = 200
    expert_steps: float | None = None
    expert_fault: str = ""
    reward: str = ""
    segments: str | None = None
    metrics: Mapping[str, Literal["max", "mean", "final"]] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    package: str = "mujoco"
    extra: str | None = None
    source: str = "ours"
    options: Mapping[str, str] = field(default_factory=dict)
    cameras: tuple[str, ...] = ()
    opengl: bool = False
    start: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    length: str | None = None
    extensible: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("attain", "sustain"):
            raise UserError(
                f"{self.id}: kind {self.kind!r} is neither 'attain' (a goal is reached) nor 'sustain' (nothing fails)"
            )
        if unknown := sorted(set(self.shares) - set(self.metrics)):
            raise UserError(f"{self.id}: shares names {', '.join(unknown)}, which metrics does not")
        if self.control_hz <= 0 or self.max_steps < 1:
            raise UserError(
                f"{self.id}: control_hz={self.control_hz} and max_steps={self.max_steps} have to be positive"
            )

    @property
    def name(self) -> str:
        """The bare name: ``PickPlace`` of ``dopr_robot/PickPlace-v0``."""
        return bare_name(self.id)

    @property
    def has_expert(self) -> bool:
        """Whether ``dopr collect`` can make demonstrations."""
        return self.expert is not None

    @property
    def in_workers(self) -> bool:
        """Whether its copies live in processes of their own."""
        return self.vector_entry_point is None and not self.in_process

    @property
    def without_expert(self) -> str:
        """What is told where there is none."""
        return f"{self.id} has no expert: bring demonstrations of your own (dopr convert)"

    def lasting(self, steps: int) -> dict[str, int]:
        """The keyword of an environment whose episodes may take so many steps; {}: it needs none, or takes none."""
        return {"max_steps": steps} if self.extensible and steps > self.max_steps else {}

    def check_installed(self) -> None:
        """Raise MissingExtraError where the task's package is not installed."""
        if find_spec(self.package) is None:
            raise MissingExtraError(f"task {self.id}", self.extra or "")


TASKS = Registry[TaskSpec]("task", "dopr_robot.tasks")
"""Every task by its id; outsiders add theirs through the entry-point group ``dopr_robot.tasks``."""
FAMILIES: dict[str, Callable[[str], TaskSpec]] = {}
"""Tasks that are made out from their names, ``{beginning: name -> task}``: ``gym:`` (:mod:`dopr_robot.envs.unregistered`)."""


def bare_name(task_id: str) -> str:
    """The task's name without namespace and version."""
    return task_id.replace(":", "/").rsplit("/", 1)[-1].rsplit("-v", 1)[0]


def register_task(spec: TaskSpec) -> None:
    """Add a task; one in our namespace or with a batched class is registered in Gymnasium too."""
    TASKS.register(spec.id, spec)
    if spec.id not in gymnasium.registry and spec.extra is None:
        gymnasium.register(spec.id, entry_point=spec.entry_point, vector_entry_point=spec.vector_entry_point)


def list_tasks() -> list[TaskSpec]:
    """Every task, installed or not, by id."""
    return list(TASKS.values())


def get_task(name: str) -> TaskSpec:
    """The task of a Gymnasium id, of a bare name, or of one of :data:`FAMILIES`.

    Raises:
        UnknownNameError: there is none; the message names the closest.
        UserError: one of a family that can not be made.
    """
    if name in TASKS:
        return TASKS[name]
    for beginning, described in FAMILIES.items():
        if name.startswith(beginning):
            return described(name)
    for task_id in TASKS:
        if bare_name(task_id) == name:
            return TASKS[task_id]
    known = [spec.name if spec.id.startswith(f"{NAMESPACE}/") else spec.id for spec in list_tasks()]
    raise UnknownNameError("task", name, known)


def names_several(name: str) -> bool:
    """Whether a name is a pattern over tasks (``metaworld/*``) or a group of them (``metaworld/easy``)."""
    return any(sign in name for sign in "*?[") or any(name in spec.groups for spec in list_tasks())


def matching_tasks(name: str) -> list[TaskSpec]:
    """The tasks of a pattern over ids (ours by their bare names too), of a group, or of one name, by id.

    >>> [spec.name for spec in matching_tasks("metaworld/*-wall-v3")][:2]
    ['button-press-topdown-wall', 'button-press-wall']

    Raises:
        UserError: there is none.
    """
    if not names_several(name):
        return [get_task(name)]
    found = [
        spec
        for spec in list_tasks()
        if name in spec.groups or fnmatchcase(spec.id, name) or (spec.source == "ours" and fnmatchcase(spec.name, name))
    ]
    if not found:
        beginnings = sorted({spec.id.rpartition("/")[0] + "/" for spec in list_tasks() if "/" in spec.id})
        raise UserError(
            f"no task matches {name!r}: dopr tasks lists them (they begin with {', '.join(beginnings)}, or have no /)"
        )
    return found


def recorded_task(name: str) -> TaskSpec | None:
    """The task that a file of demonstrations names: by its id, or ``package/name`` as its package calls it; None: there is none here."""
    package, _, theirs = name.partition("/")
    own = (spec for spec in list_tasks() if spec.package == package and spec.arguments.get("package_name") == theirs)
    return TASKS[name] if name in TASKS else next(own, None)

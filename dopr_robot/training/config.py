"""The configuration of a training run: what each setting means, and which values it takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.files import replacing
from dopr_robot.settings import plain, read_yaml, to_yaml, typed

SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
AT_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "warmup_steps": 0,
    "checkpoint_every": 1,
    "keep_checkpoints": 2,
    "log_every": 1,
    "validate_every": 1,
    "validation_windows": 1,
    "rollout_every": 0,
    "rollout_episodes": 1,
    "keep_best": 1,
    "patience": 1,
    "max_bad_steps": 1,
    "spectrum_every": 0,
    "threads": 1,
}
CHOICES = {
    "schedule": SCHEDULES,
    "precision": ("no", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda"),
    "early_stop": ("validation_loss", "success_rate"),
    "tracker": ("wandb", "trackio"),
}


@dataclass
class TaskConfig:
    """What the demonstrations show, and the policy is rolled out in.

    Args:
        name: a Gymnasium id, or a bare name; null: the store's.
        options: of the task; null: those that the store was collected with, which others may not contradict. Pictures are no matter
            of options here: ``data.observations`` says what is read.
    """

    name: str | None = None
    options: dict[str, Any] | None = None


@dataclass
class DataConfig:
    """Which demonstrations are read, and what of them.

    Args:
        store: path of the demonstration store.
        observations: keys that the policy sees; null: those that the store's attributes name.
        action: the key that it learns.
        validation_fraction: share of the episodes held out for the validation loss.
        max_episodes: train on the first of them only; null: all.
    """

    store: str | None = None
    observations: list[str] | None = None
    action: str = "action"
    validation_fraction: float = 0.05
    max_episodes: int | None = None

    def __post_init__(self) -> None:
        if self.store is not None and self.store.startswith("~/"):  # no shell opens that after data.store=
            self.store = str(Path(self.store).expanduser())


@dataclass
class CollectConfig:
    """How ``dopr train`` makes the store first where it is not there, as ``dopr collect`` does. A store or a task that is named over an
    experiment's own is not made: its demonstrations are another matter.

    Args:
        demonstrations: how many; null: none, a store that is not there is a mistake.
        noise: share of the task's own noise on the executed action (DART).
        cameras: whose pictures are recorded too.
        camera_size: side of these pictures, in pixels; null: the task's.
        source: a store of a few demonstrations that are transformed, in the expert's place.
    """

    demonstrations: int | None = None
    noise: float = 1.0
    cameras: list[str] = field(default_factory=list)
    camera_size: int | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.demonstrations is not None and self.demonstrations < 1:
            raise UserError(f"collect.demonstrations={self.demonstrations} has to be at least 1; null: none")


@dataclass
class TrainingConfig:
    """The loop.

    Args:
        steps: optimizer steps.
        batch_size: windows a step, all processes together.
        accumulate: pieces in which a process takes its share of the batch: the same result in less memory.
        schedule: of the learning rate after the warm-up; one of :data:`SCHEDULES`.
        warmup_steps: of the learning rate, linear from 0.
        gradient_clip: largest norm of the gradient; null: none.
        ema_power: the average of the weights forgets with ``1 - (1 + step) ** -ema_power`` (Diffusion Policy's schedule and value).
        ema_max_decay: upper bound of that.
        checkpoint_every, keep_checkpoints: in steps; how many of the newest are kept (at least 2).
        log_every, validate_every: in steps.
        validation_windows: at most so many held-out windows are looked at.
        rollout_every: in steps; 0: no rollouts while training. They begin in states of the range that selection has.
        rollout_episodes: how many.
        keep_best: so many checkpoints of the highest success in these rollouts are kept as well (of equal ones the largest mean return,
            where the task's reward says more than success, then the later); ``checkpoints/best`` is the best.
        early_stop: ``validation_loss`` or ``success_rate``: stop where it has not improved ``patience`` times; null: never.
        max_hours: stop with the state saved after so long in one call; null: no limit.
        max_bad_steps: a step whose loss or gradient is NaN, inf or a spike is left out; give up after so many in a row.
        spike_ratio: a loss so many times the recent ones' median above it is a spike; null: only NaN and inf are left out.
        spectrum_every: write the optimizer's spectrum of each layer to TensorBoard, in steps; 0: never.
        tracker: ``wandb`` or ``trackio`` gets the figures too; null: neither.
        precision: ``no``, ``bf16`` or ``fp16`` autocast, by accelerate.
        compile: ``torch.compile`` the network.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of torch; null: torch's choice.
        seed: of initial weights, data order, noise and the split.
    """

    steps: int = 20_000
    batch_size: int = 256
    accumulate: int = 1
    schedule: str = "cosine"
    warmup_steps: int = 500
    gradient_clip: float | None = 1.0
    ema_power: float = 0.75
    ema_max_decay: float = 0.9999
    checkpoint_every: int = 2_000
    keep_checkpoints: int = 2
    log_every: int = 50
    validate_every: int = 1_000
    validation_windows: int = 4_096
    rollout_every: int = 0
    rollout_episodes: int = 20
    keep_best: int = 1
    early_stop: str | None = None
    patience: int = 5
    max_hours: float | None = None
    max_bad_steps: int = 10
    spike_ratio: float | None = 100.0
    spectrum_every: int = 0
    tracker: str | None = None
    precision: str = "no"
    compile: bool = False
    device: str = "auto"
    threads: int | None = None
    seed: int = 0


@dataclass
class EvaluationConfig:
    """What ``dopr eval`` does with the run unless told otherwise.

    Args:
        episodes: initial states.
        num_envs: copies of the environment that are rolled out at once while training.
        video: episodes in the video; 0: none.
    """

    episodes: int = 100
    num_envs: int = 16
    video: int = 9


@dataclass
class RunConfig:
    """All of a run; ``config.yaml`` in the run folder is this, in full, and reproduces the run.

    Args:
        name: of the run folder, ``runs/<name>``; null: the experiment's, or ``run``.
        task: that the policy is for; null: the one that the store's attributes name.
    """

    name: str | None = None
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    policy: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if not isinstance(self.task, TaskConfig):  # its name alone
            self.task = TaskConfig(self.task)
        training, data = self.training, self.data
        for key, least in AT_LEAST.items():
            if (value := getattr(training, key)) is not None and value < least:
                raise UserError(f"training.{key}={value} has to be at least {least}")
        for key, choices in CHOICES.items():
            if (chosen := getattr(training, key)) is not None and chosen not in choices:
                raise UserError(f"training.{key}={chosen!r} is none of {', '.join(choices)}")
        for key in ("max_hours", "spike_ratio", "gradient_clip"):
            if (number := getattr(training, key)) is not None and not number > 0:
                raise UserError(f"training.{key}={number} has to be above 0; null: none")
        if not 0 <= data.validation_fraction < 1:
            raise UserError(f"data.validation_fraction={data.validation_fraction} has to lie in [0, 1)")
        if data.max_episodes is not None and data.max_episodes < 1:
            raise UserError(f"data.max_episodes={data.max_episodes} has to be at least 1; null: all")
        if training.early_stop == "success_rate" and not training.rollout_every:
            raise UserError("training.early_stop=success_rate needs rollouts: set training.rollout_every")
        if training.early_stop == "validation_loss" and not data.validation_fraction:
            raise UserError("training.early_stop=validation_loss needs held-out episodes: set data.validation_fraction")

    def to_yaml(self) -> str:
        """Every setting, as ``config.yaml`` has it."""
        return to_yaml(asdict(self))


def write_config(config: RunConfig, folder: Path) -> None:
    """Write ``config.yaml`` of a run folder, which reproduces the run."""
    with replacing(folder / "config.yaml") as beside:
        beside.write_text(config.to_yaml(), encoding="utf-8")


def load_config(path: Path) -> RunConfig:
    """The configuration that a run folder's ``config.yaml`` holds. Raises UserError where it is none."""
    try:
        return typed(RunConfig, read_config(path))
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file of settings, its values as they stand there. Raises UserError where there is none.

    A run of a release before goes on as it began: a run's file has every option, so what it lacks was none yet.
    """
    values = read_yaml(path, "configuration", [each.name for each in fields(RunConfig)])
    if "task" in values and not isinstance(values["task"], Mapping):  # its name alone
        values["task"] = {"name": values["task"]}
    if (path.parent / "checkpoints").is_dir():
        from dopr_robot.optim import saved_options
        from dopr_robot.policies.checkpoint import of_former_release

        for group, today in (("policy", of_former_release), ("optimizer", saved_options)):
            if isinstance(values.get(group), dict):
                values[group] = today(plain(values[group]))
    return values

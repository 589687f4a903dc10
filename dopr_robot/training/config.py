"""The configuration of a training run: dataclass schemas, composed by Hydra from ``dopr_robot/configs``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.files import replacing
from dopr_robot.optim import optimizer_names, optimizer_options
from dopr_robot.policies import POLICIES
from dopr_robot.policies.checkpoint import of_former_release
from dopr_robot.reading import read_yaml
from dopr_robot.training.schedule import SCHEDULES

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
        keep_best: so many checkpoints of the highest success in these rollouts are kept as well; ``checkpoints/best`` is the best.
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
    """What ``dopr eval`` does with the run unless told otherwise."""

    episodes: int = 100
    num_envs: int = 16
    video: int = 9


@dataclass
class RunConfig:
    """All of a run; ``config.yaml`` in the run folder is this, in full, and reproduces the run."""

    name: str | None = None
    task: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    policy: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
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
        return yaml.safe_dump(asdict(self), sort_keys=False)


def write_config(config: RunConfig, folder: Path) -> None:
    """Write ``config.yaml`` of a run folder, which reproduces the run."""
    with replacing(folder / "config.yaml") as beside:
        beside.write_text(config.to_yaml(), encoding="utf-8")


def experiment_names() -> list[str]:
    """Names that ``dopr train`` takes."""
    files = resources.files("dopr_robot").joinpath("configs", "experiment").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def load_config(path: Path) -> RunConfig:
    """The configuration that a run folder's ``config.yaml`` holds."""
    return _typed(OmegaConf.create(_read(path)), str(path))


def _read(path: Path) -> dict[str, Any]:
    values = read_yaml(path, f"configuration: a mapping with {', '.join(f.name for f in fields(RunConfig))}")
    # A run of a release before goes on as it began. A run's file has every option, so what it lacks was none yet.
    if (path.parent / "checkpoints").is_dir() and isinstance(values.get("policy"), dict):
        values["policy"] = of_former_release(values["policy"])
    return values


def compose_config(experiment: str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of an experiment, or of a YAML file, with ``key=value`` overrides.

    >>> compose_config("pick_place", ["optimizer.lr=1e-3", "policy=flow_unet"]).optimizer["lr"]   # doctest: +SKIP
    0.001

    Raises:
        UnknownNameError: no such experiment, policy, optimizer or key; the message names the closest.
        UserError: a value of the wrong type or outside its range.
    """
    parsed = _parse(overrides)
    chosen: dict[str, str] = {group: str(parsed.pop(group)) for group in ("policy", "optimizer") if group in parsed}
    if experiment is not None and experiment.endswith((".yaml", ".yml")):
        config = config_from({**_read(Path(experiment)), **chosen})
        return _typed(_override(OmegaConf.create(asdict(config)), parsed), experiment)
    if experiment is not None and experiment not in experiment_names():
        raise UnknownNameError("experiment", experiment, experiment_names())
    config = _typed(_override(_composed(experiment, chosen), parsed), "the configuration")
    config.name = config.name or experiment
    return config


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """The configuration that plain values give over the defaults of the policy and optimizer that they name.

    >>> config_from({"policy": "flow_unet", "optimizer": {"name": "adamw", "lr": 1e-3}}).optimizer["lr"]   # doctest: +SKIP
    0.001

    Raises:
        UnknownNameError, UserError: as :func:`compose_config`.
    """
    chosen, rest = {}, dict(values)
    for group in ("policy", "optimizer"):
        given = rest.get(group)
        if isinstance(given, str):
            chosen[group] = given
            del rest[group]
        elif isinstance(given, Mapping) and "name" in given:
            chosen[group] = str(given["name"])
    known = [each.name for each in fields(RunConfig)]
    for key in rest:
        if key not in known:
            raise UnknownNameError("config key", str(key), known)
    composed = _composed(None, chosen)
    return _typed(_override(composed, _flat(rest, composed)), "the configuration")


def _composed(experiment: str | None, chosen: Mapping[str, str]) -> DictConfig:
    """Defaults, experiment, and the groups chosen by name."""
    groups: dict[str, list[str]] = {"policy": list(POLICIES), "optimizer": optimizer_names()}
    for group, name in chosen.items():
        if name not in groups[group]:
            raise UnknownNameError(group, name, groups[group])
    _fill_config_store(experiment, chosen)
    selections = [f"+experiment={experiment}"] if experiment else []
    selections += [f"{group}={name}" for group, name in chosen.items()]
    try:
        with initialize_config_module("dopr_robot.configs", version_base="1.3"):
            return compose("train", selections)
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None


def _flat(values: Mapping[str, Any], beside: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key, as deep as the configuration beside them is nested."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = beside.get(key) if isinstance(beside, DictConfig) else None
        if isinstance(value, Mapping) and value and isinstance(inner, DictConfig):
            flat |= _flat(value, inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parse(overrides: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts by Hydra's grammar; later ones win."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None
    for override in parsed:
        if override.type is not OverrideType.CHANGE or override.is_sweep_override():
            raise UserError(f"{override.input_line!r} is not of the form key=value")
    return {override.key_or_group: override.value() for override in parsed}


def _override(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Values set over a composed config; only keys that it has."""
    known = _leaves(OmegaConf.to_container(config, resolve=True))
    for key, value in values.items():
        if key not in known:
            raise UnknownNameError("config key", key, ["experiment", "policy", "optimizer", *known])
        try:
            OmegaConf.update(config, key, value, merge=False)  # a mapping takes the place of the one before
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from None
    return config


def _typed(config: DictConfig, where: str) -> RunConfig:
    known = [each.name for each in fields(RunConfig)]
    for key in config:
        if key not in known:
            raise UnknownNameError(f"config key in {where}:", str(key), known)
    try:
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), config))
    except OmegaConfBaseException as error:
        full_key = getattr(error, "full_key", None)
        message = str(error).splitlines()[0]
        raise UserError(f"{full_key}: {message}" if full_key else f"{where}: {message}") from None
    assert isinstance(made, RunConfig)
    return made


def _leaves(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix[:-1]]
    inner = [leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    return inner if node else [prefix[:-1]]


def _fill_config_store(experiment: str | None, chosen: Mapping[str, str]) -> None:
    """Give Hydra what is composed: the schemas, and of the many policies and optimizers those that are named, since each costs time."""
    store = ConfigStore.instance()
    named = [*_named_in("train"), *(_named_in(f"experiment/{experiment}") if experiment else ()), *chosen.items()]
    for group, name in named:
        if group == "policy":
            store.store(group=group, name=name, node=POLICIES[name].default_config(name))
        else:
            store.store(group=group, name=name, node={"name": name, **optimizer_options(name)})
    for group, schema in {"data": DataConfig, "training": TrainingConfig, "evaluation": EvaluationConfig}.items():
        store.store(group=group, name="default", node=schema)


@cache
def _named_in(file: str) -> tuple[tuple[str, str], ...]:
    """Policy and optimizer in the defaults list of one of our YAML files."""
    values = yaml.safe_load(
        resources.files("dopr_robot").joinpath("configs", f"{file}.yaml").read_text(encoding="utf-8")
    )
    pairs = (pair for entry in values.get("defaults", []) if isinstance(entry, dict) for pair in entry.items())
    named = ((key.removeprefix("override ").lstrip("/"), name) for key, name in pairs)
    return tuple((group, name) for group, name in named if group in ("policy", "optimizer"))

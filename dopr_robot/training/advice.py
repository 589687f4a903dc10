"""Settings that do nothing in the run that they are set for."""

import math
from typing import Any

from dopr_robot.training.config import RunConfig, TrainingConfig

NEEDS = {
    "patience": "early_stop",
    "keep_best": "rollout_every",
    "rollout_episodes": "rollout_every",
}
INTERVALS = ("checkpoint_every", "validate_every", "rollout_every", "spectrum_every", "log_every")


def without_effect(config: RunConfig) -> list[str]:
    """What is set and will not happen, one text each; empty where every setting counts."""
    options, said = config.training, []

    def changed(key: str) -> bool:
        return bool(getattr(options, key) != getattr(TrainingConfig, key))

    def told(key: str, what: str, value: Any = None) -> None:
        said.append(f"training.{key}={getattr(options, key) if value is None else value}: {what}")

    warm = options.schedule != "constant" and options.warmup_steps
    if warm and options.warmup_steps >= options.steps:
        share = options.steps / options.warmup_steps
        told("warmup_steps", f"a run of {options.steps} steps ends in it, at {share:.0%} of optimizer.lr")
    if options.schedule == "constant" and options.warmup_steps and changed("warmup_steps"):
        told("warmup_steps", "training.schedule=constant has no warm-up; constant_with_warmup has")
    for key in INTERVALS:
        if changed(key) and getattr(options, key) > options.steps:
            told(key, f"once, at the end of {options.steps} steps")
    for key, needed in NEEDS.items():
        if changed(key) and not getattr(options, needed):
            told(key, f"nothing without training.{needed}")
    every = {"success_rate": options.rollout_every, "validation_loss": options.validate_every}
    if options.early_stop and (looks := math.ceil(options.steps / every[options.early_stop])) <= options.patience:
        told(
            "early_stop",
            f"{looks} looks in {options.steps} steps can not be more than training.patience={options.patience}",
        )
    if changed("ema_max_decay") and 1 - options.steps**-options.ema_power < options.ema_max_decay:
        told("ema_max_decay", f"not reached in {options.steps} steps")
    if options.spectrum_every and not str(config.optimizer.get("name")).startswith("dopr_"):
        told("spectrum_every", f"nothing under {config.optimizer.get('name')}, which has no spectrum")
    if str(config.optimizer.get("name")).endswith("schedulefree_adamw"):
        for key in ("schedule", "ema_power", "ema_max_decay"):
            if changed(key) and options.schedule != "constant":
                told(key, "nothing under a schedule-free optimizer, which has a warm-up and an average of its own")
    return said

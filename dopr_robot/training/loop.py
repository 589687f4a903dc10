"""The training loop: from top to bottom in the order in which things happen."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from numpy.typing import NDArray
from torch.optim import Optimizer

from dopr_robot.datasets import batch_indices
from dopr_robot.errors import DoprError, UserError
from dopr_robot.files import write_json
from dopr_robot.optim import DoPr, make_optimizer, muon_roles
from dopr_robot.policies import Policy, make_policy
from dopr_robot.policies.compiling import check_compiler
from dopr_robot.policies.products import fast_products
from dopr_robot.progress import progress
from dopr_robot.training.average import average_of
from dopr_robot.training.checkpoints import Checkpoints
from dopr_robot.training.config import RunConfig, write_config
from dopr_robot.training.course import Course, episodes_text
from dopr_robot.training.data import TrainingData, load_data, to_tensors, validation_loss, whole_split
from dopr_robot.training.fingerprint import START, fingerprint
from dopr_robot.training.metrics import MetricsLog
from dopr_robot.training.noise import PartOfBatch, seed_all, step_seed
from dopr_robot.training.processes import (
    agree,
    alone,
    bf16_takes,
    check_device,
    explained_memory,
    keep_freed_memory,
    shared,
)
from dopr_robot.training.profiling import Parts, profiled
from dopr_robot.training.schedule import make_schedule
from dopr_robot.training.signals import Interrupted, deferred_signals

LOG = logging.getLogger(__name__)
FUSED = ("adam", "adamw", "dopr_adam", "dopr_adamw")
Rollout = Callable[[Policy], Mapping[str, float]]
"""Rolls the policy out and returns figures, ``success_rate`` among them, and ``return`` where the task's reward says more."""


def train(
    config: RunConfig,
    folder: Path,
    rollout: Rollout | None = None,
    data: TrainingData | None = None,
    *,
    profile: bool = False,
) -> Path:
    """Train a policy into a run folder, going on from its newest whole checkpoint where there is one.

    Everything drawn at a step is a function of ``(training.seed, step)``, and the data order of ``(training.seed, epoch)``: runs that
    differ in the optimizer alone see the same windows and the same noise, a resumed run ends as an uninterrupted one, and neither the
    number of processes nor ``training.accumulate`` changes what a step computes.

    Args:
        rollout: called every ``training.rollout_every`` steps with the averaged weights.
        data: what :func:`load_data` gave for this configuration; None: it is loaded.
        profile: measure what the first steps spend, see :func:`~dopr_robot.training.profiling.profiled`.

    Returns:
        The newest checkpoint.

    Raises:
        UserError: the configuration does not fit the store, the device or the number of processes; or the folder's run is being trained.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
        DoprError: ``training.max_bad_steps`` in a row had to be left out, memory ran out, or a checkpoint can not be written.
    """
    options = config.training
    if options.threads:
        torch.set_num_threads(options.threads)
    check_device(options.device, options.precision)
    if options.compile:
        check_compiler("training.compile", "false")
    if options.rollout_every and rollout is None:
        raise UserError("training.rollout_every needs a task to roll out in: set task, or training.rollout_every=0")
    data = data or load_data(config)
    config.task = data.task  # the run says itself what it was trained for
    if options.early_stop == "validation_loss" and data.validation is None:
        raise UserError("training.early_stop=validation_loss: the store has too few episodes to hold one out")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # another run of this process may have had another device or precision
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=options.precision)
    if options.precision == "bf16" and accelerator.device.type == "cpu" and (slower := bf16_takes()) > 2:
        LOG.warning(
            "training.precision=bf16: a matrix product takes this processor %.0f times as long as in float32: take training.precision=no",
            slower,
        )
    parts = options.accumulate * accelerator.num_processes
    if options.batch_size % parts:
        raise UserError(
            f"training.batch_size={options.batch_size} can not be shared by {accelerator.num_processes} processes with "
            f"training.accumulate={options.accumulate}: take a multiple of {parts}"
        )
    with alone(folder, cpu=options.device == "cpu"), fast_products():
        return _train(config, folder, rollout, data, accelerator, profile)


def _train(
    config: RunConfig,
    folder: Path,
    rollout: Rollout | None,
    data: TrainingData,
    accelerator: Accelerator,
    profile: bool,
) -> Path:
    options, device, main = config.training, accelerator.device, accelerator.is_main_process
    parts = options.accumulate * accelerator.num_processes
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(options.seed)
    policy = make_policy(config.policy, data.spec)
    policy.fit_normalizer(data.statistics)
    policy.to(device)
    if policy.fits:
        policy.fit(whole_split(data.train, device))
    optimizer = build_optimizer(policy, config)
    schedule = make_schedule(options.schedule, optimizer, options.warmup_steps, options.steps)
    parameters = list(policy.parameters())
    average = average_of(parameters, optimizer, options.ema_power, options.ema_max_decay)
    scaler, course, start = accelerator.scaler, Course(), 0

    checkpoints = Checkpoints(folder / "checkpoints", options.keep_checkpoints)
    if (found := checkpoints.load_last()) is not None:
        start, state = found
        try:
            policy.load_state_dict(state["policy"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            average.load_state_dict(state["average"])
            course = Course.from_state(state["course"])
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(
                f"checkpoint {start} of {folder} is of other settings: {' '.join(str(error).split())[:200]}"
            ) from None
        if scaler is not None and state["scaler"] is not None:
            scaler.load_state_dict(state["scaler"])
    elif main:
        if "hidden" in config.optimizer:
            LOG.warning("%s", muon_roles(policy, config.optimizer["hidden"]).summary())
        first = islice(batch_stream(len(data.train), options.batch_size, options.seed), 3)
        write_json(folder / START, fingerprint(policy, data.train, list(first), options.seed))
    accelerator.wait_for_everyone()
    if main:
        write_config(config, folder)
        checkpoints.clear_traces()
    if options.compile:
        # What a policy does around its network is a few operations; the rows of noise below need those uncompiled.
        getattr(policy, "network", policy).compile()
    # The devices are said, or accelerate asks the same of the weights.
    wrapped, prepared = accelerator.prepare(policy, optimizer, device_placement=[True, True])
    if scaler is None:
        # accelerate's looks for an optional package twice a step, on disk: a tenth of a small network's.
        prepared = optimizer

    def save(step: int) -> None:
        if not main:
            return
        state = {
            # Copies, since the average is about to take the weights' place.
            "policy": {key: value.clone() for key, value in policy.state_dict().items()},
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "average": average.state_dict(),
            "course": course.to_state(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        with average.applied():
            checkpoints.save(step, policy, state, course.best_steps(options.keep_best))

    def due(every: int) -> bool:
        return bool(every) and (step % every == 0 or step == options.steps)

    log = MetricsLog(folder, start, options.tracker, asdict(config)) if main else None
    own = [accelerator.process_index + accelerator.num_processes * piece for piece in range(options.accumulate)]
    stream = batch_stream(len(data.train), options.batch_size, options.seed, start)
    batches = data.train.ahead(stream, lambda indices: [indices[part::parts] for part in own])
    step, saved, norm = start, start, 0.0
    stop = _exhausted(course, config)
    deadline = time.monotonic() + 3600 * (options.max_hours or math.inf)
    wrapped.train()
    with (
        deferred_signals() as pending,
        progress("train", options.steps, "steps", done=start) as meter,
        log or nullcontext(),
        explained_memory(options.batch_size, options.accumulate),
        profiled(folder, options.steps - start) if profile and main else nullcontext(Parts()) as part_of_step,
    ):
        while step < options.steps and not stop:
            clock, step, indices, note = time.perf_counter(), step + 1, next(batches), None

            loss = torch.zeros((), device=device)
            for piece, part in enumerate(own):
                with part_of_step("batch"):
                    batch = to_tensors(data.train.batch(indices[part::parts]), device)
                last = piece == options.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(wrapped):
                    with part_of_step("loss"), noise(config, device, step, part, parts), accelerator.autocast():
                        part_loss, _ = wrapped(batch)
                    with part_of_step("backward"):
                        accelerator.backward(part_loss / options.accumulate)
                loss += part_loss.detach() / options.accumulate
            value, signum, late = agree(accelerator, loss, pending.signum or 0, time.monotonic() > deadline)

            fault = course.fault(value, options.spike_ratio)
            if fault is None:
                with part_of_step("optimizer"):
                    # accelerate's own asks each gradient whether it is a DTensor, and loads a second's worth of torch for the question.
                    accelerator.unscale_gradients()
                    norm = float(torch.nn.utils.clip_grad_norm_(parameters, options.gradient_clip or math.inf))
                if scaler is None and not math.isfinite(norm):  # a scaler looks itself, and lowers its scale
                    fault = f"the gradient's norm is {norm}"
            if fault is None:
                with part_of_step("optimizer"):
                    prepared.step()
                with part_of_step("average"):
                    average.update()
                course.accept(value, time.perf_counter() - clock)
            else:
                course.skip()
                if isinstance(optimizer, DoPr):
                    optimizer.forget_inputs()
                episodes = np.unique(data.train.episode_of(indices)).tolist()
                if log is not None:
                    log.event(step, {"skipped": fault, "episodes": episodes})
                    LOG.warning("step %d is left out: %s; episodes %s", step, fault, episodes_text(episodes))
                if course.skipped_in_a_row >= options.max_bad_steps:
                    kept = f"checkpoint {saved} is good" if saved else "there is no checkpoint yet"
                    raise DoprError(
                        f"{course.skipped_in_a_row} steps in a row had to be left out, up to step {step} ({fault}; episodes "
                        f"{episodes_text(episodes)}): lower optimizer.lr, or look at these episodes; {kept}"
                    )
            prepared.zero_grad()
            schedule.step()

            if due(options.log_every) and course.unlogged:
                mean = sum(course.unlogged) / len(course.unlogged)
                note = f"loss {mean:.4f}"
                values = {"loss": mean, "lr": float(schedule.get_last_lr()[0]), "gradient_norm": norm}
                values["steps_per_s"] = (step - course.skipped) / course.seconds
                course.unlogged = []
                if log is not None:
                    log.write(step, values, course.seconds)
            if due(options.spectrum_every) and log is not None and isinstance(optimizer, DoPr):
                optimizer.log_spectrum(log.board, step)
            if data.validation is not None and due(options.validate_every):
                averages: float | None = None
                if log is not None:
                    plain = validation_loss(policy, data.validation, max_windows=options.validation_windows)
                    with average.applied():
                        averages = validation_loss(policy, data.validation, max_windows=options.validation_windows)
                    values = {"validation_loss": averages, "validation_loss_without_ema": plain}
                    log.write(step, values, course.seconds)
                if options.early_stop == "validation_loss":
                    course.look(shared(accelerator, averages))
            if rollout is not None and due(options.rollout_every):
                figures: Mapping[str, float] | None = None
                if log is not None:
                    with average.applied():
                        figures = rollout(policy)
                    log.write(step, figures, course.seconds)
                figures = shared(accelerator, figures)
                course.success[step] = figures["success_rate"]
                note = f"{course.success[step]:.0%} succeeded"
                if "return" in figures:
                    course.returns[step] = figures["return"]
                    note += f", return {figures['return']:.0f}"
                if options.early_stop == "success_rate":
                    course.looks = course.rollouts_since_best

            stop = _exhausted(course, config)
            if late and step < options.steps:
                stop = f"training.max_hours={options.max_hours:g} are over"
            wanted = due(options.checkpoint_every) or step in course.best_steps(options.keep_best)
            # While steps are being left out the weights may be what is wrong: the checkpoint before stays the last.
            sound = not course.skipped_in_a_row or (
                step == options.steps and all(p.isfinite().all() for p in parameters)
            )
            if (wanted or stop or signum) and sound:
                save(step)
                saved = step
            part_of_step.next_step()
            meter.advance(note=note)
            if signum:
                raise Interrupted(signum, f"state saved at step {saved}: dopr train --resume {folder}")
    if stop and main:
        LOG.warning("stopped at step %d of %d, the state is saved: %s", step, options.steps, stop)
    accelerator.wait_for_everyone()
    if not checkpoints.steps():
        raise DoprError(f"no checkpoint was written: the last {course.skipped_in_a_row} steps had to be left out")
    return checkpoints.folder / str(checkpoints.steps()[-1])


def build_optimizer(policy: Policy, config: RunConfig) -> Optimizer:
    """The optimizer that the configuration names; a schedule of its damping goes over the whole run where it says no ``steps``.
    Raises UserError for a value that it does not take.
    """
    # The same step in one pass over the weights, where torch has it; it is no property of the method, so it is no setting.
    fused: dict[str, Any] = {"fused": True} if config.optimizer.get("name") in FUSED else {}
    try:
        options = dict(config.optimizer)
        if isinstance(options.get("damping"), dict):
            options["damping"] = {"steps": config.training.steps, **options["damping"]}
        return make_optimizer(model=policy, **options, **fused)
    except (ValueError, TypeError) as error:
        raise UserError(f"optimizer {config.optimizer.get('name')}: {error}") from None


def noise(config: RunConfig, device: torch.device, step: int, part: int, parts: int) -> Any:
    """Seed this step's random numbers; the context in which they are drawn."""
    options = config.training
    if options.compile and parts > 1:
        # Compiled code draws without asking torch's dispatcher: the parts draw each for itself.
        seed_all(step_seed(options.seed, step, part), device)
        return nullcontext()
    seed_all(step_seed(options.seed, step), device)
    return PartOfBatch(part, parts, options.batch_size // parts) if parts > 1 else nullcontext()


def batch_stream(windows: int, batch_size: int, seed: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
    """Indices of the whole batches (all processes') from step ``start`` on, epoch after epoch."""
    epoch, skip = divmod(start, len(batch_indices(windows, batch_size, seed, 0)))
    while True:
        yield from batch_indices(windows, batch_size, seed, epoch)[skip:]
        epoch, skip = epoch + 1, 0


def _exhausted(course: Course, config: RunConfig) -> str:
    """Why training has nothing left to gain by the rule of ``training.early_stop``; empty where it has."""
    options = config.training
    if options.early_stop is None or course.looks < options.patience:
        return ""
    return f"{options.early_stop} has not improved for training.patience={options.patience} looks"

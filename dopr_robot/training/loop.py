"""The training loop: from top to bottom in the order in which things happen."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.tensorboard import SummaryWriter

from dopr_robot.datasets import batch_indices
from dopr_robot.errors import DoprError, UserError
from dopr_robot.files import replacing
from dopr_robot.optim import make_optimizer
from dopr_robot.policies import Policy, make_policy
from dopr_robot.progress import progress
from dopr_robot.training.checkpoints import Checkpoints
from dopr_robot.training.config import RunConfig
from dopr_robot.training.data import TrainingData, load_data, to_tensors, validation_loss, whole_split
from dopr_robot.training.signals import Interrupted, deferred_signals


def train(config: RunConfig, folder: Path) -> Path:
    """Train a policy into a run folder, going on from its newest whole checkpoint where there is one.

    Everything drawn at a step is a function of ``(training.seed, step)``, and the data order of ``(training.seed, epoch)``: runs that
    differ in the optimizer alone see the same windows and the same noise, and a resumed run ends as an uninterrupted one.

    Returns:
        The newest checkpoint.

    Raises:
        UserError: the configuration does not fit the store.
        Interrupted: SIGINT or SIGTERM came; the state was saved first.
        DoprError: the loss is not finite.
    """
    options = config.training
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device=cuda but torch finds no CUDA device: use training.device=cpu")
    data = load_data(config)
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=options.precision)
    device, main = accelerator.device, accelerator.is_main_process

    torch.manual_seed(options.seed)
    policy = make_policy(config.policy, data.spec)
    policy.fit_normalizer(data.statistics)
    policy.to(device)
    if policy.fits:
        policy.fit(whole_split(data.train, device))
    optimizer = make_optimizer(model=policy, **config.optimizer)
    schedule = get_scheduler(
        options.schedule, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=options.steps
    )
    parameters = list(policy.parameters())
    average = EMAModel(
        parameters,
        decay=options.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=1.0,
        power=options.ema_power,
        foreach=True,
    )

    checkpoints = Checkpoints(folder / "checkpoints", options.keep_checkpoints)
    start = 0
    if (found := checkpoints.load_last()) is not None:
        start, state = found
        policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average.load_state_dict(state["average"])
        average.to(device)
    wrapped, prepared = accelerator.prepare(policy, optimizer)

    def save(step: int) -> None:
        if main and step not in checkpoints.steps():
            state = {
                # Copies, since the average is about to take the weights' place.
                "policy": {key: value.clone() for key, value in policy.state_dict().items()},
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "average": average.state_dict(),
            }
            with averaged(policy, average):
                checkpoints.save(step, policy, state)

    log = MetricsLog(folder, start) if main else None
    batches = batch_stream(
        data, options.batch_size, options.seed, start, accelerator.process_index, accelerator.num_processes
    )
    losses: list[torch.Tensor] = []
    wrapped.train()
    with deferred_signals() as pending, progress("train", options.steps, "steps", done=start) as meter:
        clock = time.perf_counter()
        for step, batch in zip(range(start + 1, options.steps + 1), batches, strict=False):
            torch.manual_seed(step_seed(options.seed, step, accelerator.process_index))
            with accelerator.autocast():
                loss, _ = wrapped(to_tensors(batch, device))
            accelerator.backward(loss)
            norm = accelerator.clip_grad_norm_(parameters, options.gradient_clip) if options.gradient_clip else None
            prepared.step()
            prepared.zero_grad()
            schedule.step()
            average.step(parameters)
            losses.append(loss.detach())
            note = None

            if step % options.log_every == 0 or step == options.steps:
                mean = torch.stack(losses).mean().item()
                if not np.isfinite(mean):
                    raise DoprError(
                        f"the loss is {mean} at step {step}: lower optimizer.lr; the last checkpoint is untouched"
                    )
                values: dict[str, float] = {"loss": mean, "lr": float(schedule.get_last_lr()[0])}
                if norm is not None:
                    values["gradient_norm"] = float(norm)
                values["steps_per_s"] = len(losses) / (time.perf_counter() - clock)
                note = f"loss {mean:.4f}"
                losses, clock = [], time.perf_counter()
                if log is not None:
                    log.write(step, values)
            if data.validation is not None and main and (step % options.validate_every == 0 or step == options.steps):
                with averaged(policy, average):
                    value = validation_loss(policy, data.validation, max_windows=options.validation_windows)
                assert log is not None
                log.write(step, {"validation_loss": value})
                clock = time.perf_counter()
            if step % options.checkpoint_every == 0 or step == options.steps:
                save(step)
            meter.advance(note=note)
            if pending.signum is not None:
                save(step)
                raise Interrupted(pending.signum, f"state saved at step {step}: dopr train --resume {folder}")
    if log is not None:
        log.close()
    accelerator.wait_for_everyone()
    return checkpoints.folder / str(checkpoints.steps()[-1])


def batch_stream(
    data: TrainingData, batch_size: int, seed: int, start: int, rank: int, world_size: int
) -> Iterator[Any]:
    """Batches from step ``start`` on, epoch after epoch; a process's share is ``batch_size / world_size``."""
    share = batch_size // world_size
    if share * world_size != batch_size:
        raise UserError(f"training.batch_size={batch_size} is not a multiple of the {world_size} processes")
    per_epoch = len(batch_indices(len(data.train), share, seed, 0, rank, world_size))
    epoch, skip = divmod(start, per_epoch)
    while True:
        for indices in batch_indices(len(data.train), share, seed, epoch, rank, world_size)[skip:]:
            yield data.train.batch(indices)
        epoch, skip = epoch + 1, 0


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything that one process draws at one step."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint32)[0])


class averaged:  # a word in a with statement: with averaged(policy, average)
    """The policy with its averaged weights, inside a ``with`` block."""

    def __init__(self, policy: Policy, average: EMAModel) -> None:
        self.parameters = list(policy.parameters())
        self.average = average

    def __enter__(self) -> None:
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)

    def __exit__(self, *_: object) -> None:
        self.average.restore(self.parameters)


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard of a run; what an interrupted run logged beyond ``start`` is dropped."""

    def __init__(self, folder: Path, start: int) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step_of(line) <= start]
            with replacing(self.path) as beside:
                beside.write_text("".join(line + "\n" for line in lines))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line and flush it."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        self.board.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line that a kill cut short

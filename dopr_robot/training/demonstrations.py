"""The store that a configuration names, and what makes it where it is not there."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from dopr_robot.datasets import Store
from dopr_robot.envs import get_task
from dopr_robot.envs.registration import NAMESPACE
from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.training.config import RunConfig

USUAL_NUMBER = 100
"""Demonstrations in the command that is suggested where the configuration names no number."""

_HELD: ContextVar[dict[str, Store] | None] = ContextVar("held", default=None)


def open_store(config: RunConfig) -> Store:
    """The store, open to read. Raises UserError where there is none; the message has the command that makes it."""
    if config.data.store is None:
        raise UserError("data.store is not set: data.store=PATH names the demonstrations")
    if is_missing(config):
        raise UserError(f"{config.data.store}: no such file or folder: {_mend(config)}")
    held = _HELD.get()
    if held is None:
        return Store.open(config.data.store)
    if config.data.store not in held:
        held.clear()  # one at a time, or the memory of a study grows with its tasks
        held[config.data.store] = Store.open(config.data.store)
    return held[config.data.store]


@contextmanager
def stores_held(held: dict[str, Store]) -> Iterator[None]:
    """Inside a ``with`` block the store that ``held`` has is not opened, and what it has in memory not read, again: for runs on one store
    that nobody writes meanwhile. ``held`` keeps the last that was opened."""
    token = _HELD.set(held)
    try:
        yield
    finally:
        _HELD.reset(token)


def is_missing(config: RunConfig) -> bool:
    """Whether the configuration names a store on this machine that is not there."""
    store = config.data.store
    return store is not None and "://" not in store and "::" not in store and not Path(store).exists()


def collect_command(config: RunConfig, number: int) -> str | None:
    """The call of ``dopr collect`` that makes the store; None where the task has neither expert nor few demonstrations to start from."""
    task, about = config.task, config.collect
    try:
        spec = get_task(task.name or "")
    except UnknownNameError:
        return None
    if not (spec.has_expert or (spec.segments and about.source)):
        return None
    name = spec.name if spec.id.startswith(f"{NAMESPACE}/") else spec.id
    words = ["dopr", "collect", name, "--episodes", str(number), "--out", str(config.data.store)]
    words += ["--from", about.source] if about.source else []
    words += [] if about.noise == 1 else ["--noise", f"{about.noise:g}"]
    words += ["--cameras", ",".join(about.cameras)] if about.cameras else []
    words += ["--size", str(about.camera_size)] if about.camera_size else []
    for option, value in (task.options or {}).items():
        words += ["--option", f"{option}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _mend(config: RunConfig) -> str:
    made = collect_command(config, config.collect.demonstrations or USUAL_NUMBER)
    if made:
        return f"`{made}` makes it"
    whose = f"{config.task.name} has no expert" if config.task.name else "no task is named whose expert could make it"
    return f"{whose}: `dopr convert SOURCE {shlex.quote(str(config.data.store))}` brings demonstrations of your own"

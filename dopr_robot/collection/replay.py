"""A demonstration played again from its recorded start: does the simulator still do what it did?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from dopr_robot.datasets import Attributes, Episode, Report, Store, check, is_store
from dopr_robot.datasets.check import Replay, Replayed
from dopr_robot.datasets.formats.adroit import START
from dopr_robot.envs import Task, get_task, load_expert, load_segments
from dopr_robot.errors import DamagedError, DoprError, UserError
from dopr_robot.reading import Maybe, require

COLLECTED = "collect"
"""Where ``dopr collect`` notes, in a store's carried attributes, the noise under which the recorded actions were executed."""


def collection(about: Attributes) -> dict[str, Any]:
    """What ``dopr collect`` noted: ``noise`` and ``from``, as far as they are there. Raises DamagedError."""
    form = {"noise": float | None, "options": Maybe({}), "from": Maybe({"sha256": str, "store": str})}
    return require(about.carried.get(COLLECTED) or {}, form, f"the store's attribute carried.{COLLECTED}")


def executed_actions(about: Attributes, episode: Episode) -> NDArray[Any]:
    """What was executed while ``action`` was recorded, ``[T, A]``, before clipping: the noise is a function of the seed."""
    actions = episode.arrays["action"].copy()
    noted = collection(about)
    noise = float(noted.get("noise") or 0.0)
    if noise and about.task is not None and episode.seed is not None:
        spec = get_task(about.task)
        scale = (load_segments(spec) if noted.get("from") else load_expert(spec)).noise * noise
        random = np.random.default_rng((episode.seed, 1))
        for action in actions:
            action += scale * random.standard_normal(len(scale))
    return actions


def recorded(about: Attributes) -> Task:
    """The task that a store shows, with its options. Raises UserError where it does not say."""
    if about.task is None:
        raise UserError("the task is unknown")
    return Task(about.task, about.options)


def begun(env: Any, state: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Observation and info of one environment that begins in a recorded state. Runs where the copy lives."""
    found: tuple[dict[str, Any], dict[str, Any]] = env.reset(options={"initial_state_dict": dict(state)})
    return found


@contextmanager
def replaying(about: Attributes, longest: int = 0) -> Iterator[Replay]:
    """What replays the episodes of a store, for :func:`dopr_robot.datasets.check`.

    The task is reset to the state in which an episode began, where that is recorded, or to its seed, and its actions are executed, with
    the noise that was injected when they were collected (a function of the seed), until they or the task come to an end. Observations
    of a name and a shape that the store has too are compared.

    Args:
        about: the store's attributes.
        longest: steps of its longest episode; people take longer than a task's own limit.

    Raises UserError where the task is unknown, or its simulator not installed; the replay, where the actions are not the task's.
    """
    collection(about)
    task = recorded(about)
    spec = task.spec
    # Without its cameras: pictures may differ in a pixel where another OpenGL draws them.
    env: Any = Task(task.id, task.varied).make_vec(1, **spec.lasting(longest))
    space = env.single_action_space
    assert isinstance(space, Box)

    def replay(episode: Episode) -> Replayed | None:
        parts = ((name.partition("/"), value) for name, value in episode.meta.items())
        state = {part: value for (group, _, part), value in parts if group == START}
        begins = bool(spec.start) and bool(state)
        if (episode.seed is None and not begins) or "action" not in episode.arrays:
            return None
        actions = executed_actions(about, episode)
        if actions.shape[1:] != space.shape:
            raise UserError(f"the store's actions have shape {list(actions.shape[1:])}, the task's {list(space.shape)}")
        observation, info = env.reset(seed=[episode.seed or 0])
        if begins:
            (found,) = env.apply("dopr_robot.collection.replay:begun", {0: (state,)}).values()
            observation, info = ({key: np.asarray(value)[None] for key, value in each.items()} for each in found)
        kept = {
            key: episode.arrays[key].astype(np.float64)
            for key, value in observation.items()
            if key in episode.arrays and episode.arrays[key].shape[1:] == value.shape[1:]
        }
        drift = dict.fromkeys(kept, 0.0)
        success = bool(info["success"][0])
        for step, action in enumerate(actions):
            for key, values in kept.items():
                difference = np.abs(values[step] - observation[key][0])
                drift[key] = max(drift[key], float(difference.max(initial=0.0)))
            observation, _, terminated, truncated, info = env.step(np.clip(action, space.low, space.high)[None])
            now = bool(info["success"][0])
            success = success or now if spec.kind == "attain" else now
            if terminated[0] or truncated[0]:
                break
        return Replayed(drift, success)

    try:
        yield replay
    finally:
        env.close()


def check_store(path: str | os.PathLike[str]) -> Report:
    """Everything in a store read, and ten episodes replayed where its task's simulator is installed and their seeds are known.

    Raises UserError where it is no store. The report's ``replays.why_not`` says why nothing was replayed.
    """
    path = os.fspath(path)
    if not is_store(path):
        raise UserError(f"{path} is no store: --check reads stores")
    why_not, replay = "", None
    with ExitStack() as stack:
        try:
            store = Store.open(path)
            if (store.seeds >= 0).any() or any(name.startswith(f"{START}/") for name in store.meta):
                replay = stack.enter_context(replaying(store.attributes, int(store.episode_lengths.max(initial=0))))
            else:
                why_not = "no episode has a seed or a recorded start"
        except DamagedError:
            why_not = "it is damaged"
        except DoprError as error:  # no such task, or a simulator that can not be made
            why_not = str(error)
        report = check(path, replay=replay)
    if why_not:
        report.replays.why_not = why_not
    return report

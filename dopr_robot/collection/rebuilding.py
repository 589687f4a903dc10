"""Observations of a task's own environment, pictures included, for the simulator's states that a file holds.

What robomimic's ``dataset_states_to_obs`` does: every recorded state is set in the simulator, and what the task then shows is the
observation. The environment is the one that evaluates, so a policy meets there what it was trained on: the same keys, dtypes and pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dopr_robot.datasets import Attributes, Episode, Store
from dopr_robot.datasets.formats import robomimic, robosuite
from dopr_robot.datasets.formats.format import STORE
from dopr_robot.datasets.recording import Recording, unfinished
from dopr_robot.envs import Task, TaskSpec, recorded_task
from dopr_robot.envs.faults import START_S
from dopr_robot.envs.workers import cores
from dopr_robot.errors import UserError
from dopr_robot.progress import progress

STEP_S = 1.0
"""Seconds that a step may take, all its pictures together."""


def rebuilt(
    name: str,
    source: Path,
    begin: int,
    *,
    out: Path,
    task: TaskSpec | None,
    cameras: Sequence[str],
    size: int | tuple[int, int] | None,
) -> Recording:
    """The episodes of a file with states, from ``begin`` on, with the observations that its task shows.

    What the file had as observations is left out, everything else is kept.

    Args:
        name: of its format.
        source: the file.
        begin: how many episodes are at :func:`~dopr_robot.datasets.recording.unfinished` of ``out``.
        out: see there.
        task: that is shown; None: the one that the file names.
        cameras: whose pictures are observed.
        size: of the pictures; None: the task's own.

    Raises:
        UserError: another format, no states, no such task, camera or size, no OpenGL, or an unfinished store of other episodes.
    """
    if name not in (robosuite.NAME, robomimic.NAME):
        what = "a store" if name == STORE else f"of the format {name}"
        raise UserError(
            f"--cameras rebuilds observations from the states in a file of robosuite or robomimic, and {source} is {what}"
        )
    made_in = robosuite.environment_of(source)
    spec = task or (recorded_task(made_in.task) if made_in.task else None)
    if spec is None or spec.package != robomimic.ROBOSUITE_NAME:
        shown = spec.id if spec else made_in.name or "an environment without a name"
        raise UserError(
            f"{source} is of {shown}: --cameras needs one of robosuite's tasks (--task NAME, see dopr tasks)"
        )
    shows = Task(spec.id, {"cameras": list(cameras), **({} if size is None else {"camera_size": size})})
    spec.check_installed()
    shows.check_drawing()
    env_args = {"env_name": made_in.name, "env_kwargs": dict(made_in.options)}
    robots = made_in.options.get("robots", [])
    if {*([robots] if isinstance(robots, str) else robots)} - {"Panda"}:  # not the task's own
        shows = shows.given({"env_args": env_args})
    recording = robosuite.recorded(source) if name == robosuite.NAME else robomimic.read(source)
    about = replace(
        recording.attributes, task=spec.id, options=shows.options, observations=(*spec.observations, *cameras)
    )
    if name == robomimic.NAME:
        about = about.with_provenance(robosuite.rebuilt_in())
    episodes = _with_states(recording.episodes, source)
    if begin:
        _compare(Store.open(unfinished(out)), about, episodes, source)
    rebuilding = _rebuilt(
        episodes, shows.given({"env_args": env_args}), begin,
        total=robosuite.count(source), version=made_in.version, source=source.name,
    )  # fmt: skip
    return Recording(about, rebuilding, named=recording.named)


def _with_states(episodes: Iterable[Episode], source: Path) -> Iterator[Episode]:
    """The episodes without what they have as observations."""
    for episode in episodes:
        kept = {key: value for key, value in episode.arrays.items() if key in robomimic.BESIDE}
        if "states" not in kept or robosuite.MODEL not in episode.meta:
            missing = "states" if "states" not in kept else "attribute model_file"
            raise UserError(
                f"{source}: has no {missing} (episode {episode.meta['name']}): observations are rebuilt from states alone"
            )
        yield replace(episode, arrays=kept)


def _compare(begun: Store, about: Attributes, episodes: Iterator[Episode], source: Path) -> None:
    """Pass the episodes that are in a store. Raises UserError where it is of others, or of other pictures."""
    same = (begun.attributes.task, begun.attributes.options) == (about.task, about.options)
    for index in range(begun.num_episodes):
        episode = next(episodes, None) if same else None
        if episode is None or not np.array_equal(begun.episode(index, ["states"])["states"], episode.arrays["states"]):
            raise UserError(
                f"{begun.path} is the beginning of something else than {source}: remove it, or choose another path"
            )


def _rebuilt(
    episodes: Iterator[Episode], task: Task, begin: int, *, total: int, version: str, source: str
) -> Iterator[Episode]:
    """The episodes with what the task shows, one a core at a time."""
    env: Any = task.make_vec(min(cores(), total - begin)) if begin < total else None
    if env is None:
        return
    with closing(env), progress(f"rebuild {task.id}", total, "episodes", done=begin) as meter:
        while wave := list(islice(episodes, env.num_envs)):
            seconds = START_S + STEP_S * max(len(episode.arrays["states"]) for episode in wave)
            arguments = {copy: (episode, version, source) for copy, episode in enumerate(wave)}
            shown = env.apply("dopr_robot.collection.rebuilding:observed", arguments, seconds)
            for copy, episode in enumerate(wave):
                arrays, success = shown[copy]
                known = success if episode.success is None else episode.success
                yield replace(episode, arrays={**arrays, **episode.arrays}, success=known)
                meter.advance()


def observed(env: Any, episode: Episode, version: str, source: str) -> tuple[dict[str, Any], bool]:
    """What a task shows in an episode's states, ``{key: [T, ...]}``, and whether one of them is a success. Runs where the copy lives.

    Args:
        env: an adapted robosuite environment.
        episode: with ``states [T, 1 + nq + nv]`` and the model's XML.
        version: of the robosuite that recorded it.
        source: the file, in messages.
    """
    robosuite.load_model(env.unwrapped.env, episode, version, source)
    shown = [env.recall(state) for state in episode.arrays["states"]]
    arrays = {key: np.stack([observation[key] for observation, _ in shown]) for key in shown[0][0]}
    return arrays, any(success for _, success in shown)

"""What has to hold for a task, looked at by running it: `dopr tasks NAME --check`, and the tests of every task of ours.

Each check takes the task's spec and gives what is wrong, a line each.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from dopr_robot.envs.contract import check_start, start_of
from dopr_robot.envs.faults import ask, describe
from dopr_robot.envs.loading import load_expert
from dopr_robot.envs.making import make, make_vec
from dopr_robot.envs.registration import TaskSpec, get_task
from dopr_robot.errors import UserError

STEPS = 1_000
SEED, OTHER = 7, 8


def spaces(spec: TaskSpec) -> Iterator[str]:
    """The spec can be sent to another process; spaces are what it says; Gymnasium's own checker finds nothing."""
    if pickle.loads(pickle.dumps(spec)) != spec:
        yield "the TaskSpec is not the same after pickling"
    env = make(spec.id)
    try:
        given = {key: space.shape for key, space in env.observation_space.items()}  # type: ignore[attr-defined]
        said = {key: tuple(shape) for key, shape in spec.observations.items()}
        if given != said:
            yield f"observations have shapes {given}, the TaskSpec says {said}"
        for name in ("low", "high"):
            bound, meant = getattr(env.action_space, name), getattr(spec.action, name)
            if not np.array_equal(bound, np.float32(meant)):
                yield f"the action space's {name} is {bound.tolist()}, the TaskSpec says {list(meant)}"
        try:
            ask(check_env, env, skip_render_check=True)
        except Exception as error:
            yield f"gymnasium.utils.env_checker: {describe(error)}"
    finally:
        env.close()


def seed(spec: TaskSpec) -> Iterator[str]:
    """One seed begins, and goes on under the same actions, alike; another one otherwise."""
    env = make_vec(spec.id, 1)
    try:
        check_start(env, spec, SEED)
        first = _trace(env, spec, SEED)
        again = _trace(env, spec, SEED)
        one, other = (start_of(*env.reset(seed=[number])) for number in (SEED, OTHER))  # type: ignore[arg-type]
        for step, (seen, two) in enumerate(zip(first, again, strict=False)):
            unlike = [key for key in seen if key not in pictures(spec) and not np.array_equal(seen[key], two[key])]
            if unlike:
                yield f"seed {SEED}, run twice under the same actions, differs in {', '.join(unlike)} after step {step}"
                break
        if all(np.array_equal(one[key], other[key]) for key in other):
            yield f"seeds {SEED} and {OTHER} begin alike: every episode is the same one"
    finally:
        env.close()


def episodes(spec: TaskSpec, steps: int = STEPS, look: Callable[[Any], list[str]] = lambda env: []) -> Iterator[str]:
    """Under random actions: observations inside their space, finite rewards, success, stages and metrics told, an end where one is due.

    Args:
        spec: the task.
        steps: how many actions.
        look: what else is wrong with the environment, asked where an episode ends.
    """
    env, length = make(spec.id), 0
    try:
        env.action_space.seed(0)
        env.reset(seed=SEED)
        for step in range(1, steps + 1):
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
            length += 1
            wrong = _wrong(spec, env, observation, float(reward), info)
            if spec.kind == "attain" and terminated and not truncated and not info["success"]:
                wrong += [] if info.get("cause") else ["the episode ends without success, and info names no cause"]
            if terminated or truncated or step == steps:
                wrong += look(env)
            if wrong:
                yield from (f"{what} (step {step})" for what in wrong)
                return
            if terminated or truncated or length == spec.max_steps:
                env.reset(seed=SEED + step)
                length = 0
    finally:
        env.close()


def limit(spec: TaskSpec, steps: int = 3) -> Iterator[str]:
    """Where horizons beyond `max_steps` may be asked for (`extensible`), an episode is as long as it is asked to be."""
    if not spec.extensible:
        return
    env = make(spec.id, max_steps=steps)
    try:
        env.reset(seed=SEED)
        middle = np.mean([spec.action.low, spec.action.high], axis=0).astype(np.float32)
        for step in range(1, steps + 1):
            _, _, terminated, truncated, _ = env.step(middle)
            if terminated:
                return
            if truncated != (step == steps):
                yield f"made with max_steps={steps} it {'ends' if truncated else 'goes on'} after {step} steps"
                return
    finally:
        env.close()


def copies(spec: TaskSpec, steps: int = 10) -> Iterator[str]:
    """Three copies, stepped together, against one: the same to the bit."""
    low, high = (np.asarray(bound, np.float32) for bound in (spec.action.low, spec.action.high))
    actions = np.random.default_rng(0).uniform(0.4, 0.6, (steps, 3, len(low))) * (high - low) + low
    several, single = make_vec(spec.id, 3), make(spec.id)
    try:
        seen, _ = several.reset(seed=[4, 5, 6])  # type: ignore[arg-type]
        alone, _ = single.reset(seed=5)
        for step, action in enumerate([None, *actions.astype(np.float32)]):
            ended = False
            if action is not None:
                seen, rewards, terminations, _, infos = several.step(action)
                alone, reward, ended, _, info = single.step(action[1])
                own = (rewards[1], terminations[1], infos["success"][1])
                if own != (reward, ended, info["success"]):
                    yield f"reward, end and success of three copies' second are {own}, alone otherwise (step {step})"
                    return
            unlike = [
                key for key in alone if key not in pictures(spec) and not np.array_equal(seen[key][1], alone[key])
            ]
            if unlike:
                yield f"three copies' second and one alone differ in {', '.join(unlike)} (step {step})"
                return
            if ended:
                return
    finally:
        several.close()
        single.close()


def expert(spec: TaskSpec, steps: int = 5) -> Iterator[str]:
    """The expert, where there is one, is made, says its noise, and acts."""
    if not spec.has_expert:
        return
    env = make_vec(spec.id, 2)
    try:
        made = load_expert(spec)(env)
        env.reset(seed=[SEED, OTHER])  # type: ignore[arg-type]
        for copy, number in enumerate((SEED, OTHER)):
            if hasattr(made, "begin"):
                made.begin(copy, number)
        for step in range(1, steps + 1):
            actions = np.asarray(made.act())
            if actions.shape != (2, len(spec.action.low)) or not np.isfinite(actions).all():
                yield f"the expert's actions for two copies have shape {list(actions.shape)} or are not finite: {actions} (step {step})"
                return
            env.step(np.clip(actions.astype(np.float32), spec.action.low, spec.action.high).astype(np.float32))
    finally:
        env.close()


CHECKS: Mapping[str, Callable[[TaskSpec], Iterator[str]]] = {
    "spaces": spaces,
    "seed": seed,
    "episodes": episodes,
    "limit": limit,
    "copies": copies,
    "expert": expert,
}


def check_task(task: TaskSpec | str) -> Iterator[tuple[str, list[str]]]:
    """Every check's name (one of :data:`CHECKS`) and what it found, as ``dopr tasks NAME --check`` does; what a task raises is found too.

    Raises UnknownNameError for a task that is not registered, MissingExtraError for one whose package is not installed.
    """
    spec = get_task(task) if isinstance(task, str) else task
    spec.check_installed()
    for name, check in CHECKS.items():
        found: list[str] = []
        try:
            found.extend(check(spec))
        except UserError as error:
            found.append(str(error))
        except Exception as error:
            found.append(describe(error))
        yield name, found


def pictures(spec: TaskSpec) -> list[str]:
    """Observations that need not be the same to the bit: gym-aloha says of its own that they differ from run to run."""
    return [key for key, shape in spec.observations.items() if len(shape) == 3]


def _trace(env: Any, spec: TaskSpec, number: int, steps: int = 5) -> list[dict[str, NDArray[Any]]]:
    """Observations of the first steps under random actions."""
    observation, _ = env.reset(seed=[number])
    seen = [{key: np.array(value) for key, value in observation.items()}]
    low, high = (np.asarray(bound, np.float32) for bound in (spec.action.low, spec.action.high))
    for action in np.random.default_rng(0).uniform(low, high, (steps, 1, len(low))).astype(np.float32):
        observation, _, terminated, truncated, _ = env.step(action)
        seen.append({key: np.array(value) for key, value in observation.items()})
        if terminated.any() or truncated.any():
            break
    return seen


def _wrong(spec: TaskSpec, env: Any, observation: Any, reward: float, info: Mapping[str, Any]) -> list[str]:
    wrong = []
    if not env.observation_space.contains(observation):
        outside = [key for key, space in env.observation_space.items() if not space.contains(observation.get(key))]
        wrong.append(
            f"observation {', '.join(outside) or 'keys'} lies outside the observation space (bounds, shape or dtype)"
        )
    if not np.isfinite(reward):
        wrong.append(f"the reward is {reward}")
    missing = [name for name in (*spec.stages, *spec.metrics) if name not in info]
    if missing:
        wrong.append(f"info has no {', '.join(missing)}, which the TaskSpec names")
    for name in spec.shares:
        if name in info and not 0 <= info[name] <= 1:
            wrong.append(f"{name} is {info[name]:g}, and the TaskSpec says that it is a share, from 0 to 1")
    return wrong

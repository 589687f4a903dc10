"""What holds for every registered task whose package is installed; a new task is tested by being registered."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from dopr_robot.envs import get_task, list_tasks, load_expert, make, make_vec

ELSEWHERE = ("aloha", "gymnasium-robotics", "metaworld", "robosuite")
"""Extras that are installed in the simulators' environment."""
STEPS = {"aloha": 30}
"""Random actions, where 1,000 take minutes: gym-aloha draws four pictures a step."""


def tasks(specs):
    return [pytest.param(s.id, marks=[pytest.mark.sim] if s.extra in ELSEWHERE else [], id=s.id) for s in specs]


def mujoco_warnings(env):
    """How often MuJoCo has warned in an environment, wherever its package keeps the data; PushT has none."""
    inner = env.unwrapped
    if hasattr(inner, "vector"):  # ours
        datas = inner.vector._datas
    elif hasattr(inner, "data"):  # Gymnasium, Gymnasium-Robotics, Meta-World
        datas = [inner.data]
    elif hasattr(inner, "_env"):  # gym-aloha
        datas = [inner._env.physics.data]
    elif hasattr(inner, "env"):  # robosuite
        datas = [inner.env.sim.data]
    else:
        assert get_task(env.task.id).package == "gym_pusht"
        datas = []
    return sum(int(number) for data in datas for number in np.atleast_1d(data.warning.number))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("task", tasks(list_tasks()))
def test_a_task_keeps_its_word(task):
    spec = get_task(task)
    assert pickle.loads(pickle.dumps(spec)) == spec
    env = make(task)
    try:
        check_env(env, skip_render_check=True)
        assert {key: space.shape for key, space in env.observation_space.items()} == dict(spec.observations)
        assert isinstance(env.action_space, spaces.Box)
        assert np.array_equal(env.action_space.low, np.float32(spec.action.low))
        assert np.array_equal(env.action_space.high, np.float32(spec.action.high))
        assert len(spec.action.names) == len(spec.action.low)

        first, info = env.reset(seed=7)
        again, _ = env.reset(seed=7)
        other, _ = env.reset(seed=8)
        assert all(np.array_equal(first[key], again[key]) for key in first)
        assert any(not np.array_equal(first[key], other[key]) for key in first)
        assert type(info["success"]) is bool

        env.action_space.seed(0)
        for _ in range(STEPS.get(spec.extra or "", 1_000)):
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation)
            assert type(info["success"]) is bool
            assert all(stage in info for stage in spec.stages)
            assert np.isfinite(reward)
            if terminated or truncated:
                assert info["success"] or spec.kind == "sustain" or truncated
                assert mujoco_warnings(env) == 0  # a reset forgets them
                env.reset(seed=9)
        assert mujoco_warnings(env) == 0
    finally:
        env.close()


FAMILIES = {
    spec.entry_point: spec for spec in sorted(list_tasks(), key=lambda spec: len(spec.action.low), reverse=True)
}


@pytest.mark.parametrize("task", tasks(FAMILIES.values()))
def test_copies_are_what_the_single_environment_is(task):
    """Three copies, stepped together, against one: the same to the bit. One task a family, since copies may be processes."""
    spec = get_task(task)
    steps = {"robosuite": 3, "aloha": 2}.get(spec.extra, 10)
    low, high = np.float32(spec.action.low), np.float32(spec.action.high)
    actions = np.random.default_rng(0).uniform(0.4, 0.6, (steps, 3, len(low))) * (high - low) + low
    vector, single = make_vec(task, 3), make(task)
    try:
        seen, _ = vector.reset(seed=[4, 5, 6])
        alone, _ = single.reset(seed=5)
        assert all(np.array_equal(seen[key][1], alone[key]) for key in alone if key not in pictures(spec))
        for action in actions.astype(np.float32):
            seen, reward, terminated, _, info = vector.step(action)
            alone, own_reward, own_terminated, _, own_info = single.step(action[1])
            assert all(np.array_equal(seen[key][1], alone[key]) for key in alone if key not in pictures(spec))
            assert (reward[1], terminated[1], info["success"][1]) == (own_reward, own_terminated, own_info["success"])
            if own_terminated:
                break
    finally:
        vector.close()
        single.close()


def pictures(spec):
    """gym-aloha says of its pictures that they differ from run to run."""
    return [key for key, shape in spec.observations.items() if len(shape) == 3]


@pytest.mark.parametrize("task", tasks(spec for spec in list_tasks() if spec.has_expert))
def test_an_expert_is_found(task):
    expert = load_expert(get_task(task))
    assert expert.noise.shape == (len(get_task(task).action.low),)

"""Our own tasks: what holds for every one of them."""

from itertools import count

import gymnasium
import numpy as np
import pytest

from dopr_robot.collection import demonstrations
from dopr_robot.envs import get_task, list_tasks, load_expert, make, make_vec
from dopr_robot.errors import UserError

OWN = [spec.id for spec in list_tasks() if spec.id.startswith("dopr_robot/")]


@pytest.mark.parametrize("task", OWN)
def test_gymnasium_makes_the_batched_class(task):
    assert gymnasium.make(task).unwrapped.vector.num_envs == 1
    assert gymnasium.make_vec(task, num_envs=3).num_envs == 3


@pytest.mark.parametrize("task", OWN)
def test_an_episode_depends_on_its_seed_and_actions_alone(task):
    """One copy alone, 7 and 64 copies, on one thread and on two, all disturbed: the same to the bit."""
    rng = np.random.default_rng(0)
    low, high = (np.array(bound) for bound in (get_task(task).action.low, get_task(task).action.high))
    actions = (low + (high - low) * rng.uniform(0.45, 0.55, (8, 64, len(low)))).astype(np.float32)
    options = {"disturbance": 2.0, "observation_noise": 0.01, "action_delay": 2}
    traces = {}
    for copies, threads in ((64, 2), (64, 1), (7, 2), (1, 1)):
        env = make_vec(task, copies, threads=threads, **options)
        first, _ = env.reset(seed=list(range(11, 11 + copies)))
        steps = [first["state"], *(env.step(action[:copies])[0]["state"] for action in actions)]
        traces[copies, threads] = np.stack(steps)[:, :copies]
        env.close()
    for trace in traces.values():
        assert np.array_equal(trace, traces[64, 2][:, : trace.shape[1]])
    single = make(task, **options)
    single.reset(seed=13)
    for step, action in enumerate(actions, start=1):
        assert np.array_equal(single.step(action[2])[0]["state"], traces[64, 2][step, 2])
    single.close()


@pytest.mark.parametrize("task", OWN)
def test_the_expert_succeeds(task):
    episodes = list(demonstrations(task, range(1000, 1010), keep_failures=True))
    assert sum(episode.success for episode in episodes) >= 9
    low, high = np.float32(get_task(task).action.low), np.float32(get_task(task).action.high)
    for episode in episodes:
        assert ((episode.arrays["action"] >= low) & (episode.arrays["action"] <= high)).all()


@pytest.mark.parametrize("task", ["PickPlace", "CartPoleSwingUp", "HumanoidBalance"])
def test_demonstrations_do_not_depend_on_the_number_of_copies(task):
    few, many = ([d.arrays["state"] for d in demonstrations(task, range(3), num_envs=n, max_steps=60)] for n in (1, 3))
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=True))


def test_no_more_copies_are_made_than_there_are_seeds():
    made = []

    def make_expert(env):
        made.append(env.num_envs)
        return load_expert(get_task("PickPlace"))(env)

    for seeds in (range(2), [], count(), iter(range(2))):
        next(demonstrations("PickPlace", seeds, keep_failures=True, make_expert=make_expert, max_steps=5), None)
    assert made == [2, 1, 32, 32]


@pytest.mark.parametrize("task", OWN)
def test_an_action_that_is_not_finite_is_refused(task):
    env = make_vec(task, 2)
    env.reset(seed=[0, 1])
    actions = np.zeros(env.action_space.shape, np.float32)
    actions[1, 0] = np.nan
    with pytest.raises(UserError, match="copy 1 is not finite"):
        env.step(actions)


def test_a_cube_left_alone_is_no_success():
    env = make_vec("PickPlace", 4)
    env.reset(seed=[0, 1, 2, 3])
    still = np.concatenate([env.unwrapped.joints, np.full((4, 1), 0.08)], axis=1)
    for _ in range(env.unwrapped.max_steps):
        _, _, terminated, truncated, info = env.step(still)
        assert not info["success"].any()
    assert truncated.all()
    assert not terminated.any()


def test_a_quadrotor_without_thrust_fails_and_says_why():
    env = make_vec("QuadrotorTrack", 1)
    env.reset(seed=[0])
    for _ in range(60):
        _, _, terminated, _, info = env.step(np.zeros((1, 4)))
        if terminated[0]:
            break
    assert terminated[0]
    assert not info["success"][0]
    assert "off the path" in info["cause"][0] or "ground" in info["cause"][0]


def test_inverse_kinematics_reaches_what_forward_kinematics_confirms():
    env = make_vec("PickPlace", 16)
    env.reset(seed=list(range(16)))
    arm, q = env.unwrapped.arm, env.unwrapped.joints.copy()
    target = np.random.default_rng(0).uniform([0.40, -0.13, 0.03], [0.56, 0.13, 0.15], (16, 3))
    yaw = np.linspace(-0.7, 0.7, 16)
    for _ in range(60):
        q = arm.step_towards(q, target, yaw, 0.05, 0.3)
    position, rotation, _ = arm.forward(q)
    assert np.abs(position - target).max() < 1e-3
    assert np.abs(np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0]) - yaw).max() < 1e-2
    assert rotation[:, 2, 2].min() > 0.999  # the hand points down
    # and the chain is MuJoCo's own.
    import mujoco

    data = mujoco.MjData(env.unwrapped.model)
    data.qpos[:7] = q[3]
    mujoco.mj_forward(env.unwrapped.model, data)
    assert np.abs(data.site("grasp").xpos - position[3]).max() < 1e-9

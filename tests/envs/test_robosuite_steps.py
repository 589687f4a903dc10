"""robosuite's control step without its detours: the same physics to the bit."""

from contextlib import closing

import numpy as np
import pytest

from dopr_robot.envs import make

pytestmark = pytest.mark.sim


def test_a_quick_step_is_the_packages_to_the_bit():
    quick, slow = make("robosuite/Square-v0"), make("robosuite/Square-v0")
    rng = np.random.default_rng(0)
    with closing(quick), closing(slow):
        for seed in range(2):
            quick.reset(seed=seed)
            slow.reset(seed=seed)
            assert quick.unwrapped._quick.__name__ == "step", "it is stepped as the package does it"
            env = slow.unwrapped.env
            slow.unwrapped._quick = lambda action, env=env: float(env.step(action)[1])
            for _ in range(6):
                action = rng.uniform(-1, 1, quick.action_space.shape)
                ours, theirs = quick.step(action), slow.step(action)
                assert ours[1:] == theirs[1:]
                assert np.array_equal(ours[0]["robot0_eef_pos"], theirs[0]["robot0_eef_pos"])
                mine, its = quick.unwrapped.env.sim.data._data, env.sim.data._data
                for name in ("time", "qpos", "qvel", "ctrl", "qacc_warmstart"):
                    assert np.array_equal(getattr(mine, name), getattr(its, name)), name


def test_another_controller_is_left_to_the_package():
    from robosuite.controllers import load_part_controller_config

    arm = load_part_controller_config(default_controller="OSC_POSE") | {"interpolation": "linear"}
    options = {"robots": "Panda", "control_freq": 20, "controller_configs": arm}
    with closing(make("robosuite/Lift-v0", env_args={"env_name": "Lift", "env_kwargs": options})) as env:
        env.reset(seed=0)
        assert env.unwrapped._quick.__name__ != "step"
        assert env.unwrapped.env.timestep == 0
        env.step(np.zeros(7))
        assert env.unwrapped.env.timestep == 1

"""Simulators in an environment of their own."""

import subprocess
import sys

import pytest
from scipy.stats import binom

from dopr_robot.collection import measure_expert
from dopr_robot.envs import get_task, list_tasks

pytestmark = pytest.mark.sim
QUICK = ("metaworld/assembly-v3", "metaworld/drawer-open-v3", "metaworld/pick-place-v3")
"""Experts that are tried whenever the tests are run; the others are slow. The first and the last can do nothing without the goal."""


def test_the_versions_that_live_together():
    import metaworld  # noqa: F401
    import mujoco
    import robosuite

    from dopr_robot.envs import get_task

    assert mujoco.__version__ == "3.3.0"
    assert robosuite.__version__ == "1.5.2"
    get_task("PushT").check_installed()


def test_our_tasks_work_on_the_oldest_mujoco():
    from dopr_robot.collection import demonstrations
    from dopr_robot.envs import list_tasks

    ours = [spec for spec in list_tasks() if spec.source == "ours"]
    assert len(ours) == 7
    for spec in ours:
        assert all(episode.success for episode in demonstrations(spec.id, range(2), num_envs=2, keep_failures=True)), (
            spec.id
        )


def test_triton_can_be_loaded_after_a_picture_was_drawn():
    """As a user does who renders and then compiles; a process of its own, since what it tests is a crash."""
    pytest.importorskip("triton")
    script = (
        "from dopr_robot.envs import make_vec; env = make_vec('PickPlace', 1, render_mode='rgb_array'); "
        "env.reset(seed=[0]); print(env.render()[0].shape); import triton"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(240, 320, 3)\n"), done.stderr


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(spec.id, marks=[] if spec.id in QUICK else [pytest.mark.slow])
        for spec in list_tasks()
        if spec.extra and spec.has_expert
    ],
)
def test_an_expert_succeeds_as_often_as_was_measured(task):
    """On five seeds; another machine's last digits may decide an episode."""
    spec = get_task(task)
    fewest = binom.ppf(0.001, 5, spec.expert_success)
    assert 5 * measure_expert(task, range(5), num_envs=5) >= fewest - 1e-9


def test_an_environment_that_a_robomimic_file_names():
    from dopr_robot.envs import make
    from dopr_robot.errors import UserError

    with pytest.raises(UserError, match="has no environment 'Lifft'"):
        make("robosuite/Lift-v0", env_args={"env_name": "Lifft", "env_kwargs": {"robots": ["Panda"]}})
    reach = [0.05] * 3 + [0.5] * 3
    old = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": reach, "output_min": [-x for x in reach]}
    old |= {"kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_limits": [0, 10]}
    old |= {"position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True, "control_delta": True}
    old |= {"interpolation": None, "ramp_ratio": 0.2}
    described = {"env_name": "Lift", "env_kwargs": {"robots": ["Panda"], "control_freq": 20, "controller_configs": old}}
    env = make("robosuite/Lift-v0", env_args=described)
    observation, _ = env.reset(seed=0)
    assert observation["object"].shape == (10,)
    assert not env.step(env.action_space.sample())[4]["success"]
    env.close()


def test_robosuite_is_quiet_until_something_is_wrong():
    script = (
        "import logging; from dopr_robot.envs import make; make('robosuite/Lift-v0').close(); "
        "logging.getLogger('robosuite_logs').error('the gripper is gone')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "the gripper is gone" in done.stderr

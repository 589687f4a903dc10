"""The scripted experts of robosuite's tasks."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dopr_robot.collection import demonstrations
from dopr_robot.envs import get_task
from dopr_robot.envs.adapters.robosuite_experts import (
    LiftExpert,
    SquareExpert,
    downward,
    nearest_turn,
    turned,
    yaw_of,
)

TASKS = ("Lift", "Can", "Square")


def act(expert, *, hand, opening, yaw=0.0, thing=(0.0, 0.0, 0.83), turn=0.0, first=0):
    """What an expert does about a thing that is turned about the vertical."""
    pose = np.concatenate([thing, Rotation.from_matrix(turned(turn)).as_quat()])
    numbers = np.zeros(14 if first else 10)
    numbers[first : first + 7] = pose
    seen = {
        "object": numbers,
        "robot0_eef_pos": np.array(hand),
        "robot0_eef_quat": Rotation.from_matrix(downward(yaw)).as_quat(),
        "robot0_gripper_qpos": np.array([opening / 2, -opening / 2]),
    }
    env = SimpleNamespace(num_envs=1, observation={key: each[None].astype(np.float32) for key, each in seen.items()})
    return expert(env).act()[0]


@pytest.mark.parametrize("task", TASKS)
def test_a_robosuite_task_has_an_expert(task):
    spec = get_task(f"robosuite/{task}-v0")
    assert spec.has_expert and spec.expert_success >= 0.95


@pytest.mark.parametrize("sides", [1, 2, 4])
def test_a_thing_is_turned_to_the_nearest_of_its_sides(sides):
    for yaw, now in np.random.default_rng(0).uniform(-np.pi, np.pi, (50, 2)):
        chosen = nearest_turn(yaw, now, sides)
        assert abs(chosen - now) <= np.pi / sides + 1e-9
        assert np.cos(sides * (chosen - yaw)) == pytest.approx(1.0)
        assert np.cos(yaw_of(downward(chosen)) - chosen) == pytest.approx(1.0)


def test_what_was_missed_or_lost_is_fetched_again():
    at, above = (0.0, 0.0, 0.83), (0.0, 0.0, 0.93)
    close, lift = act(LiftExpert, hand=at, opening=0.08), act(LiftExpert, hand=at, opening=0.042)
    assert close[6] == 1.0 and abs(close[2]) < 0.01
    assert lift[6] == 1.0 and lift[2] > 0.4
    lost = act(LiftExpert, hand=above, opening=0.042)  # the cube lies on the table
    assert lost[6] == -1.0
    missed = act(LiftExpert, hand=(0.025, 0.0, 0.83), opening=0.0)
    assert missed[6] == -1.0 and missed[2] > 0.4  # open and rise, and not into what stands in the way


def test_the_hand_goes_over_a_thing_before_it_goes_down():
    aside = act(LiftExpert, hand=(-0.1, 0.05, 0.86), opening=0.08)
    over = act(LiftExpert, hand=(0.001, 0.0, 0.9), opening=0.08)
    assert aside[0] > 0.3 and aside[1] < -0.1 and aside[2] > 0.1
    assert over[2] < -0.4


@pytest.mark.parametrize("turn", np.linspace(-3.0, 3.0, 13))
def test_the_nut_is_turned_within_the_wrists_range(turn):
    """A side of the nut's to a side of the peg's, whichever way the handle lies, and not outward."""
    hand = nearest_turn(turn, 0.0, 2)
    ended = turn + SquareExpert(None)._turn(turn, hand)
    assert np.sin(2 * ended) == pytest.approx(0.0, abs=1e-9)
    assert np.cos(ended) < 0.5
    assert abs(hand + ended - turn) < SquareExpert.wrist


@pytest.mark.sim
@pytest.mark.parametrize("task", TASKS)
def test_an_expert_of_robosuites_succeeds(task):
    """Under the noise of collection, and with a copy that has nothing to do."""
    name = f"robosuite/{task}-v0"
    episodes = list(demonstrations(name, range(2000, 2002), num_envs=2, keep_failures=True))
    assert all(episode.success for episode in episodes)
    for episode in episodes:
        action = episode.arrays["action"]
        assert action.shape == (len(action), 7) and np.abs(action).max() <= 1.0
        assert set(np.unique(action[:, 6])) == {-1.0, 1.0}
        assert len(action) < 200


@pytest.mark.sim
def test_an_episode_of_an_expert_is_the_same_alone_and_among_seven():
    def begun(seeds, copies):
        told = {"num_envs": copies, "max_steps": 12, "keep_failures": True}
        return list(demonstrations("robosuite/Square-v0", seeds, **told))

    (alone,), among = begun([2003], 1), begun(range(2000, 2007), 7)
    assert among[3].seed == alone.seed
    for key, values in alone.arrays.items():
        np.testing.assert_array_equal(values, among[3].arrays[key], err_msg=key)

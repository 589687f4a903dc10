"""The scripted experts of robosuite's tasks."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dopr_robot.collection import demonstrations
from dopr_robot.envs import get_task
from dopr_robot.envs.adapters.robosuite_experts import (
    Hand,
    LiftExpert,
    RobosuiteExpert,
    SquareExpert,
    downward,
    nearest_turn,
    turned,
    yaw_of,
)
from dopr_robot.envs.adapters.robosuite_toolhang import ToolHangExpert
from dopr_robot.envs.adapters.robosuite_transport import END, HEAD, HELD, TransportExpert, tilted

TASKS = ("Lift", "Can", "Square")
LONG = {"ToolHang": 7, "Transport": 14}
SEEDS = {"ToolHang": 1054, "Transport": 1004}


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


@pytest.mark.parametrize("yaw", [0.0, 0.5 * np.pi, -0.5 * np.pi, 0.3])
def test_an_arm_is_told_in_the_axes_of_its_base(yaw):
    class Told(RobosuiteExpert):
        facing = (0.0, yaw)

        def decide(self, thing, *hands):
            return np.concatenate(
                [hand.towards(hand.position + np.array([0.01, 0.0, 0.02]), hand.rotation, True) for hand in hands]
            )

    pose = {"eef_pos": np.zeros(3), "eef_quat": np.array([1.0, 0.0, 0.0, 0.0]), "gripper_qpos": np.zeros(2)}
    seen = {f"robot{arm}_{key}": each[None] for arm in range(2) for key, each in pose.items()}
    first, second = Told(SimpleNamespace(observation=seen | {"object": np.zeros((1, 41))})).act()[0].reshape(2, 7)
    np.testing.assert_allclose(turned(yaw) @ second[:3], first[:3], atol=1e-12)
    assert first[2] > 0.5 > first[0] > 0.2 and second[6] == 1.0


def transport(*, first, second, hammer=(0.0, 0.05, 1.08)):
    """What both arms do about a hammer along y, the lid off and the trash in its bin; a hand is its place and its opening."""
    along = Rotation.from_matrix(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])).as_quat()
    thing = np.zeros(41)
    thing[:3], thing[3:7] = hammer, along
    thing[10:14] = thing[17:21] = [0.0, 0.0, 0.0, 1.0]
    thing[14:17], thing[21:24], thing[24:27], thing[28] = (-0.2, -0.42, 0.825), (-0.2, 0.45, 0.8), (0.2, 0.45, 0.8), 1.0
    hands = [
        Hand(np.array(at), downward(yaw), opening, 1.0)
        for (at, opening), yaw in zip((first, second), TransportExpert.facing, strict=True)
    ]
    return TransportExpert(None).decide(thing, *hands).reshape(2, 7)


def test_the_hammer_is_held_until_the_other_hand_holds_it():
    at, beside = (0.0, 0.05 - END, 1.08), (0.0, 0.05 + END, 1.08)
    first, second = transport(first=(at, HELD), second=((0.0, 0.3, 1.2), 0.08))
    assert first[6] == 1.0 and second[6] == -1.0 and second[1] < -0.2  # held out; the other comes
    first, second = transport(first=(at, HELD), second=(beside, HELD))
    assert first[6] == -1.0 and second[6] == 1.0
    assert np.abs(second[:6]).max() < 1e-9  # not before it is let go
    first, second = transport(first=(at, 0.08), second=(beside, HELD))
    assert first[6] == -1.0 and first[2] > 0.9 and abs(first[1]) < 0.1  # off the handle, before it goes home
    assert second[6] == 1.0 and np.abs(second[:6]).max() < 1e-9
    first, second = transport(first=((0.0, -0.1, 1.18), 0.08), second=(beside, HELD))
    assert first[6] == -1.0 and first[1] < -0.3
    assert second[6] == 1.0 and np.linalg.norm(second[:3]) > 0.3


@pytest.mark.parametrize("off", [-0.03, 0.0, 0.03])
def test_the_hammer_is_lifted_in_the_middle_of_its_bin(off):
    """Its middle is half a head beyond the handle's, towards the head."""
    x, y = TransportExpert.start
    hammer = np.array([x + off, y + off - HEAD / 2, 0.83])
    first, _ = transport(first=(hammer - [0.0, END, 0.0], HELD), second=((0.0, 0.3, 1.2), 0.08), hammer=hammer)
    assert first[6] == 1.0 and first[2] > 0.8
    np.testing.assert_allclose(first[:2], -off * first[2] / 0.1, atol=1e-6)


def joints(*, before, height, tilt):
    """The Panda's elbow and wrist, joints 4 and 6, of a hand so far before its base and above the floor that points so far outward."""
    axis, across = np.array([np.sin(tilt), -np.cos(tilt)]), np.array([np.cos(tilt), np.sin(tilt)])
    wrist = np.array([before, height - 1.245]) - 0.2104 * axis - 0.088 * across
    upper, fore = np.array([0.0825, 0.316]), np.array([-0.0825, 0.384])
    cosine = (upper @ upper + fore @ fore - wrist @ wrist) / (2 * np.linalg.norm(upper) * np.linalg.norm(fore))
    elbow = np.arccos(cosine) - np.pi - np.arctan2(0.0825, 0.316) - np.arctan2(0.0825, 0.384)
    straight = upper + np.array([[np.cos(elbow), -np.sin(elbow)], [np.sin(elbow), np.cos(elbow)]]) @ fore
    shoulder = np.arctan2(*wrist) - np.arctan2(*straight)
    return elbow, shoulder - elbow + tilt


def test_a_hand_that_leans_to_its_base_keeps_from_the_wrists_singularity():
    """Where it grips the hammer and lifts it out of the bin: joint 6 is not at pi, joint 4 not at its end of -3.07."""
    grip = np.hypot(TransportExpert.start[0], 0.81 + TransportExpert.start[1] - END)
    heights = np.linspace(0.83, 1.0, 18)
    down, leaning = (
        np.array([joints(before=grip, height=height, tilt=tilt) for height in heights])
        for tilt in (0.0, -TransportExpert.lean)
    )
    assert down[:, 1].max() > np.pi + 0.1 and down[:, 1].min() < np.pi - 0.1
    assert leaning[:, 1].max() < np.pi - 0.2
    assert leaning[:, 0].min() > -2.7 > down[:, 0].min()


def test_a_hand_that_is_tilted_points_outward():
    for yaw in TransportExpert.facing:
        axis = tilted(downward(yaw), 0.6)[:, 2]
        assert axis[2] < -0.8 and axis[:2] @ [np.cos(yaw), np.sin(yaw)] > 0.5


def tool_hang(*, aside, down, lean=0.0):
    """What the hand does that holds the frame over the stand's hole, its rod's tip so far aside and below the mouth, leaning to +x."""
    expert = ToolHangExpert(None)
    thing = np.zeros(44)
    thing[13] = thing[41] = 1.0
    leaning = Rotation.from_rotvec([0.0, lean, 0.0]).as_matrix()
    up = leaning @ [0.0, 0.0, 1.0]
    thing[24:28] = Rotation.from_matrix(leaning @ turned(np.pi)).as_quat()
    thing[21:24] = expert.mouth + np.array([aside, 0.0, -down]) - expert.tip * up
    rotation = leaning @ np.stack([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], axis=1)
    return expert.decide(thing, Hand(thing[21:24] + expert.grip * up, rotation, 0.025, 1.0))


def test_the_rod_goes_down_over_the_hole_alone():
    assert tool_hang(aside=0.0, down=-0.01)[2] < -0.3
    off = tool_hang(aside=0.03, down=-0.01)
    assert off[2] > 0.5 and off[0] < -0.1
    inside = tool_hang(aside=0.003, down=0.05)
    assert inside[2] < -0.3 and inside[6] == 1.0 and np.abs(inside[3:6]).max() < 1e-6
    on_the_rim = tool_hang(aside=0.006, down=0.003)
    assert on_the_rim[2] > 0.1 and on_the_rim[0] < -0.05
    above, within = (tool_hang(aside=0.0, down=down, lean=0.05) for down in (-0.01, 0.05))
    assert abs(above[0]) < 0.01 and within[0] < -0.1  # by the tip, and once it is in the hole by the corner


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
@pytest.mark.slow
@pytest.mark.parametrize("task", LONG)
def test_a_long_task_of_robosuites_is_done(task):
    """One episode, under the noise of collection."""
    (episode,) = demonstrations(f"robosuite/{task}-v0", [SEEDS[task]], num_envs=1, keep_failures=True)
    action = episode.arrays["action"]
    assert episode.success and len(action) < 500
    assert action.shape == (len(action), LONG[task]) and np.abs(action).max() <= 1.0
    assert set(np.unique(action[:, 6::7])) == {-1.0, 1.0}


@pytest.mark.sim
def test_an_episode_of_an_expert_is_the_same_alone_and_among_seven():
    def begun(seeds, copies):
        told = {"num_envs": copies, "max_steps": 12, "keep_failures": True}
        return list(demonstrations("robosuite/Square-v0", seeds, **told))

    (alone,), among = begun([2003], 1), begun(range(2000, 2007), 7)
    assert among[3].seed == alone.seed
    for key, values in alone.arrays.items():
        np.testing.assert_array_equal(values, among[3].arrays[key], err_msg=key)

"""Demonstrations as those of a task: taken over, or refused."""

from dataclasses import replace

import numpy as np
import pytest

from dopr_robot.datasets import ActionAttributes, Attributes, Episode, Recording
from dopr_robot.datasets.tasks import as_task, looked_at
from dopr_robot.envs import get_task, recorded_task
from dopr_robot.errors import UserError


def shown(task, about=None, **keys):
    """An episode of zeros as the task's: attributes and keys."""
    episode = Episode({key: np.zeros((4, *shape)) for key, shape in keys.items()})
    recording, first = looked_at(Recording(about or Attributes(), [episode]))
    found = as_task(recording, first, get_task(task))
    return found.attributes, set(next(iter(found.episodes)).arrays)


def test_names_rate_bounds_and_meaning_are_the_tasks():
    spec = get_task("AdroitHandDoor-v1")
    about, keys = shown("AdroitHandDoor-v1", observation=(39,), action=(28,), rewards=())
    assert keys == {"state", "action", "rewards"} and about.observations == ("state",)
    assert (about.task, about.control_hz) == (spec.id, spec.control_hz)
    assert (about.action.meaning, about.action.absolute) == (spec.action.meaning, True)
    assert about.action.low == spec.action.low and about.action.names == spec.action.names
    assert about.provenance == ("renamed observation to state",)


def test_what_the_task_does_not_give_stays_a_key_and_is_no_observation(caplog):
    observed = Attributes(observations=("achieved_goal", "desired_goal", "observation"))
    keys = {"observation": (4,), "achieved_goal": (2,), "desired_goal": (2,), "action": (2,)}
    about, found = shown("PointMaze_UMaze-v3", observed, **keys)
    assert about.observations == ("desired_goal", "state") and "achieved_goal" in found
    about, _ = shown("PickPlace", state=(29,), wrist=(8, 8, 3), action=(8,))
    assert about.observations == ("state", "wrist"), "a camera of the task"
    assert not caplog.records
    shown("PickPlace", pose=(7,), action=(8,))
    assert "gives state [29], and none of pose" in caplog.text


def test_pictures_go_by_the_cameras_names():
    """robomimic's habit, LeRobot's, and the key of PushT's human demonstrations; a key that is a camera's already stays."""
    keys = {"robot0_eye_in_hand_image": (8, 8, 3), "agentview_image": (8, 8, 3), "object": (10,), "action": (7,)}
    about, found = shown("robosuite/Lift-v0", Attributes(observations=tuple(keys)[:3]), **keys)
    assert found == {"robot0_eye_in_hand", "agentview", "object", "action"}
    assert about.observations == ("robot0_eye_in_hand", "agentview", "object")
    assert shown("gym_pusht/PushT-v0", img=(96, 96, 3), state=(5,), action=(2,))[1] == {"image", "state", "action"}
    top = {"observation.images.top": (8, 8, 3), "state": (14,), "action": (14,)}
    assert "top" in shown("gym_aloha/AlohaInsertion-v0", **top)[1]
    both = {"image": (8, 8, 3), "img": (8, 8, 3), "state": (5,), "action": (2,)}
    assert shown("gym_pusht/PushT-v0", **both)[1] == set(both)


@pytest.mark.parametrize(
    ("about", "keys", "said"),
    [
        (Attributes(control_hz=20), {}, "recorded at 20 Hz and gym_pusht/PushT-v0 runs at 10 Hz"),
        (Attributes(action=ActionAttributes(absolute=False)), {}, "said to be relative, and .*'s are absolute"),
        (Attributes(), {"state": (6,)}, r"state is of shape \[6\] and gym_pusht/PushT-v0 has \[5\]"),
        (Attributes(), {"action": (7,)}, r"action is of shape \[7\]"),
    ],
)
def test_contradictions_are_refused(about, keys, said):
    with pytest.raises(UserError, match=said):
        shown("gym_pusht/PushT-v0", about, **{"state": (5,), "action": (2,), **keys})


def test_a_file_that_describes_its_own_environment_keeps_its_word():
    own = ActionAttributes("end-effector pose", absolute=True)
    keys = {"object": (14,), "robot0_eef_pos": (3,), "robot0_joint_pos": (7,), "action": (7,)}
    about, _ = shown("robosuite/Lift-v0", Attributes(control_hz=10, action=own), **keys)
    assert about.control_hz == 10 and about.action == own and about.observations == ("object", "robot0_eef_pos")
    about, _ = shown("robosuite/Lift-v0", Attributes(action=replace(own, absolute=False)), **keys)
    assert about.control_hz == 20 and about.action.low == (-1.0,) * 7 and about.action.meaning == "end-effector pose"
    about, _ = shown(
        "robosuite/Lift-v0", Attributes(action=ActionAttributes("joint position", absolute=False)), action=(8,)
    )
    assert not about.action.low, "another controller's"
    with pytest.raises(UserError, match="said to be absolute"):
        shown("robosuite/Lift-v0", Attributes(action=ActionAttributes(absolute=True)), **keys)


def test_the_task_that_a_file_names():
    found = {name: spec and spec.id for name in NAMED for spec in (recorded_task(name),)}
    assert found == NAMED


NAMED = {
    "robosuite/Lift": "robosuite/Lift-v0",
    "robosuite/PickPlaceCan": "robosuite/Can-v0",
    "robosuite/Stack": None,
    "AdroitHandDoor-v1": "AdroitHandDoor-v1",
    "Lift": None,
}

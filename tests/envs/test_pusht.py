"""PushT as the human demonstrations saw it."""

import numpy as np
import pytest

from dopr_robot.envs import make

pytest.importorskip("gym_pusht")


def test_keypoints_turn_with_the_block():
    env = make("PushT")
    shown, _ = env.reset(seed=3)
    x, y, angle = shown["state"][2:]
    points = shown["keypoint"]
    assert points.shape == (9, 2) and points.dtype == np.float32
    # The stem's end lies 122.81 px from the block's origin, 14.06 px to a side.
    along = np.array([-np.sin(angle), np.cos(angle)])
    aside = np.array([np.cos(angle), np.sin(angle)])
    np.testing.assert_allclose(points[4], [x, y] + 122.81 * along - 14.06 * aside, atol=1e-3)
    assert np.allclose(env.step(shown["state"][:2])[0]["keypoint"].mean(0), points.mean(0), atol=5)


@pytest.mark.parametrize("cameras", [[], ["image"]])
def test_what_is_seen_does_not_tell_episodes_apart(cameras):
    """Records of a policy from pixels and of one from state begin in the same states."""
    env = make("PushT", cameras=cameras)
    shown, info = env.reset(seed=5)
    assert np.array_equal(info["initial_state"], shown["state"]) and set(shown) == {"state", "keypoint", *cameras}
    assert "initial_state" not in env.step(shown["state"][:2])[4]

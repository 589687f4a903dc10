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


def test_the_score_is_the_reward_that_published_figures_are_of():
    """Diffusion Policy's ``mean_score`` and LeRobot's ``avg_max_reward`` are means of an episode's largest reward: 1 at 95 % covered."""
    env = make("PushT")
    env.reset(
        seed=0, options={"reset_to_state": [100.0, 100.0, 230.0, 240.0, np.pi / 4]}
    )  # the package turns it about its middle
    _, reward, *_, near = env.step(np.array([100.0, 100.0]))
    assert 0 < near["score"] < 1 and near["score"] == pytest.approx(reward) == pytest.approx(near["coverage"] / 0.95)
    env.reset(seed=0, options={"reset_to_state": [100.0, 100.0, 224.18, 242.82, np.pi / 4]})
    _, reward, *_, there = env.step(np.array([100.0, 100.0]))
    assert there["success"] and there["coverage"] > 0.95 and there["score"] == reward == 1

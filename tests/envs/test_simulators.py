"""Simulators in an environment of their own."""

import pytest

pytestmark = pytest.mark.sim


def test_the_versions_that_live_together():
    import metaworld  # noqa: F401
    import mujoco
    import robosuite

    from dopr_robot.envs import get_task

    assert mujoco.__version__ == "3.3.0"
    assert robosuite.__version__ == "1.5.2"
    get_task("PushT").check_installed()

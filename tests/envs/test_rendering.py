"""Every value of MUJOCO_GL draws, or is answered in one line that names it."""

import pytest

from dopr_robot.envs import make, make_vec
from dopr_robot.envs.rendering import choose_backend
from dopr_robot.errors import UserError


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    choose_backend.cache_clear()
    yield
    choose_backend.cache_clear()


@pytest.mark.parametrize("name", ["glfw", "GLFW", "glx", "disable"])
def test_without_a_screen_a_window_is_refused(monkeypatch, name):
    monkeypatch.setenv("MUJOCO_GL", name)
    with pytest.raises(UserError, match=f"MUJOCO_GL={name} here: unset it"):
        make("PickPlace", render_mode="rgb_array").render()


def test_a_screen_that_is_not_there_is_none(monkeypatch):
    monkeypatch.setenv("DISPLAY", ":99")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(UserError, match="MUJOCO_GL=glfw here: unset it"):
        choose_backend()


def test_a_name_is_what_mujoco_takes_it_for(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    found = choose_backend()
    choose_backend.cache_clear()
    monkeypatch.setenv("MUJOCO_GL", f" {found.upper()}")
    assert choose_backend() == found


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_a_simulators_worker_says_it_too(monkeypatch, render_mode):
    """Without pictures as well: loading mujoco fails on a name that it does not know."""
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(UserError, match=r"MUJOCO_GL=nonsense .*unset it"):
        make_vec("Hopper-v5", 1, render_mode=render_mode)

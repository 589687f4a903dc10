"""Gymnasium environments that nobody registered here."""

import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from dopr_robot.envs.loading import load
from dopr_robot.envs.unregistered import unregistered_task
from dopr_robot.envs.workers import WorkerVectorEnv
from dopr_robot.errors import UserError


class Reach(gymnasium.Env):
    """A point that is to come to the middle; ``lacks`` says what is missing."""

    metadata = {"render_modes": [], "render_fps": 25}

    def __init__(self, lacks="", flat=True):
        self.lacks, self.flat = lacks, flat
        self.action_space = Discrete(3) if lacks == "box" else Box(-1, 1, (2,), np.float32)
        if lacks == "bounds":
            self.action_space = Box(-np.inf, np.inf, (2,), np.float32)
        own = Box(-9, 9, (2,), np.float64)
        nested = Dict(place=own, seen=Dict(top=Box(0, 255, (8, 8, 3), np.uint8)))
        self.observation_space = own if flat else nested
        if lacks == "rate":
            self.metadata = {}

    def observe(self):
        return self.place if self.flat else {"place": self.place, "seen": {"top": np.full((8, 8, 3), 7, np.uint8)}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2)
        return self.observe(), {}

    def step(self, action):
        self.place = self.place + 0.2 * np.asarray(action, float)
        near = bool(np.abs(self.place).max() < 0.1)
        return self.observe(), 0.0, False, False, {} if self.lacks == "success" else {"is_success": near}


@pytest.fixture(scope="module", autouse=True)
def reach():
    module = types.ModuleType("reach_module")
    sys.modules["reach_module"] = module
    for lacks in ("", "success", "box", "bounds", "rate", "length"):
        steps = None if lacks == "length" else 40
        gymnasium.register(f"Reach{lacks.title()}-v0", Reach, max_episode_steps=steps, kwargs={"lacks": lacks})
    gymnasium.register("reach/Nested-v0", Reach, max_episode_steps=40, kwargs={"flat": False})
    yield
    del sys.modules["reach_module"]


def make(spec, **keywords):
    return load(spec.entry_point)(**spec.arguments, **keywords)


def test_a_box_becomes_the_state_and_success_is_attained():
    spec = unregistered_task("gym:reach_module/Reach-v0")
    assert (spec.kind, spec.max_steps, spec.control_hz) == ("attain", 40, 25.0)
    assert spec.observations == {"state": (2,)} and "disturbance" not in spec.options and not spec.cameras
    env = WorkerVectorEnv(spec, 3, workers=0, autoreset_mode="Disabled", **spec.arguments, observation_noise=0.01)
    seen, _ = env.reset(seed=[1, 2, 3])
    for _ in range(40):
        seen, *_, info = env.step(np.clip(-5 * seen["state"], -1, 1).astype(np.float32))
        if info["success"].all():
            break
    assert info["success"].all()
    env.close()


def test_a_dict_keeps_its_keys_and_its_pictures():
    spec = unregistered_task("gym:reach_module/reach/Nested-v0")
    assert spec.observations == {"place": (2,), "seen.top": (8, 8, 3)}
    seen, _ = make(spec, brightness=1.0).reset(seed=0)
    assert seen["place"].dtype == np.float32 and seen["seen.top"].dtype == np.uint8
    assert (seen["seen.top"] != 7).any()


def test_termination_is_failure_where_that_is_said():
    """Gymnasium's own, MuJoCo's: with the model's cameras and a body to push."""
    spec = unregistered_task("gym:Hopper-v5", "sustain")
    assert spec.kind == "sustain" and spec.control_hz == pytest.approx(125) and spec.cameras == ("track", "free")
    env = make(spec, cameras=["track"], camera_size=24, disturbance=5.0, action_delay=1)
    seen, info = env.reset(seed=0)
    assert seen["state"].shape == (11,) and seen["track"].shape == (24, 24, 3) and info["success"]
    for _ in range(200):
        _, _, terminated, _, info = env.step(np.ones(3, np.float32))
        if terminated:
            break
    assert terminated and not info["success"] and info["cause"]
    env.close()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        (
            "reach_module/ReachSuccess-v0",
            None,
            "tells of no success: let its info have 'success' or 'is_success'.*kind=sustain",
        ),
        ("reach_module/ReachSuccess-v0", "attain", "tells of no success"),
        ("reach_module/Reach-v0", "hold", "kind='hold' is neither"),
        ("reach_module/ReachBox-v0", None, "takes actions Discrete.*a Box of one axis is needed"),
        ("reach_module/ReachBounds-v0", None, "without bounds"),
        ("reach_module/ReachRate-v0", None, "tells no control rate"),
        ("reach_module/ReachLength-v0", None, "register it with max_episode_steps"),
        ("reach_module/Rech-v0", None, "module 'reach_module' registers no 'Rech-v0'"),
        ("no_such_module/Reach-v0", None, "module 'no_such_module' can not be imported"),
        ("Rech-v0", None, "say gym:package.module/EnvId-v0"),
        ("CartPole-v1", "sustain", "a Box of one axis is needed"),
    ],
)
def test_what_is_missing_is_one_line_that_says_what_to_add(name, kind, words):
    with pytest.raises(UserError, match=words) as told:
        unregistered_task(f"gym:{name}", kind)
    assert "\n" not in str(told.value)

"""A simulator that somebody else might bring: a point on a line, pushed to the middle. ``fault`` says what is wrong with it."""

import sys
import time

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from dopr_robot.envs import TASKS, ActionSpec, TaskSpec

BAD_SEED = 3


class LineEnv(gymnasium.Env):
    metadata = {"render_modes": [], "render_fps": 10}

    def __init__(self, fault=None):
        self.fault, self.render_mode = fault, None
        self.action_space = Box(-0.1, 0.1, (1,), np.float32)
        self.observation_space = Dict(state=Box(-9, 9, (1,), np.float32))
        if fault == "flat":
            self.observation_space = Box(-9, 9, (1,), np.float32)

    def _all(self):
        observation = {"state": self.place.astype(np.float32)}
        success = bool(abs(self.place[0]) < 0.05) and self.fault != "hopeless"
        if self.fault == "silent" or (self.fault == "late" and not success):
            return observation, {}
        if self.fault == "more than all":
            return observation, {"success": success, "share": 1.5}
        return observation, {"is_success" if self.fault == "named otherwise" else "success": success}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad, self.steps = seed == BAD_SEED, 0
        random = np.random.default_rng() if self.fault == "unseeded" else self.np_random
        self.place = random.uniform(-1, 1, 1)
        return self._all()

    def step(self, action):
        self.steps += 1
        if self.bad and self.steps == 3:
            if self.fault == "exit":
                sys.exit(0)
            if self.fault == "interrupt":
                raise KeyboardInterrupt
            while self.fault == "hang":
                time.sleep(0.001)
        self.place = self.place + action
        observation, info = self._all()
        return observation, 0.0, bool(info.get("success", info.get("is_success", False))), self.steps >= 30, info


class LineExpert:
    noise = np.array([0.01])

    def __init__(self, env):
        self.env = env

    def act(self):
        return np.clip(-self.env.observation["state"], -0.1, 0.1)


class Speechless(LineExpert):
    noise = None


@pytest.fixture
def line(monkeypatch):
    """The task's spec; its copies are stepped in this process."""
    monkeypatch.setitem(sys.modules, "line_task", sys.modules[__name__])
    spec = TaskSpec(
        id="line/Middle-v0",
        kind="attain",
        control_hz=10,
        max_steps=30,
        description="go to the middle",
        observations={"state": (1,)},
        action=ActionSpec("velocity", False, "m/step", ("x",), (-0.1,), (0.1,)),
        entry_point="line_task:LineEnv",
        in_process=True,
        expert="line_task:LineExpert",
        options={"fault": "what is wrong"},
        package="gymnasium",
        extra="line",
    )
    monkeypatch.setitem(TASKS._entries, spec.id, spec)
    return spec

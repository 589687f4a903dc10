"""A small real task in plain Gymnasium, and a stochastic policy for it.

A point in the plane is pushed towards a goal by bounded velocity commands. Attain: be within 0.06 of the goal; leaving the arena
is a failure. Sustain: stay within 0.6 of a goal that the wind blows the point away from.
"""

import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dopr_robot.envs import TASKS, ActionSpec, TaskSpec
from dopr_robot.policies import ArraySpec, PolicySpec, make_policy, save_policy

FAULTS = {
    "observation_noise": "standard deviation on the position",
    "broken_seeds": "whose fifth step raises",
    "blurred_seeds": "whose third step tells no number",
}


class PointEnv(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        sustain: bool = False,
        broken_seeds: Collection[int] = (),
        blurred_seeds: Collection[int] = (),
        goals: int = 1,
        observation_noise: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        self.sustain = sustain
        self.goals = goals
        self.observation_noise = observation_noise
        self.broken_seeds, self.blurred_seeds = broken_seeds, blurred_seeds
        self.render_mode = render_mode
        self.action_space = Box(-0.1, 0.1, (2,), np.float32)
        self.observation_space = Dict(position=Box(-9, 9, (2,), np.float64), goal=Box(-9, 9, (2,), np.float64))

    def _observation(self) -> dict[str, np.ndarray]:
        noise = self.observation_noise * self.noise.standard_normal(2)
        return {"position": self.position + noise, "goal": self.goal.copy()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.seed, self.noise = seed, np.random.default_rng(seed)
        self.steps = self.reached = 0
        self.goal = self.np_random.uniform(-1, 1, 2)
        self.position = self.goal.copy() if self.sustain else self.np_random.uniform(-1, 1, 2)
        return self._observation(), {"success": self.sustain, "closeness": 0.0}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        if self.seed in self.broken_seeds and self.steps == 5:
            raise RuntimeError("the point fell through the table\nand more")
        assert self.action_space.contains(action), action
        self.position = self.position + action + self.np_random.normal(0, 0.13 if self.sustain else 0.01, 2)
        distance = float(np.linalg.norm(self.position - self.goal))
        info: dict[str, Any] = {"closeness": -distance}
        if self.seed in self.blurred_seeds and self.steps == 3:
            info["closeness"] = float("nan")
        if self.sustain:
            info["success"] = distance < 0.6
            terminated = not info["success"]
        else:
            if distance < 0.06:
                self.reached += 1
                self.goal = self.goal if self.reached == self.goals else self.np_random.uniform(-1, 1, 2)
            info["success"] = self.reached >= self.goals
            lost = bool(np.abs(self.position).max() > 1.05)
            info["cause"] = "left the arena" if lost else ""
            terminated = info["success"] or lost
        return self._observation(), -distance, terminated, False, info

    def render(self) -> np.ndarray:
        frame = np.full((48, 64, 3), 230, np.uint8)
        for (x, y), colour in ((self.goal, (0, 90, 200)), (self.position, (20, 20, 20))):
            row, column = int(np.clip(24 - 15 * y, 2, 45)), int(np.clip(32 + 15 * x, 2, 61))
            frame[row - 2 : row + 2, column - 2 : column + 2] = colour
        return frame


def make_stay(**kwargs: Any) -> PointEnv:
    return PointEnv(sustain=True, **kwargs)


class PointPolicy(torch.nn.Module):
    """Drives towards the goal through a random network's noise, so that its sums have bits to lose."""

    n_obs_steps, horizon, n_action_steps, action_dim = 2, 8, 4, 2
    observations = {"position": (2,), "goal": (2,)}

    def __init__(self, noise: float = 0.08, task: str | None = None) -> None:
        super().__init__()
        self.noise = noise
        self.task = task
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(8, 256),
            torch.nn.Mish(),
            torch.nn.Linear(256, 256),
            torch.nn.Mish(),
            torch.nn.Linear(256, 8),
        )

    def act(self, observation: dict[str, torch.Tensor], generator: list[torch.Generator]) -> torch.Tensor:
        position, goal = observation["position"], observation["goal"]  # [B, 2, 2]
        noise = torch.stack([torch.randn(4, 2, generator=each) for each in generator])
        wobble = self.net(torch.cat([position, goal], dim=-1).flatten(1)).unflatten(1, (4, 2))
        return 0.5 * (goal - position)[:, -1:].expand(-1, 4, -1) + self.noise * (noise + wobble)


@pytest.fixture(autouse=True)
def drawn_where_it_is_marked(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("drawn") is None:
        request.getfixturevalue("undrawn")


@pytest.fixture
def policy() -> PointPolicy:
    return PointPolicy()


@pytest.fixture
def point_policy() -> type[PointPolicy]:
    return PointPolicy


@pytest.fixture
def make_point() -> Callable[..., Callable[..., VectorEnv]]:
    """``make_point(**kwargs)(n)``: n copies, Sync, or Async with ``workers=True``."""

    def configure(workers: bool = False, **kwargs: Any) -> Callable[..., VectorEnv]:
        def make(n: int, cores: int | None = None) -> VectorEnv:
            makers = [lambda: PointEnv(**kwargs)] * n
            if not workers:
                return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
            # Replacements of a dead worker are started while other threads run, where a fork is not safe.
            cloudpickle.register_pickle_by_value(sys.modules[__name__])
            return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED, context="forkserver")

        return make

    return configure


@pytest.fixture
def point_tasks(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Ids of the task in both kinds, registered as an outsider's package would."""
    monkeypatch.setitem(sys.modules, "point_task", sys.modules[__name__])
    action = ActionSpec("velocity", False, "m/step", ("x", "y"), (-0.1, -0.1), (0.1, 0.1))
    shared: dict[str, Any] = {
        "control_hz": 10,
        "observations": {"position": (2,), "goal": (2,)},
        "action": action,
        "metrics": {"closeness": "max"},
        "package": "gymnasium",
        "extra": "point",
        "in_process": True,
    }
    specs = (
        TaskSpec(
            "point/Reach-v0",
            "attain",
            max_steps=24,
            description="go there",
            entry_point="point_task:PointEnv",
            length="goals",
            options={"goals": "how many are to be reached, one after another", **FAULTS},
            **shared,
        ),
        TaskSpec(
            "point/Stay-v0", "sustain", max_steps=40, description="stay", entry_point="point_task:make_stay", **shared
        ),
    )
    for spec in specs:  # by monkeypatch, which tests use too: what it takes back, it takes back in order
        monkeypatch.setitem(TASKS._entries, spec.id, spec)
    return specs[0].id, specs[1].id


NETWORKS = {"unet": {"channels": [32, 64], "time_dim": 32}, "transformer": {"dim": 64, "layers": 2, "heads": 4}}


@pytest.fixture
def make_run(point_tasks: tuple[str, str]) -> Callable[..., Path]:
    """``make_run(folder, policy name, training seed, **config)``: a run folder with an untrained policy of real make."""

    def make(folder: Path, name: str = "flow_unet", seed: int = 0, scale: float = 0.05, **config: Any) -> Path:
        spec = PolicySpec(
            {"position": ArraySpec((2,)), "goal": ArraySpec((2,))},
            ArraySpec((2,)),
            horizon=16,
            n_action_steps=8,
            task=point_tasks[0],
        )
        objective, network = name.split("_")
        few = {"objective": {"name": objective, "steps": 2}} if objective in ("flow", "diffusion") else {}
        policy = make_policy({"name": name, "network": {"name": network, **NETWORKS[network]}, **few}, spec)
        torch.manual_seed(seed)
        for parameter in policy.parameters():  # a fresh network's last layer is zero
            torch.nn.init.normal_(parameter, std=scale)
        ones = {key: np.ones(2) for key in ("position", "goal", "action")}
        policy.fit_normalizer(
            {key: {"min": -one, "max": one, "mean": 0 * one, "std": one} for key, one in ones.items()}
        )
        place = folder / "checkpoints" / "20"
        place.mkdir(parents=True)
        save_policy(policy, place)
        (folder / "checkpoints" / "last").symlink_to("20")
        settings = {
            "name": folder.name,
            "training": {"seed": seed},
            "evaluation": {"episodes": 12, "video": 0},
            **config,
        }
        (folder / "config.yaml").write_text(json.dumps(settings))
        return folder

    return make

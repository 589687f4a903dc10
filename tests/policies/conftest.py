"""Small policies of every kind, and data for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dopr_robot.policies import POLICIES, ArraySpec, Policy, PolicySpec, make_policy

SMALL = {
    "mlp": {"dim": 32, "blocks": 1, "time_dim": 8},
    "unet": {"channels": [8, 16], "time_dim": 8, "groups": 4, "kernel_size": 3},
    "transformer": {"dim": 16, "layers": 1, "heads": 2, "mlp_ratio": 2},
    "cross_transformer": {"dim": 16, "layers": 1, "heads": 2, "mlp_ratio": 2},
    "causal_transformer": {"dim": 16, "layers": 1, "heads": 2, "mlp_ratio": 2},
    "lstm": {"dim": 16, "layers": 1},
    "act": {"dim": 16, "layers": 1, "heads": 2, "mlp_ratio": 2, "latent_dim": 4},
    "bet": {"bins": 4},
    "mixture": {"modes": 2},
    "flow": {"steps": 3},
    "diffusion": {"steps": 3},
}
"""Options of networks and objectives that make them small."""

SHAPES = {"state": (3,), "goal": (2, 2), "action": (2,)}


def statistics(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Ranges of width 4 anywhere."""
    rng = np.random.default_rng(seed)
    made = {}
    for key, shape in SHAPES.items():
        low = rng.normal(size=shape) * 10
        made[key] = {"min": low, "max": low + 4.0, "mean": low + 1.0, "std": np.full(shape, 0.5)}
    return made


def draw_batch(size: int = 8, horizon: int = 4, seed: int = 0) -> dict[str, Any]:
    """Observations of two steps and actions, uniform in the statistics' ranges."""
    rng, known = np.random.default_rng(seed), statistics()

    def draw(key: str, *lead: int) -> torch.Tensor:
        low, high = known[key]["min"], known[key]["max"]
        return torch.from_numpy(rng.uniform(low, high, size=(*lead, *low.shape))).float()

    return {
        "observation": {key: draw(key, size, 2) for key in ("state", "goal")},
        "action": draw("action", size, horizon),
    }


@pytest.fixture(scope="session")
def batch() -> Callable[..., dict[str, Any]]:
    return draw_batch


@pytest.fixture(scope="session")
def known() -> dict[str, dict[str, np.ndarray]]:
    return statistics()


@pytest.fixture(scope="session")
def spec() -> PolicySpec:
    observations = {key: ArraySpec(SHAPES[key]) for key in ("state", "goal")}
    return PolicySpec(observations, ArraySpec((2,)), n_obs_steps=2, horizon=4, n_action_steps=2, task="a/Task-v0")


@pytest.fixture(scope="session")
def small(spec: PolicySpec) -> Callable[..., Policy]:
    """``small("flow_unet", objective={...}, ...)``: a small fitted policy, the same at every call."""

    def make(name: str, objective: Any = None, network: Any = None, **options: Any) -> Policy:
        torch.manual_seed(0)
        of_name = POLICIES[name].default_config(name)
        parts = {}
        for part, own in (("objective", objective), ("network", network)):
            kind = of_name[part]["name"]
            parts[part] = {"name": kind, **SMALL.get(kind, {}), **(own or {})}
        policy = make_policy({"name": name, **parts, **options}, spec)
        policy.fit_normalizer(statistics())
        policy.fit([draw_batch(64, seed=1)])
        return policy

    return make


@pytest.fixture(scope="session")
def generators() -> Callable[..., list[torch.Generator]]:
    def make(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    return make

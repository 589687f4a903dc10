"""A small store and small runs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dopr_robot.datasets import Attributes, Store
from dopr_robot.training import RunConfig, compose_config
from dopr_robot.training.state import load_state

SMALL = ("policy.network.dim=16", "policy.network.layers=1", "policy.network.heads=2")


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """Twelve episodes of a point that is driven to the origin."""
    return write_points(tmp_path_factory.mktemp("store") / "point.zarr")


def write_points(path: Path, poisoned: int | None = None) -> Path:
    """The store; the actions of one episode may be NaN."""
    rng = np.random.default_rng(0)
    with Store.create(path, Attributes(task="somewhere/Point-v0", control_hz=10, observations=("state",))) as made:
        for seed in range(12):
            position = rng.normal(size=2)
            states, actions = [], []
            for _ in range(30):
                states.append(position)
                actions.append(-0.2 * position)
                position = position + actions[-1]
            actions = np.full((30, 2), np.nan) if seed == poisoned else actions
            made.append({"state": np.float32(states), "action": np.float32(actions)}, seed=seed, success=True)
    return path


@pytest.fixture(scope="session")
def config():
    return make_config


@pytest.fixture(scope="session")
def weights():
    return read_weights


def make_config(store: Path, *overrides: str) -> RunConfig:
    return compose_config(
        None,
        [
            f"data.store={store}", "training.steps=12", "training.batch_size=32", "training.checkpoint_every=5",
            "training.warmup_steps=2", "training.log_every=3", "training.validate_every=6", "policy.horizon=8",
            "policy.n_action_steps=4", "data.validation_fraction=0.2", *SMALL, *overrides,
        ],
    )  # fmt: skip


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_state(checkpoint / "training_state" / "state")["policy"]

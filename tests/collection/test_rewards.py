"""What demonstrations earned is in the store where a task's reward says more than success."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from dopr_robot import collect
from dopr_robot.envs import get_task
from dopr_robot.envs.registration import TASKS

NAME = "HalfCheetah-v5"


class Constant:
    """Half of every motor's strength, come what may."""

    noise = np.zeros(6)

    def __init__(self, env) -> None:
        self.copies = env.num_envs

    def act(self):
        return np.full((self.copies, 6), 0.5)


def test_a_store_has_the_rewards_of_the_simulator(tmp_path, monkeypatch):
    spec = replace(get_task(NAME), in_process=True, max_steps=12, expert=f"{__name__}:Constant")
    monkeypatch.setitem(TASKS._entries, NAME, spec)
    monkeypatch.setattr("dopr_robot.collection.experts.load_expert", lambda spec: Constant)
    store = collect(NAME, 3, tmp_path / "c.zarr")
    env = gymnasium.make(NAME)
    for index, seed in enumerate(store.seeds.tolist()):
        env.reset(seed=seed)
        rewards = [env.step(np.full(6, 0.5, np.float32))[1] for _ in range(12)]
        assert store.episode(index)["rewards"] == pytest.approx(rewards)
    assert store.observations == ["state"]
    monkeypatch.undo()
    assert "rewards" not in collect("QuadrotorTrack", 1, tmp_path / "q.zarr").keys

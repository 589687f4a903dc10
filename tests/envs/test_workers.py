"""Worker processes: one that dies or raises is replaced, the others go on."""

import os
import signal
from contextlib import closing

import numpy as np
import pytest

from dopr_robot.envs import make_vec
from dopr_robot.envs.workers import SimulatorError
from dopr_robot.errors import UserError

PUSH = np.zeros((2, 3), np.float32)


@pytest.fixture
def hoppers():
    env = make_vec("Hopper-v5", 2, workers=2)
    env.reset(seed=[0, 1])
    yield env
    env.close()


def test_a_dead_worker_is_replaced_and_its_neighbour_lives_on(hoppers):
    dead = hoppers._workers[0].process
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    with pytest.raises(SimulatorError, match=r"process ended \(exit code -9\)"):
        hoppers.step(PUSH)
    assert hoppers._workers[0].process.pid != dead.pid
    neighbour = hoppers.observation["state"][1]
    observation, _ = hoppers.reset(seed=[0, 9], options={"reset_mask": np.array([True, False])})
    assert np.array_equal(observation["state"][1], neighbour)
    fresh = make_vec("Hopper-v5", 2, workers=1)
    assert np.array_equal(observation["state"][0], fresh.reset(seed=[0, 1])[0]["state"][0])
    fresh.close()
    assert hoppers.step(PUSH)[1].shape == (2,)


def test_bad_actions_are_named(hoppers):
    with pytest.raises(UserError, match=r"actions have shape \[2, 2\], Hopper-v5 expects \[2, 3\]"):
        hoppers.step(np.zeros((2, 2)))
    with pytest.raises(UserError, match="copy 1 is not finite"):
        hoppers.step(np.array([[0, 0, 0], [0, np.inf, 0]]))


def test_a_worker_that_cannot_begin_says_why():
    with pytest.raises(SimulatorError, match="unexpected keyword argument 'colour'"):
        make_vec("Hopper-v5", 1, colour="red")
    with pytest.raises(UserError, match="render_mode='human'"):
        make_vec("Hopper-v5", 1, render_mode="human")


def test_workers_end_with_the_environment():
    env = make_vec("InvertedPendulum-v5", 2, workers=2)
    processes = [worker.process for worker in env._workers]
    env.close()
    assert all(process.poll() is not None for process in processes)


class Still:
    """A policy for Hopper that does nothing."""

    n_obs_steps, n_action_steps, action_dim = 1, 4, 3
    observations = {"state": (11,)}

    def act(self, observation, generator):
        import torch

        return torch.zeros(len(generator), 4, 3)


def test_a_dead_simulator_is_an_exception_in_the_records():
    """An environment whose process ends in the episode of one seed: that episode is an exception, the others end as they would."""
    from dopr_robot.envs import TASKS
    from dopr_robot.envs.workers import WorkerVectorEnv
    from dopr_robot.evaluation.rollouts.episode import Job
    from dopr_robot.evaluation.rollouts.rollout import Rollout

    class Fragile(WorkerVectorEnv):
        def reset(self, *, seed=None, options=None):
            result = super().reset(seed=seed, options=options)
            mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
            for copy in np.flatnonzero(mask):
                if seed[copy] == 2:
                    worker = next(worker for worker in self._workers if copy in worker.copies)
                    os.kill(worker.process.pid, signal.SIGKILL)
            return result

    records = []
    Rollout(Still(), lambda n, cores: Fragile(TASKS["Hopper-v5"], n, task_id="Hopper-v5"), "sustain", 12).run(
        [Job(index, seed) for index, seed in enumerate([1, 2, 3])], records.append, num_envs=3, workers=1
    )
    outcomes = {record.seed: record.outcome for record in records}
    assert outcomes == {1: "success", 2: "exception", 3: "success"}
    assert "process ended" in next(record.error for record in records if record.seed == 2)


def test_pictures_of_simulators_bound_the_copies(monkeypatch):
    """Every copy of a simulator that draws holds its scene: 32 of robosuite's Lift were 11 GB."""
    from dopr_robot.envs import Task
    from dopr_robot.evaluation.rollouts.episode import INFERENCE_BATCH
    from dopr_robot.evaluation.rollouts.plan import Evaluation

    monkeypatch.setattr("dopr_robot.envs.workers.cores", lambda: 8)
    blind = Evaluation(Still(), "Hopper-v5")
    assert blind.copies == INFERENCE_BATCH
    with closing(blind.make_env(6, 2)) as env:
        assert len(env._workers) == 2
    assert Task("robosuite/Lift-v0", {"cameras": ["agentview"]}).copies_per_core == 4
    assert Task("dopr_robot/PickPlace-v0", {"cameras": ["wrist"]}).copies_per_core is None, "one model, drawn in turn"

"""Processes stay warm, read a store once, and say nothing but that where they are stopped."""

import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest

from dopr_robot.datasets import Attributes, Store
from dopr_robot.envs import get_task
from dopr_robot.envs import workers as simulators
from dopr_robot.evaluation.rollouts import rollout
from dopr_robot.study import load_study, run_study, work, workers
from dopr_robot.training import RunConfig
from dopr_robot.training.config import DataConfig
from dopr_robot.training.demonstrations import open_store

STOPPED = """
import multiprocessing.util as util, os, signal, sys
from dopr_robot.study import workers

def leave(signum, frame):
    raise SystemExit(128 + signum)

started, spawn = [], util.spawnv_passfds

def spawn_and_stop(*args):
    # The child runs, and has not been told yet what it is for.
    started.append(spawn(*args))
    if len(started) == 2:
        os.killpg(0, signal.{0}) if {1} else os.kill(os.getpid(), signal.{0})
    return started[-1]

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    util.spawnv_passfds = spawn_and_stop
    with workers.Workers(2) as crew:
        list(crew.answers([None, None]))
"""


@pytest.mark.parametrize(("name", "code", "all_of_them"), [("SIGTERM", 143, False), ("SIGINT", 130, True)])
def test_a_stop_while_processes_are_started_leaves_no_traceback(tmp_path, name, code, all_of_them):
    (tmp_path / "stopped.py").write_text(STOPPED.format(name, all_of_them))
    command = [sys.executable, "-P", str(tmp_path / "stopped.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert (done.returncode, done.stderr) == (code, "")


def test_processes_stay_for_the_next_round_and_are_gone_after_the_last(monkeypatch):
    monkeypatch.setattr(workers, "work", eval)  # what a process that has not this file can find
    asked = ["__import__('os').getpid()"] * 4
    with workers.Workers(1) as crew:
        assert [pid for _, pid in crew.answers(asked)] == [os.getpid()] * 4
    before = set(multiprocessing.active_children())
    with workers.Workers(2) as crew:
        rounds = [{pid for _, pid in crew.answers(asked)} for _ in range(3)]
        started = {child.pid for child in set(multiprocessing.active_children()) - before}
    assert set().union(*rounds) <= started and len(started) <= 2 and os.getpid() not in started
    assert set(multiprocessing.active_children()) <= before


def test_a_store_is_opened_once_for_the_arms_of_one_study_and_anew_for_the_next(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(Store, "open", lambda path: opened.append(path) or object())
    monkeypatch.setattr(work, "train_arm", lambda job: open_store(job.config))
    stores = [tmp_path / name for name in "ab"]
    for store in stores:
        store.mkdir()

    def job(store, study):
        config = RunConfig(data=DataConfig(store=str(store)))
        return work.TrainJob({}, config, {}, "", (1,), 1, study)

    first, second, third = (work.work(job(stores[0], study)) for study in ("s", "s", "t"))
    assert first is second and second is not third and len(opened) == 2
    work.work(job(stores[1], "t"))
    assert work.work(job(stores[0], "t")) is not third and len(opened) == 4  # one is held at a time
    work.forget_stores()
    assert not work._held


def test_the_simulators_of_all_workers_together_are_one_a_core(tmp_path, monkeypatch):
    """Four workers on four cores have one simulator process each, where each had four."""
    spec = get_task("HalfCheetah-v5")
    with Store.create(tmp_path / "c.zarr", Attributes(task=spec.id, observations=("state",))) as store:
        arrays = {"state": np.zeros((30, 17)), "action": np.zeros((30, 6)), "rewards": np.ones(30)}
        for seed in range(2):
            store.append(arrays, seed=seed, success=True)
    (tmp_path / "study.yaml").write_text(f"""
tasks: [{{task: HalfCheetah-v5, store: {tmp_path / "c.zarr"}, horizons: [2]}}]
policies: [{{name: regression_mlp, network: {{dim: 8, blocks: 1}}}}]
optimizers: [adamw]
learning_rates: [1e-3]
training: {{steps: 2, batch_size: 8, checkpoint_every: 2, rollout_every: 2, warmup_steps: 0}}
evaluation: {{selection_episodes: 4, test_episodes: 4, best: false}}
""")
    started, alive, begin = [], [], simulators._Worker._begin

    def counted(worker):
        begin(worker)
        started.append(worker.process)
        alive.append(sum(process.poll() is None for process in started))

    monkeypatch.setattr(simulators._Worker, "_begin", counted)
    for module in (simulators, rollout, workers):
        monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(
        workers.Workers, "_in_pool", lambda crew, jobs: ((i, work.work(job)) for i, job in enumerate(jobs))
    )
    run_study(load_study(tmp_path / "study.yaml"), out=tmp_path / "out", workers=4)
    assert max(alive) == 1
    assert [workers.Workers(crew, threads=3).cpus for crew in (1, 2, 4, 8)] == [4, 2, 1, 1]
    assert workers.Workers(2, ray="auto", threads=3).cpus == 3  # what a job asks a cluster for

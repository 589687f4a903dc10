"""One evaluation over a Ray cluster gives what this machine alone gives, and goes on where it was stopped.

test_spread.py runs this file in a process of its own.
"""

import json

import numpy as np
import pytest
import torch

from dopr_robot import evaluate
from dopr_robot.cli import main
from dopr_robot.envs import Task
from dopr_robot.errors import UserError
from dopr_robot.evaluation import Evaluation
from dopr_robot.evaluation.rollouts import spread as spreading
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a flow policy that nobody trained: every episode has noise of its own."""
    task = Task("QuadrotorTrack")
    observations = {key: ArraySpec(shape) for key, shape in task.spec.observations.items()}
    spec = PolicySpec(observations, ArraySpec((len(task.spec.action.low),)), task=task.id)
    torch.manual_seed(0)
    policy = make_policy({"name": "flow_mlp", "network": {"dim": 16}}, spec)
    for parameter in policy.parameters():  # a fresh network's last layer is zero
        torch.nn.init.normal_(parameter, std=0.1)
    shapes = {key: each.shape for key, each in observations.items()} | {"action": spec.action.shape}
    policy.fit_normalizer(
        {
            key: {"min": -np.ones(n), "max": np.ones(n), "mean": np.zeros(n), "std": np.ones(n)}
            for key, n in shapes.items()
        }
    )
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "1"
    folder.mkdir(parents=True)
    save_policy(policy, folder)
    return folder


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, object_store_memory=80 * 2**20, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_a_cluster_gives_the_same_bytes_and_resumes(checkpoint, cluster, tmp_path, capsys):
    words = ["eval", str(checkpoint), "--episodes", "37", "--horizons", "10,30", "--video", "0"]
    assert main([*words, "--out", str(tmp_path / "here")]) == 0
    first = ["eval", str(checkpoint), "--episodes", "9", "--horizons", "10,30", "--video", "0"]
    assert main([*first, "--out", str(tmp_path / "ray"), "--ray", "auto"]) == 0
    assert main([*words, "--out", str(tmp_path / "ray"), "--ray", "auto", "--num-envs", "5", "--resume"]) == 0
    here, there = (tmp_path / name for name in ("here", "ray"))
    assert (here / "episodes.jsonl").read_bytes() == (there / "episodes.jsonl").read_bytes()
    results = [json.loads((each / "results.json").read_text()) for each in (here, there)]
    for each in results:
        for name in ("wall_s", "env_steps_per_s", "num_envs"):
            del each[name]
    assert results[0] == results[1]
    assert results[0]["episodes"] == 37 and len(set((here / "episodes.jsonl").read_text().splitlines())) == 37


def test_what_comes_back_before_a_stop_is_kept(checkpoint, cluster, tmp_path):
    evaluation = Evaluation(load_policy(checkpoint), "QuadrotorTrack", episodes=12, horizons=[5])
    kept = []

    def keep(record):
        kept.append(record.episode)
        if len(kept) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spreading.spread(evaluation, evaluation.jobs, keep, "auto", copies=4)
    assert len(kept) == 4


def test_a_fault_of_a_machine_is_that_of_this_one(checkpoint, cluster, tmp_path):
    evaluation = Evaluation(load_policy(checkpoint), "QuadrotorTrack", episodes=2, horizons=[5])
    evaluation.policy.spec.observations.clear()  # a policy that does not fit, which was not seen when it left
    evaluation.policy.spec.observations["pixels"] = ArraySpec((3,))
    with pytest.raises(UserError, match="the policy reads observation 'pixels'"):
        spreading.spread(evaluation, evaluation.jobs, lambda record: None, "auto")


def test_what_goes_without_a_cluster_is_said(checkpoint, tmp_path, capsys):
    assert main(["eval", str(checkpoint), "--feedback", "--ray", "auto"]) == 2
    assert "--feedback goes without --ray" in capsys.readouterr().err
    with pytest.raises(UserError, match="ray goes without them"):
        evaluate(checkpoint, episodes=1, ray="auto", workers=2, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

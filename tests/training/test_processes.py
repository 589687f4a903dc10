"""Several processes of one run."""

import json
import os
import subprocess
import sys

import pytest

from dopr_robot.training import read_metrics, train


def test_two_processes_compute_what_one_does(store, config, weights, tmp_path):
    """torchrun, gloo, DoPr and dropout: weights after twelve steps agree to 1e-5, and the run folder is one."""
    options = ["optimizer=dopr_adamw", "policy.network.dropout=0.1", "training.device=cpu", "name=two"]
    one = weights(train(config(store, *options), tmp_path / "one"))
    path = tmp_path / "config.yaml"
    path.write_text(config(store, *options).to_yaml())
    torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "dopr_robot.cli", "train", str(path), "name=two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["runs/two"]
    two = weights(tmp_path / "runs" / "two" / "checkpoints" / "12")
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-5
    losses = [
        [line["loss"] for line in read_metrics(folder) if "loss" in line]
        for folder in (tmp_path / "one", tmp_path / "runs/two")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert json.loads((tmp_path / "runs/two/start.json").read_text()) == json.loads(
        (tmp_path / "one/start.json").read_text()
    )

"""A training step leaves nothing to the garbage collector, which the command seldom calls, and asks the system for no memory again."""

import gc
import os
import subprocess
import sys

import pytest

from dopr_robot import progress
from dopr_robot.training import compose_config, train

SMALL = {
    "flow_transformer": ["policy.network.dim=16", "policy.network.layers=1", "policy.network.heads=2"],
    "diffusion_unet": ["policy.network.channels=[16,32]", "policy.network.groups=4"],
    "regression_mlp": ["policy.network.dim=16"],
}


@pytest.mark.parametrize("optimizer", ["dopr_adamw", "dopr_muon"])
@pytest.mark.parametrize("policy", SMALL)
def test_a_step_makes_no_garbage(optimizer, policy, store, tmp_path, monkeypatch):
    found, first = [], progress.Meter.advance

    def advance(meter, *args, **kwargs):
        first(meter, *args, **kwargs)
        found.append(gc.collect())

    settings = [
        f"policy={policy}", f"optimizer={optimizer}", f"data.store={store}", "training.steps=6", "training.batch_size=16",
        "training.validate_every=6", "training.log_every=6", "policy.horizon=8", "policy.n_action_steps=4", *SMALL[policy],
    ]  # fmt: skip
    monkeypatch.setattr(progress.Meter, "advance", advance)
    train(compose_config(None, settings), tmp_path / "run")
    assert found[2:5] == [0, 0, 0]  # neither a checkpoint nor a line of the log between them


FREED = """
import resource, sys, torch
from dopr_robot.training.processes import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
for rounds in (2, 20):
    before = faults()
    for _ in range(rounds):
        held = [torch.ones(100_000) for _ in range(30)]  # 12 MB, 2,900 pages
        del held
print((faults() - before) // rounds)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's")
def test_freed_memory_stays_with_the_process():
    asked = {}
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}  # each of the arrays, whatever else lies in memory
    for how in ("kept", "given back"):
        command = [sys.executable, "-P", "-c", FREED, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=given_back)
        asked[how] = int(done.stdout)
    assert asked["kept"] < 100 < asked["given back"]

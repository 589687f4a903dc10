"""Checkpoints: of the format before, of unknown ones, cut short; and policies of other packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dopr_robot.errors import DamagedError, DoprError, UserError
from dopr_robot.policies import FORMAT_VERSION, load_policy, save_policy
from dopr_robot.policies.checkpoint import READS
from dopr_robot.training import compose_config, load_config

FORMAT_1 = Path(__file__).parent / "data" / "format_1"


def test_a_checkpoint_of_the_format_before_acts_as_it_did():
    """Written by the release that wrote format 1, with what it answered for these observations and this seed."""
    policy = load_policy(FORMAT_1)
    assert json.loads((FORMAT_1 / "policy.json").read_text())["format_version"] == 1 != FORMAT_VERSION
    observation = {"state": torch.arange(6.0).view(1, 2, 3) / 6, "goal": torch.arange(8.0).view(1, 2, 2, 2) / 8}
    acted = policy.act(observation, [torch.Generator().manual_seed(5)])
    answered = [[-0.23369455, 0.02570653], [0.13629079, 2.61133623]]
    assert torch.allclose(acted, torch.tensor([answered]), atol=1e-5)
    assert policy.spec.action_meaning["units"] == "rad" and policy.task == "somewhere/Task-v0"


def test_a_checkpoint_of_format_1_is_saved_in_the_present_one(tmp_path):
    save_policy(load_policy(FORMAT_1), tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["format_version"] == FORMAT_VERSION == max(READS)
    seen = {"state": torch.zeros(1, 2, 3), "goal": torch.zeros(1, 2, 2, 2)}
    seed = torch.Generator().manual_seed
    assert torch.equal(load_policy(tmp_path).act(seen, seed(0)), load_policy(FORMAT_1).act(seen, seed(0)))


def test_diffusion_of_a_format_before_keeps_the_time_that_it_was_trained_with(small, batch, tmp_path):
    """Formats 1 and 2 counted a schedule of 100 steps from 0 to 1; the U-Net of Diffusion Policy counts thousandths."""
    policy = small("diffusion_mlp")
    save_policy(policy, tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    assert description["policy"]["objective"]["time_steps"] == 1000
    del description["policy"]["objective"]["time_steps"]
    (tmp_path / "policy.json").write_text(json.dumps({**description, "format_version": 2}))
    before = load_policy(tmp_path)
    assert before.objective.config.time_steps == before.objective.config.train_steps == 100
    save_policy(before, tmp_path)
    assert load_policy(tmp_path).objective.config.time_steps == 100


def test_a_run_of_a_release_before_goes_on_with_the_time_that_it_began_with(tmp_path):
    values = yaml.safe_load(compose_config(None, ["policy=diffusion_mlp"]).to_yaml())
    del values["policy"]["objective"]["time_steps"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    assert compose_config(str(path)).policy["objective"]["time_steps"] == 1000  # a file of settings, not yet a run
    (tmp_path / "checkpoints").mkdir()
    assert load_config(path).policy["objective"]["time_steps"] == 100
    assert compose_config(str(path)).policy["objective"]["time_steps"] == 100


def test_a_checkpoint_of_another_format_or_cut_short_is_refused(small, tmp_path):
    save_policy(small("flow_mlp"), tmp_path)
    weights = tmp_path / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"policy\.safetensors"):
        load_policy(tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    (tmp_path / "policy.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(UserError, match=r"format_version 99.* reads 1, 2, 3, 4"):
        load_policy(tmp_path)
    (tmp_path / "policy.json").write_text("{")
    with pytest.raises(DamagedError, match="is not JSON"):
        load_policy(tmp_path)
    with pytest.raises(UserError, match=f"neither a run folder nor a checkpoint.*one lies that does: {tmp_path}\\)"):
        load_policy(tmp_path.parent)


RECIPE = Path(__file__).parents[2] / "docs" / "policies.md"

USE = """
import numpy as np, torch
from pathlib import Path
from dopr_robot.cli import main
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy

assert main(["policies", "linear"]) == 0
assert main(["train", "policy=linear_gaussian", "policy.noise=0.5", "--print"]) == 0
policy = make_policy({"name": "linear_gaussian"}, PolicySpec({"state": ArraySpec((3,))}, ArraySpec((2,))))
one = {key: {"min": -np.ones(n), "max": np.ones(n), "mean": np.zeros(n), "std": np.ones(n)} for key, n in (("state", 3), ("action", 2))}
policy.fit_normalizer(one)
policy({"observation": {"state": torch.zeros(4, 2, 3)}, "action": torch.zeros(4, 16, 2)})[0].backward()
Path("checkpoint").mkdir()
save_policy(policy, Path("checkpoint"))
print(tuple(load_policy("checkpoint").act({"state": torch.zeros(4, 2, 3)}).shape))
"""


def test_another_package_adds_a_policy_by_its_entry_point(tmp_path):
    site = tmp_path / "site"
    (site / "linear_gaussian-1.0.dist-info").mkdir(parents=True)
    own = RECIPE.read_text().split("## One of your own")[1]
    (site / "linear_gaussian.py").write_text(own.split("```python\n")[1].split("```")[0])
    (site / "linear_gaussian-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: linear-gaussian\nVersion: 1.0\n"
    )
    (site / "linear_gaussian-1.0.dist-info" / "entry_points.txt").write_text(
        "[dopr_robot.policies]\nlinear_gaussian = linear_gaussian:register\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", USE],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["linear_gaussian", "linear", "Gaussian"]
    assert "  noise: 0.5" in lines and lines[-1] == "(4, 8, 2)"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"H": 10**9}, "H is 1000000000: a whole number from 1 to 65536"),
        ({"To": True}, "To is True"),
        (
            {"observations": {"state": {"shape": [10**8], "dtype": "float32"}}},
            "a larger policy than policy.safetensors holds",
        ),
        ({"observations": {"state": {"shape": "x", "dtype": "float32"}}}, "observations.state.shape is 'x': a list"),
        ({"network.dim": 65_536}, "a larger policy than policy.safetensors holds"),
        ({"network.dim": 10**7}, "network.dim=10000000 has to lie between 1 and 65,536"),
        ({"network.layers": 1024}, "a larger policy than policy.safetensors holds"),
        ({"network.layers": 10**9}, "policy.network.layers is 1e\\+09: at most"),
        ({"objective": []}, "policy"),
        ({"network": None}, "policy"),
        ({"policy": 3}, "policy is 3: a mapping"),
    ],
)
def test_a_description_that_is_larger_than_the_weights_is_refused_before_it_is_built(tmp_path, small, change, said):
    save_policy(small("flow_transformer"), tmp_path)
    description = json.loads((tmp_path / "policy.json").read_text())
    for key, value in change.items():
        inside = description
        *outer, last = (f"policy.{key}" if key.startswith(("network", "objective")) else key).split(".")
        for part in outer:
            inside = inside[part]
        inside[last] = value
    (tmp_path / "policy.json").write_text(json.dumps(description))
    with pytest.raises(DoprError, match=said) as caught:
        load_policy(tmp_path)
    assert "policy.json" in str(caught.value) and "\n" not in str(caught.value)

"""Networks, objectives and policies of another package, by its entry points."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dopr_robot.errors import UserError
from dopr_robot.policies import NETWORKS, POLICIES, PolicyConfig, PolicyEntry, make_policy
from dopr_robot.policies.component import Component
from dopr_robot.policies.networks import MLP, MLPConfig
from dopr_robot.policies.policy import PairConfig, PairPolicy

RECIPE = Path(__file__).parents[2] / "docs" / "policies.md"

MORE = """
from dataclasses import dataclass

from dopr_robot.policies import POLICIES, PairConfig, PairPolicy, PolicyEntry
from dopr_robot.policies.networks import MLPConfig


def register_policy():
    defaults = {"objective": MedianConfig(), "network": MLPConfig(dim=24)}
    POLICIES.register("median", PolicyEntry("medians", PairConfig(horizon=4, n_action_steps=2), PairPolicy, defaults))
"""

USE = """
from dataclasses import asdict
from pathlib import Path
import numpy as np, torch
from dopr_robot.cli import main
from dopr_robot.policies import ArraySpec, PolicySpec, load_policy, make_policy, save_policy

assert main(["policies", "median"]) == 0
assert main(["policies", "single_layer"]) == 0
assert main(["train", "policy=flow_single_layer", "policy.network.scale=2.0", "--print"]) == 0
assert main(["train", "policy=median", "--print"]) == 0
one = {key: {"min": -np.ones(n), "max": np.ones(n), "mean": np.zeros(n), "std": np.ones(n)} for key, n in (("state", 3), ("action", 2))}
for name, config in (("flow_single_layer", {}), ("median_mlp", {}), ("median_single_layer", {}), ("median", {"network": {"blocks": 1}})):
    policy = make_policy({"name": name, **config}, PolicySpec({"state": ArraySpec((3,))}, ArraySpec((2,)), 2, 4, 2))
    policy.fit_normalizer(one)
    policy({"observation": {"state": torch.zeros(4, 2, 3)}, "action": torch.zeros(4, 4, 2)})[0].backward()
    Path(name).mkdir()
    save_policy(policy, Path(name))
    loaded = load_policy(name)
    assert loaded.act({"state": torch.zeros(4, 2, 3)}).shape == (4, 2, 2)
    assert load_policy(name, acting={"n_action_steps": 1}).act({"state": torch.zeros(4, 2, 3)}).shape == (4, 1, 2)
    assert name != "median" or loaded.config.network["dim"] == 24 and loaded.config.network["blocks"] == 1
"""


def test_another_package_adds_networks_and_objectives(tmp_path):
    site = tmp_path / "site"
    (site / "medians-1.0.dist-info").mkdir(parents=True)
    own = RECIPE.read_text().split("## A network or an objective of your own")[1]
    (site / "medians.py").write_text(own.split("```python\n")[1].split("```")[0] + MORE)
    (site / "medians-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: medians\nVersion: 1.0\n")
    points = own.split("```toml\n")[1].split("```")[0].replace('[project.entry-points."', "[").replace('"]', "]")
    points = (
        points.replace('"', "").replace("my_package.", "") + "[dopr_robot.policies]\nmedian = medians:register_policy\n"
    )
    (site / "medians-1.0.dist-info" / "entry_points.txt").write_text(points)
    done = subprocess.run(
        [sys.executable, "-P", "-c", USE],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.split("data:")[0].splitlines() if line and line[0] != " "]
    assert {"median_unet", "median_mlp", "median", "bet_single_layer", "median_single_layer"} <= set(listed)
    assert "    scale: 2.0" in done.stdout and "  horizon: 4" in done.stdout and "    dim: 24" in done.stdout


def test_a_network_that_is_registered_late_is_found():
    assert "flow_late" not in POLICIES
    NETWORKS.register("late", Component(MLP, MLPConfig, "late MLP"))
    try:
        assert POLICIES["flow_late"].summary == "flow matching on a late MLP" and "flow_late" in list(POLICIES)
    finally:
        del NETWORKS._entries["late"]


def test_what_can_not_work_is_refused_where_it_is_registered():
    with pytest.raises(UserError, match="has to be a dataclass with a field 'name'"):
        Component(MLP, dict, "nothing")
    with pytest.raises(UserError, match="have to be a dataclass"):
        PolicyEntry("nothing", {"name": "x"}, PairPolicy)
    with pytest.raises(UserError, match="MLPConfig lacks n_obs_steps, horizon, n_action_steps: make it a subclass"):
        PolicyEntry("nothing", MLPConfig, PairPolicy)
    POLICIES.register("flow_unet", PolicyEntry("another", PairConfig, PairPolicy))
    try:
        with pytest.raises(UserError, match="policy 'flow_unet' is an objective and a network already"):
            POLICIES["regression_mlp"]
    finally:
        del POLICIES._entries["flow_unet"]


def test_an_entry_point_that_fails_is_named(tmp_path):
    (tmp_path / "broken-1.0.dist-info").mkdir()
    (tmp_path / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (tmp_path / "broken-1.0.dist-info" / "entry_points.txt").write_text("[dopr_robot.networks]\nx = missing:register\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dopr_robot.cli", "policies"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "entry point 'x' (missing:register) of the group dopr_robot.networks fails with ModuleNotFoundError"
        in done.stderr
    )


def test_an_instance_gives_the_defaults(spec):
    entry = PolicyEntry("short", PolicyConfig(horizon=4, n_action_steps=1), PairPolicy)
    assert entry.default_config("short")["horizon"] == 4 and entry.default_config("short")["name"] == "short"
    assert make_policy({"name": "flow_mlp", "network": {"dim": 8}}, spec).config.network["dim"] == 8

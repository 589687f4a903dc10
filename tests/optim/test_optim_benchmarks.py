"""The benchmarks of the optimizer run, with their peers and data really installed, and write what they say they write."""

import json
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "optimizer_overhead.py"


def test_overhead_of_every_arm_on_the_perceptron(tmp_path):
    out = tmp_path / "overhead.json"
    command = [
        sys.executable,
        "-P",
        str(SCRIPT),
        "--models",
        "mlp",
        "--steps",
        "4",
        "--threads",
        "1",
        "--json",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = {record["name"]: record for record in json.loads(out.read_text())}
    forms = ("auto", "average", "low_rank")
    arms = ["DoPr-AdamW", *(f"DoPr-AdamW, {form}" for form in forms), "Muon", "DoPr-Muon", "SOAP", "SINGD"]
    arms += ["HeavyBall SOAP"] if find_spec("heavyball") else []
    assert list(records) == [f"mlp: {arm} / AdamW" for arm in arms]
    assert all(record["ours"] > 0 and record["peer"] > 0 and record["ratio"] > 0 for record in records.values())
    weights = 170_864 * 4 / 2**20  # MiB
    dopr, soap = (records[f"mlp: {arm} / AdamW"]["state_mib"] for arm in ("DoPr-AdamW", "SOAP"))
    assert 2 * weights < dopr < soap  # AdamW's two averages, and the statistics


@pytest.mark.parametrize("task", ["text", "digits"])
def test_rates_outside_robotics(task, tmp_path, monkeypatch, capsys):
    if task == "digits":
        pytest.importorskip("sklearn")
    spec = spec_from_file_location("optimizer_elsewhere", SCRIPT.with_name("optimizer_elsewhere.py"))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "out.json"
    options = {
        "--tasks": task,
        "--arms": "dopr_muon, damping=0.1",
        "--rates": "0.01",
        "--steps": "8",
        "--seeds": "1",
        "--json": out,
    }
    monkeypatch.setattr(sys, "argv", ["x", *(str(word) for pair in options.items() for word in pair)])
    module.main()
    (record,) = json.loads(out.read_text())
    assert record["name"] == f"{task}: dopr_muon, damping=0.1, lr=0.01"
    chance = {"text": 4.6, "digits": 2.3}[task]  # nats of a uniform guess
    assert 0 < record["losses"][0] < chance
    assert "dopr_muon" in capsys.readouterr().out

"""The overhead benchmark runs, with its peers really installed, and writes what it says it writes."""

import json
import subprocess
import sys
from pathlib import Path

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
    forms = ("batch", "average", "low_rank")
    arms = ["DoPr-AdamW", *(f"DoPr-AdamW, {form}" for form in forms), "SOAP", "SINGD"]
    assert list(records) == [f"mlp: {arm} / AdamW" for arm in arms]
    assert all(record["ours"] > 0 and record["peer"] > 0 and record["ratio"] > 0 for record in records.values())
    weights = 170_864 * 4 / 2**20  # MiB
    dopr, soap = (records[f"mlp: {arm} / AdamW"]["state_mib"] for arm in ("DoPr-AdamW", "SOAP"))
    assert 2 * weights < dopr < soap  # AdamW's two averages, and the statistics

"""benchmarks/gpu.py runs where there is no GPU, in small, and the page is that of its record."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_runs_in_small_and_says_what_can_not_be_measured(tmp_path):
    parts = ["machine", "exactness", "optimizer", "kernels", "waits", "plan", "pusht"]
    done = run("--device", "cpu", "--small", "--out", str(tmp_path), "--parts", *parts)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(found) == parts
    assert not any("failed" in part for part in found.values())
    assert found["kernels"]["skipped"] == "a CPU launches nothing"
    assert found["waits"]["skipped"] == "a CPU is not waited for"
    assert "no --pusht STORE" in found["pusht"]["skipped"]
    assert all(row["ours"] < 1e-4 for row in found["exactness"]["rows"] if "float32" in row["name"])
    assert len(found["optimizer"]["rows"]) == 6 and all(row["ratio"] > 0 for row in found["optimizer"]["rows"])
    assert "Not measured: a CPU is not waited for." in (tmp_path / "gpu.md").read_text()


def test_the_page_is_that_of_the_record(tmp_path):
    page = tmp_path / "gpu.md"
    done = run("--page", str(ROOT / "benchmarks" / "gpu.json"), "--to", str(page))
    assert done.returncode == 0, done.stderr
    assert page.read_text() == (ROOT / "docs" / "gpu.md").read_text()

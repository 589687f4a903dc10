"""`make bench`: what it says fell, and what it writes."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from dopr_robot.policies.objectives import OBJECTIVES

spec = spec_from_file_location("bench", Path(__file__).parent.parent / "benchmarks" / "bench.py")
bench = module_from_spec(spec)
spec.loader.exec_module(bench)


@pytest.fixture
def history(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(bench, "HISTORY", tmp_path / "history.jsonl")
    monkeypatch.setattr(bench, "BENCHMARKS", {"one": [], "two": []})
    return tmp_path / "history.jsonl"


def measured(monkeypatch, found: dict[str, float], *words: str) -> int:
    monkeypatch.setattr(bench, "ratios", lambda name, arguments: {f"{name}: x": found[name]})
    monkeypatch.setattr(sys, "argv", ["bench.py", *words])
    return bench.main()


def test_what_fell_by_more_than_15_percent_is_named(history, monkeypatch, capsys):
    assert measured(monkeypatch, {"one": 2.0, "two": 4.0}) == 0
    assert measured(monkeypatch, {"one": 1.8, "two": 3.0}) == 1
    said = capsys.readouterr().out.splitlines()[-2:]
    assert "fell" not in said[0] and said[1].endswith("two: x  (was 4.00)  fell")
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    assert [line["ratios"] for line in lines] == [{"one: x": 2.0, "two: x": 4.0}, {"one: x": 1.8, "two: x": 3.0}]
    assert set(lines[0]) == {"commit", "ratios"}  # and no machine's name


def test_one_benchmark_leaves_the_others_figures_and_a_dry_run_leaves_all(history, monkeypatch):
    measured(monkeypatch, {"one": 2.0, "two": 4.0})
    measured(monkeypatch, {"two": 3.9}, "two")
    measured(monkeypatch, {"one": 9.0, "two": 9.0}, "--dry")
    last = json.loads(history.read_text().splitlines()[-1])
    assert last["ratios"] == {"two: x": 3.9}


def test_a_run_that_fell_is_not_the_measure_of_the_next(history, monkeypatch):
    for ratio in (2.0, 2.1, 1.0):
        fell = measured(monkeypatch, {"one": ratio, "two": 4.0})
    assert fell == 1
    assert measured(monkeypatch, {"one": 1.0, "two": 4.0}) == 1
    assert measured(monkeypatch, {"one": 1.9, "two": 4.0}) == 0


def test_what_fell_once_is_measured_again_and_the_better_figure_counts(history, monkeypatch, capsys):
    measured(monkeypatch, {"one": 2.0, "two": 4.0})
    found = iter([1.0, 1.9, 3.9])  # of `one`, of `one` again, of `two`
    monkeypatch.setattr(bench, "ratios", lambda name, arguments: {f"{name}: x": next(found)})
    assert bench.main() == 0 and "fell" not in capsys.readouterr().out
    assert json.loads(history.read_text().splitlines()[-1])["ratios"] == {"one: x": 1.9, "two: x": 3.9}


def test_a_ratio_of_times_is_turned_over(monkeypatch):
    rows = [{"name": "mlp", "ratio": 2.0}, {"name": "no peer", "ratio": None}]

    def run(call, check):
        Path(call[-1]).write_text(json.dumps(rows))

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.ratios("optimizer_overhead", []) == {"optimizer_overhead: mlp": 0.5}
    assert bench.ratios("startup", []) == {"startup: mlp": 2.0}


def test_a_plan_of_every_family_is_timed():
    script = Path(__file__).parent.parent / "benchmarks" / "policy_latency.py"
    call = [sys.executable, "-P", str(script), "--rounds", "1", "--threads", "1"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    *families, published = [line.split()[0] for line in done.stdout.splitlines()]
    assert {name.split("_")[0] for name in families} == set(OBJECTIVES) and published == "published"

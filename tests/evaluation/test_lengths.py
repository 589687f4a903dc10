"""Success versus the task's length, through the command."""

import json

import pytest

from dopr_robot.cli import main
from dopr_robot.evaluation import Evaluation, read_records, run_evaluation
from dopr_robot.evaluation.lengths import evaluate_lengths


@pytest.fixture
def reach(policy, point_tasks):
    return Evaluation(policy, point_tasks[0], episodes=30)


@pytest.mark.drawn
def test_every_length_is_an_evaluation_of_its_own(reach, tmp_path):
    results = evaluate_lengths(reach, tmp_path / "e", [3, 1, 2, 1], video=0)
    assert [point["length"] for point in results["lengths"]] == [1, 2, 3]
    rates = [point["success_rate"] for point in results["lengths"]]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[2]
    assert results["env_options"] == {"goals": 3} and results["curve"][-1]["success_rate"] == rates[2]
    assert {"lengths.png", "report.html", "episodes.jsonl"} <= {path.name for path in (tmp_path / "e").iterdir()}
    page = (tmp_path / "e" / "report.html").read_text()
    assert "Against the length of the task" in page and f"{100 * rates[0]:.1f} %" in page
    # Length 1 is the task as it is without a length, on the same seeds.
    run_evaluation(reach, tmp_path / "plain", video=0)
    alone = (tmp_path / "plain" / "episodes.jsonl").read_bytes()
    assert (tmp_path / "e" / "lengths" / "1" / "episodes.jsonl").read_bytes() == alone


def test_an_evaluation_over_lengths_goes_on_where_it_stopped(reach, tmp_path):
    whole = evaluate_lengths(reach, tmp_path / "whole", [1, 2], video=0)
    run_evaluation(reach.at_length(1), tmp_path / "e" / "lengths" / "1", video=0)
    records = tmp_path / "e" / "lengths" / "1" / "episodes.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:9]))
    resumed = evaluate_lengths(reach, tmp_path / "e", [1, 2], video=0, resume=True)
    assert len(read_records(records)) == 30
    assert resumed["lengths"] == whole["lengths"]


def test_the_command_prints_a_line_a_length(tmp_path, monkeypatch, make_run, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    assert main(["eval", "a", "--episodes", "6", "--lengths", "1,2", "--out", "e"]) == 0
    output = capsys.readouterr().out.splitlines()
    table = output[next(i for i, line in enumerate(output) if line.split()[0] == "length") + 1 :][:2]
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    for line, point in zip(table, results["lengths"], strict=True):
        assert line.split()[:3] == [str(point["length"]), "6", f"{point['success_rate']:.1%}"]
    for words, message in (
        (["--lengths", "0,1"], "has to be at least 1"),
        (["--task", "point/Stay-v0", "--lengths", "1"], "has no length to vary (tasks that have one: "),
        (["--lengths", "two"], "no list of whole numbers"),
    ):
        assert main(["eval", "a", *words, "--out", "f"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
        assert not (tmp_path / "f").exists()

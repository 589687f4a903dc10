import json
from itertools import combinations
from pathlib import Path

import pytest

from dopr_robot.cli import main
from dopr_robot.errors import UserError
from dopr_robot.evaluation import read_records
from dopr_robot.evaluation.reports.differences import difference_figure
from dopr_robot.evaluation.reports.naming import details, method_labels, settings
from dopr_robot.training import compose_config, write_config


@pytest.fixture
def runs(tmp_path, monkeypatch, make_run):
    """Two methods of two training seeds each; the settings say what distinguishes them."""
    monkeypatch.chdir(tmp_path)
    for method, scale in (("adamw", 0.05), ("dopr", 0.12)):
        for seed in (0, 1):
            make_run(tmp_path / f"{method}-{seed}", seed=seed, scale=scale, optimizer={"name": method})
    return tmp_path


@pytest.mark.drawn
def test_two_runs(runs, capsys):
    assert main(["compare", "adamw-0", "dopr-0", "--episodes", "14", "--out", "c"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "c"
    result = json.loads((runs / "c" / "comparison.json").read_text())
    assert {path.name for path in (runs / "c").iterdir()} >= {"comparison.json", "horizon.png", "difference.png"}
    assert [method["label"] for method in result["methods"]] == ["adamw", "dopr"]
    (pair,) = result["pairs"]
    first, second = (
        read_records(runs / name / "eval" / "20-seed0" / "episodes.jsonl") for name in ("adamw-0", "dopr-0")
    )
    won = [a.outcome == "success" and b.outcome != "success" for a, b in zip(first, second, strict=True)]
    last = pair["curve"][-1]
    assert last["only_first"] == sum(won) and last["test"] == "McNemar, exact"
    rates = [sum(record.outcome == "success" for record in records) / 14 for records in (first, second)]
    assert last["difference"] == pytest.approx(rates[0] - rates[1])
    assert all(cell["p_holm"] >= cell["p_value"] for cell in pair["curve"])


def test_runs_that_differ_in_the_training_seed_are_one_method(runs, capsys):
    assert main(["compare", "adamw-0", "adamw-1", "dopr-0", "dopr-1", "--episodes", "8", "--out", "c"]) == 0
    result = json.loads((runs / "c" / "comparison.json").read_text())
    assert [method["training_seeds"] for method in result["methods"]] == [[0, 1], [0, 1]]
    assert result["pairs"][0]["curve"][0]["test"].startswith("permutation of training seeds")


def test_methods_are_called_what_distinguishes_them(tmp_path, monkeypatch):
    """DoPr has ten settings that its base has not: its name says them all, and the table has them."""
    monkeypatch.chdir(tmp_path)
    runs = {
        "a": ["optimizer=adamw", "optimizer.lr=1e-3"],
        "b": ["optimizer=dopr_adamw", "optimizer.lr=1e-3"],
        "c": ["optimizer=dopr_adamw", "optimizer.lr=1e-3", "training.seed=1"],
        "d": ["optimizer=dopr_adamw", "optimizer.lr=3e-4"],
    }
    for name, changes in runs.items():
        write_config(compose_config("pick_place", [f"name={name}", *changes]), Path(name))
    paths = [Path(name) for name in runs]
    assert method_labels(paths[:3]) == [("adamw", 0), ("dopr_adamw", 0), ("dopr_adamw", 1)]
    names = ["adamw", "dopr_adamw lr=0.001", "dopr_adamw lr=0.001", "dopr_adamw lr=0.0003"]
    assert [label for label, _ in method_labels(paths)] == names
    assert [label for label, _ in method_labels([paths[1], paths[3]])] == [
        "dopr_adamw lr=0.001",
        "dopr_adamw lr=0.0003",
    ]
    assert [label for label, _ in method_labels(paths[:3], ["AdamW", "DoPr"])] == ["AdamW", "DoPr", "DoPr"]
    assert [label for label, _ in method_labels(paths[:3], ["x", "y", "z"])] == ["x", "y", "z"]
    with pytest.raises(UserError, match="names 1, and there are 2 methods"):
        method_labels(paths[:3], ["x"])
    table = details({name: settings(Path(name)) for name in ("a", "b")})
    assert table["optimizer.name"] == ["adamw", "dopr_adamw"] and table["optimizer.damping"][0] == ""


def test_the_report_says_what_was_compared(runs, capsys):
    assert main(["compare", "adamw-0", "dopr-0", "--episodes", "6", "--labels", "the base,ours", "--out", "c"]) == 0
    said = capsys.readouterr().out
    assert "the base minus ours" in said and "optimizer.name" in said
    result = json.loads((runs / "c" / "comparison.json").read_text())
    assert result["settings"] == {"optimizer.name": ["adamw", "dopr"]}
    assert result["about"]["training seed"] == ["0", "0"]
    page = (runs / "c" / "report.html").read_text()
    assert "the base" in page and str(runs) not in page


def test_many_methods_are_drawn_against_the_first():
    def pair(first, second):
        cell = {"horizon": 9, "difference": 0.1, "ci95": [0, 0.2], "band95": [-0.1, 0.3], "p_holm": 0.5}
        return {"first": first, "second": second, "curve": [cell | {"horizon": 4}, cell]}

    def figure(methods):
        names = [f"a long name that has to be wrapped {number}" for number in range(methods)]
        return difference_figure([pair(*each) for each in combinations(names, 2)], 10)

    drawn = [axes for axes in figure(7).axes if axes.get_visible()]
    assert len(drawn) == 6 and all("\n" in axes.get_title(loc="left") for axes in drawn)
    (axes,) = figure(60).axes  # as many panels would be ten metres of paper
    assert len(axes.get_yticklabels()) == 59 and "at 9 steps (0.9 s)" in axes.get_title(loc="left")


def test_what_was_evaluated_is_not_evaluated_again(runs):
    assert main(["eval", "adamw-0", "--episodes", "8"]) == 0
    before = (runs / "adamw-0" / "eval" / "20-seed0" / "results.json").read_bytes()
    assert main(["compare", "adamw-0", "dopr-0", "--episodes", "8", "--out", "c"]) == 0
    assert [path.name for path in (runs / "adamw-0" / "eval").iterdir()] == ["20-seed0"]
    assert (runs / "adamw-0" / "eval" / "20-seed0" / "results.json").read_bytes() == before


def test_sequential_stops_once_decided_and_goes_on_where_it_stopped(runs, capsys):
    words = ["compare", "adamw-0", "dopr-0", "--sequential", "--block", "5", "--out", "c"]
    assert main([*words, "--episodes", "10"]) == 0
    first = json.loads((runs / "c" / "comparison.json").read_text())["sequential"]
    assert first["episodes"] <= 10
    assert main([*words, "--episodes", "20"]) == 0
    second = json.loads((runs / "c" / "comparison.json").read_text())["sequential"]
    assert second["decided"] or second["episodes"] == 20
    assert second["episodes"] >= first["episodes"]
    assert second["verdict"] in capsys.readouterr().out


def test_sequential_compares_three_runs_on_another_figure(runs, capsys):
    words = [
        "compare",
        "adamw-0",
        "dopr-0",
        "dopr-1",
        "--sequential",
        "--on",
        "time",
        "--block",
        "5",
        "--episodes",
        "10",
        "--out",
        "c",
    ]
    assert main([*words, "--labels", "a,b,c"]) == 0
    said = json.loads((runs / "c" / "comparison.json").read_text())["sequential"]
    assert [(pair["first"], pair["second"]) for pair in said["pairs"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert said["on"] == "time" and all(
        -1 <= pair["interval"][0] <= pair["difference"] <= pair["interval"][1] <= 1 for pair in said["pairs"]
    )
    assert (
        len([line for line in capsys.readouterr().out.splitlines() if "at horizon" in line and "decided" in line]) == 3
    )
    assert main([*words[:-2], "--out", "d", "--on", "nothing"]) == 2
    assert "has no such figure; it has success, time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adamw-0"], "at least two runs"),
        (["adamw-0", "nowhere"], "does not exist"),
        (["adamw-0", "dopr-0", "--sequential", "--margin", "100"], "from 0 to 100 points"),
        (["adamw-0"] * 9 + ["--sequential"], "at most 8 runs, not 9"),
        (["adamw-0/eval/20-seed0", "adamw-1/eval/20-seed1"], "no initial state in common"),
        (["adamw-0/eval/20-seed0", "dopr-0/eval/20-seed0", "--horizons", "24"], "evaluate again with --horizons"),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, words, message):
    for name, seed in (("adamw-0", "0"), ("dopr-0", "0"), ("adamw-1", "1")):
        if f"{name}/eval/20-seed{seed}" in words:
            assert main(["eval", name, "--episodes", "2", "--horizons", "8", "--seed", seed]) == 0
    capsys.readouterr()
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err
    assert not (runs / "comparison").exists()

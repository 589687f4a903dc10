"""Success under perturbations, beside the same rollouts without."""

import json

import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.errors import UserError
from dopr_robot.evaluation import EpisodeRecord, Evaluation, read_records, run_evaluation
from dopr_robot.evaluation.perturbed import combinations, evaluate_perturbed
from dopr_robot.evaluation.statistics import difference_curve, perturbed, success_matrix


@pytest.fixture
def reach(policy, point_tasks):
    return Evaluation(policy, point_tasks[0], episodes=30)


@pytest.mark.drawn
def test_every_strength_begins_in_the_unperturbed_initial_states(reach, tmp_path):
    """More goals stand for a perturbation: a number that makes the task harder."""
    results = evaluate_perturbed(reach, tmp_path / "e", {"goals": [2, 3, 2]}, video=0)
    assert [(arm["option"], arm["value"], arm["options"]) for arm in results["perturbed"]] == [
        ("goals", 2, {"goals": 2}), ("goals", 3, {"goals": 3}),
    ]  # fmt: skip
    run_evaluation(reach, tmp_path / "plain", video=0)
    records = {name: read_records(tmp_path / name / "episodes.jsonl") for name in ("e", "plain", "e/perturbed/goals=3")}
    assert records["e"] == records["plain"] and results["env_options"] == {}
    harder = records["e/perturbed/goals=3"]
    assert [r.initial_state_sha256 for r in harder] == [r.initial_state_sha256 for r in records["e"]]
    arm, horizons = results["perturbed"][1], [point["horizon"] for point in results["curve"]]
    own, plain = (success_matrix(each, "attain", horizons) for each in (harder, records["e"]))
    found = difference_curve(own[None], plain[None])
    assert [point["mean"] for point in arm["differences"]] == pytest.approx((own.mean(0) - plain.mean(0)).tolist())
    assert [point["ci95"] for point in arm["differences"]] == np.stack([found.low, found.high], 1).tolist()
    assert arm["difference"] == {key: arm["differences"][-1][key] for key in ("mean", "ci95")}
    assert arm["difference"]["mean"] < 0
    page = (tmp_path / "e" / "report.html").read_text()
    assert "Under perturbations" in page and (tmp_path / "e" / "perturbed.png").stat().st_size > 0
    with pytest.raises(UserError, match="--resume goes on"):
        evaluate_perturbed(reach, tmp_path / "e", {"goals": [2]}, video=0)
    again = evaluate_perturbed(reach, tmp_path / "e", {"goals": [3]}, video=0, resume=True)
    assert again["perturbed"] == results["perturbed"][1:]


def test_records_of_other_seeds_are_no_pairs():
    records = [EpisodeRecord(0, seed, None, "success", 3, None, 3, 1.0) for seed in (1, 2)]
    with pytest.raises(UserError, match="other initial states"):
        perturbed(records[:1], [({"noise": 1.0}, records[1:])], "attain", [5])


def test_several_options_are_a_grid():
    assert combinations({"a": [1, 2], "b": [0.5]}) == [{"a": 1, "b": 0.5}, {"a": 2, "b": 0.5}]
    for values in ([], ["much"], [True]):
        with pytest.raises(UserError, match="numbers are expected"):
            combinations({"a": values})


def test_the_command_tells_what_is_left(tmp_path, monkeypatch, make_run, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    grid = ["--perturb", "goals=2", "--perturb", "observation_noise=0.1,0.2"]
    assert main(["eval", "a", "--episodes", "3", "--horizons", "5", *grid, "--out", "e"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "observation_noise=0.2" in line]
    results = json.loads((tmp_path / "e" / "results.json").read_text())
    assert [line.split()[0] for line in lines] == ["goals=2"] and len(results["perturbed"]) == 2
    assert results["perturbed"][0]["option"] is None
    folders = {folder.name for folder in (tmp_path / "e" / "perturbed").iterdir()}
    assert "goals=2,observation_noise=0.1" in folders and len(folders) == 2
    assert "--perturb goals=2 --perturb observation_noise=0.1,0.2" in (tmp_path / "e" / "report.html").read_text()
    for words, message in (
        (["--perturb", "observation_nose=0.1"], "did you mean 'observation_noise'"),
        (["--perturb", "goals=few"], "numbers are expected"),
        (["--perturb", "goals"], "has to be NAME=VALUE,VALUE"),
        (["--perturb", "goals=2", "--lengths", "1,2"], "one call each"),
        (["--perturb", "goals=2", "--feedback"], "--feedback goes without --perturb"),
    ):
        assert main(["eval", "a", *words, "--out", "f"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
        assert not (tmp_path / "f").exists()

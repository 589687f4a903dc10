"""`dopr eval` on real policies, and what makes two evaluations of one checkpoint equal."""

import json
import re
from pathlib import Path

import pytest

from dopr_robot.cli import main
from dopr_robot.evaluation import Evaluation, read_records, run_evaluation
from dopr_robot.policies import load_policy


@pytest.fixture
def run(tmp_path, monkeypatch, make_run):
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "runs" / "a")


@pytest.mark.parametrize("name", ["flow_unet", "diffusion_transformer"])
def test_1_7_and_32_copies_give_the_same_bits(tmp_path, make_run, name):
    policy = load_policy(make_run(tmp_path / "run", name))
    contents = set()
    for copies, workers in ((1, 1), (7, 2), (32, 2)):
        evaluation = Evaluation(policy, policy.task, episodes=34, horizons=[24])
        run_evaluation(evaluation, tmp_path / str(copies), num_envs=copies, workers=workers, video=0)
        contents.add((tmp_path / str(copies) / "episodes.jsonl").read_bytes())
    assert len(contents) == 1
    assert len({record.return_ for record in read_records(tmp_path / "1" / "episodes.jsonl")}) == 34


def test_the_folder_is_the_last_line_and_the_table_is_what_the_file_says(run, capsys):
    assert main(["eval", "runs/a", "--horizons", "10,24"]) == 0
    output = capsys.readouterr().out.splitlines()
    folder = run / "eval" / "20-seed0"
    assert output[-1] == str(folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["checkpoint"]["step"] == 20 and re.fullmatch("[0-9a-f]{64}", results["checkpoint"]["sha256"])
    assert [point["horizon"] for point in results["curve"]] == [10, 24] and results["episodes"] == 12
    for point in results["curve"]:
        assert any(
            line.split()[0] == str(point["horizon"]) and f"{point['success_rate']:.1%}" in line for line in output
        )


def test_a_second_evaluation_goes_beside_the_first_and_says_the_same(run, capsys):
    assert main(["eval", "runs/a"]) == 0
    assert main(["eval", "runs/a/checkpoints/20", "--num-envs", "3"]) == 0
    first, second = run / "eval" / "20-seed0", run / "eval" / "20-seed0-2"
    assert capsys.readouterr().out.splitlines()[-1] == str(second)
    assert (first / "episodes.jsonl").read_bytes() == (second / "episodes.jsonl").read_bytes()


def test_a_run_folder_may_be_moved_before_resuming(run, tmp_path, capsys):
    assert main(["eval", "runs/a", "--episodes", "5"]) == 0
    run.rename(tmp_path / "moved")
    assert main(["eval", "moved", "--episodes", "9", "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "moved" / "eval" / "20-seed0")
    assert len(read_records(tmp_path / "moved" / "eval" / "20-seed0" / "episodes.jsonl")) == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/b"], "does not exist"),
        (["runs"], "neither a run folder nor a checkpoint"),
        (["runs/a", "--task", "point/Reech-v0"], "did you mean"),
        (["runs/a", "--task", "gym_pusht/PushT-v0"], "reads observation 'position'"),
        (["runs/a", "--horizons", "10,x"], "no list of whole numbers"),
        (["runs/a", "--horizons", "999"], "the task's longest"),
        (["runs/a", "--episodes", "0"], "at least 1"),
        (["runs/a", "--num-envs", "0"], "at least 1"),
        (["runs/a", "--seed", "99999"], "outside 0..8191"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(run, capsys, words, message):
    assert main(["eval", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err and captured.out == ""
    assert not (run / "eval").exists()


def test_acting_otherwise_than_the_checkpoint_says_gives_other_records_and_is_noted(run, capsys):
    assert main(["eval", "runs/a", "--out", "chunks"]) == 0
    assert main(["eval", "runs/a", "--out", "ensemble", "--acting", "ensemble=true", "--acting", "decay=0.1"]) == 0
    results = {name: json.loads(Path(name, "results.json").read_text()) for name in ("chunks", "ensemble")}
    assert results["ensemble"]["acting"] == results["chunks"]["acting"] | {"ensemble": True, "decay": 0.1}
    assert Path("chunks/episodes.jsonl").read_bytes() != Path("ensemble/episodes.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["eval", "runs/a", "--out", "ensemble", "--resume"]) == 2
    assert "acting was" in capsys.readouterr().err


def test_a_plan_is_drawn_and_executed_otherwise_than_the_checkpoint_says(run, capsys):
    assert main(["eval", "runs/a", "--out", "as_trained"]) == 0
    assert main(["eval", "runs/a", "--out", "often", "--acting", "n_action_steps=2"]) == 0
    results = {name: json.loads(Path(name, "results.json").read_text()) for name in ("as_trained", "often")}
    assert results["often"]["acting"] == results["as_trained"]["acting"] | {"n_action_steps": 2}
    assert Path("as_trained/episodes.jsonl").read_bytes() != Path("often/episodes.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["eval", "runs/a", "--out", "as_trained", "--resume", "--acting", "n_action_steps=2"]) == 2
    assert "acting was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("delai=2", "did you mean 'delay'"),
        ("ensemble", "key=value"),
        ("delay=99", "n_action_steps"),
        ("n_action_step=2", "did you mean 'n_action_steps'"),
        ("n_action_steps=many", "n_action_steps=many"),
        ("n_action_steps=99", "at most horizon - n_obs_steps + 1"),
        ("horizon=4", "unknown option of acting 'horizon'"),
    ],
)
def test_unknown_acting_is_refused(run, capsys, words, said):
    assert main(["eval", "runs/a", "--acting", words]) == 2
    assert said in capsys.readouterr().err and not (run / "eval").exists()

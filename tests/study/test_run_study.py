"""A study from file to report, on one machine and on a cluster."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from dopr_robot import collect, info
from dopr_robot.cli import main
from dopr_robot.errors import UserError
from dopr_robot.study import load_study, run_study
from dopr_robot.study.run import StudyResult, finished
from dopr_robot.study.workers import Workers


@pytest.fixture(scope="module")
def path(make_study) -> Path:
    return make_study("""
training: {steps: 8, batch_size: 32, warmup_steps: 2, checkpoint_every: 2}
evaluation: {selection_episodes: 2, test_episodes: 4}
""")


@pytest.fixture(scope="module")
def out(path) -> Path:
    return run_study(load_study(path), out=path.parent / "inline", workers=1).folder


def test_what_a_study_leaves(records, out, path):
    arms = records(out)
    assert len(arms) == 4 and len({arm["weights_sha256"] for arm in arms}) == 4
    assert len({(arm["initial_weights_sha256"], arm["first_batches_sha256"], arm["first_loss"]) for arm in arms}) == 1
    assert len({arm["selection_states_sha256"] for arm in arms}) == 1
    assert [point["step"] for point in arms[0]["curve"]] == [2, 4, 6, 8]
    assert all("success_rate" in point and "validation_loss" in point for point in arms[0]["curve"])
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [(row["optimizer"], row["horizon"]) for row in rows] == [
        (name, horizon) for name in ("adamw", "dopr_adamw") for horizon in ("10", "30")
    ]
    assert all(row["episodes"] == "4" for row in rows)
    assert rows[0]["reference"] == "" and rows[2]["reference"] == "adamw" and rows[2]["p"]
    page = (out / "report.html").read_text()
    assert "<svg" in page and "src=" not in page and "learning_rates" in page
    tests = sorted(each.name for each in (out / "test").iterdir())
    assert len(tests) == 2
    seeds = [json.loads(line)["seed"] for line in (out / "test" / tests[0] / "episodes.jsonl").read_text().splitlines()]
    assert min(seeds) >= 3 * 2**29


def test_a_study_is_drawn_from_its_table_alone():
    """A committed one, which has no weights."""
    result = info(Path(__file__).parents[2] / "studies" / "longer")
    assert isinstance(result, StudyResult)
    panels = [axes for axes in result.plot().axes if axes.has_data()]
    assert [axes.get_title() for axes in panels] == ["PickPlace, regression_mlp", "QuadrotorTrack, regression_mlp"]
    line = panels[0].get_lines()[0]
    rows = [row for row in result.plain()["table"] if (row["task"], row["optimizer"]) == ("PickPlace", "adamw")]
    assert line.get_ydata().tolist() == [float(row["success"]) for row in rows] and len(rows) == 4


def test_a_studys_folder_says_its_table_or_how_far_it_is(out, tmp_path, capsys):
    assert main(["info", str(out)]) == 0
    assert capsys.readouterr().out == str(StudyResult(out, load_study(out / "study.yaml"))) + "\n"
    assert main(["info", str(out), "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (out / "report.html").read_text()
    half = tmp_path / "half"
    shutil.copytree(out, half, ignore=shutil.ignore_patterns("table.csv", "runs", "policies"))
    arms = (half / "arms.jsonl").read_text().splitlines(keepends=True)
    (half / "arms.jsonl").write_text("".join(arms[:3]))
    message = f"of the 4 arms to choose from 3 are trained, and 2 of those chosen are tested: dopr compare {half}/study.yaml --out {half}"
    with pytest.raises(UserError, match=re.escape(message)):
        info(half)


def test_finished_arms_are_not_run_again_and_others_are_added(records, out, path, monkeypatch):
    asked = []
    answers = Workers.answers
    monkeypatch.setattr(Workers, "answers", lambda crew, jobs: (asked.extend(jobs), answers(crew, jobs))[1])
    before = (out / "arms.jsonl").read_bytes()
    (out / "arms.jsonl").write_bytes(before + b'{"task": "Quadr')  # what a kill leaves
    run_study(load_study(path), out=out, workers=1)
    assert not asked
    run_study(load_study(path, ["optimizers=[adamw, dopr_adamw, sgd]", "learning_rates=[3e-3]"]), out=out, workers=1)
    assert [job.key["optimizer"] for job in asked if hasattr(job, "folder")] == ["sgd"]
    assert (out / "arms.jsonl").read_bytes().startswith(before) and len(records(out)) == 5
    with pytest.raises(UserError, match="of other settings"):
        run_study(load_study(path, ["training.steps=9"]), out=out, workers=1)


def test_a_folder_of_records_alone_goes_on(records, out, path, tmp_path, monkeypatch):
    """What is committed of a study, without weights: tested arms are not trained again, whatever is added to it."""
    copy = shutil.copytree(out, tmp_path / "copy", ignore=shutil.ignore_patterns("runs", "policies"))
    asked = []
    answers = Workers.answers
    monkeypatch.setattr(Workers, "answers", lambda crew, jobs: (asked.extend(jobs), answers(crew, jobs))[1])
    run_study(load_study(path), out=copy, workers=1)
    assert not asked
    again = load_study(path, ["evaluation.test_episodes=5"])  # a test of its own, for which policies are needed
    run_study(again, out=copy, workers=1)
    trained = [job for job in asked if hasattr(job, "folder")]
    assert len(trained) == 2 and {job.key["optimizer"] for job in trained} == {"adamw", "dopr_adamw"}
    lines = [json.loads(line) for line in (copy / "arms.jsonl").read_text().splitlines()]
    weights = {(line["optimizer"], line["learning_rate"], line["weights_sha256"]) for line in lines}
    assert len(lines) == len(records(out)) + 2 and len(weights) == len(records(out))  # the same ones came back


@pytest.mark.drawn
def test_hyperparameters_of_one_task_are_tested_on_three_others_and_summed_up_over_them(
    records, path, tmp_path, request
):
    """Three tasks here are one under three options."""
    store = load_study(path).tasks[0].store
    others = []
    for force in (0.1, 0.2, 0.3):
        other = collect("QuadrotorTrack", 2, tmp_path / f"{force}.zarr", options={"disturbance": force}).path
        others.append(
            f"{{task: QuadrotorTrack, store: {other}, options: {{disturbance: {force}}}, horizons: [10, 30]}}"
        )
    words = [
        f"tasks=[{', '.join(others)}]", f"tune={{tasks: [{{task: QuadrotorTrack, store: {store}, horizons: [30]}}]}}",
        "learning_rates=null",
        "search={budget: 2, space: {lr: {within: 3}, weight_decay: [0.0, 0.1]}}", "training.steps=4",
        "training.rollout_every=4", "training.validate_every=4", "training.checkpoint_every=4",
    ]  # fmt: skip
    result = run_study(load_study(path, words), out=tmp_path / "out", workers=1)
    arms = records(result.folder)
    assert len(arms) == 2 * 2 + 3 * 2 and {arm["hyperparameters"]["weight_decay"] for arm in arms} <= {0.0, 0.1}
    chosen = {(arm["optimizer"], arm["learning_rate"]) for arm in arms if "disturbance" in arm["task"]}
    assert len(chosen) == 2  # one for each optimizer, on all tasks
    adamw, dopr = json.loads((result.folder / "over_tasks.json").read_text())
    assert (adamw["tasks"], adamw["seeds"], adamw["reference"]) == (3, 1, None)
    assert (
        dopr["reference"] == "adamw"
        and dopr["wins"] + dopr["ties"] + dopr["losses"] == 3
        and dopr["permutation_p_holm"] <= 1
    )
    page = (result.folder / "report.html").read_text()
    assert (
        "over 3 tasks" in page
        and "1 other task;" in page
        and (result.folder / "over_tasks-regression_mlp.png").exists()
    )
    assert "weight_decay=" in str(result)
    before = (result.folder / "arms.jsonl").read_bytes()
    request.getfixturevalue("undrawn")
    run_study(load_study(path, words), out=tmp_path / "out", workers=1)
    assert (result.folder / "arms.jsonl").read_bytes() == before


def test_a_task_option_that_is_none_is_said_before_anything_is_trained(path, tmp_path):
    store = load_study(path).tasks[0].store
    with pytest.raises(UserError, match="unknown option of dopr_robot/QuadrotorTrack-v0: 'wind'"):
        run_study(
            load_study(path, [f"tasks=[{{task: QuadrotorTrack, store: {store}, options: {{wind: 1}}}}]"]),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "out" / "runs").exists()


def test_a_run_that_diverges_is_a_result(records, path, tmp_path):
    options = ["optimizers=[sgd]", "learning_rates=[1e12]", "training.max_bad_steps=2", "training.gradient_clip=null"]
    out = run_study(load_study(path, options), out=tmp_path / "out", workers=1).folder
    (arm,) = records(out)
    assert "had to be left out" in arm["error"] and arm["selection_successes"] == {"10": 0, "30": 0}
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert {(row["success"], row["diverged"], row["validation_loss"]) for row in rows} == {("0.0", "1", "")}


def test_the_command_runs_a_study_in_a_pool_with_the_same_records(records, path, out, tmp_path, capsys):
    assert main(["compare", str(path), "--workers", "2", "--out", str(tmp_path / "pool")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "pool")
    own = finished(load_study(path).arms(), out)
    assert records(tmp_path / "pool") == [arm for arm in records(out) if arm["optimizer"] != "sgd"] and len(own) == 4


def test_an_arm_whose_test_is_shared_out_has_the_same_records(path, out, tmp_path, monkeypatch):
    """As it is where more jobs can run at once than there are arms; parts may come back in any order."""
    copy = shutil.copytree(out, tmp_path / "copy")
    shutil.rmtree(copy / "test")
    monkeypatch.setattr("dopr_robot.study.run.INFERENCE_BATCH", 2)
    monkeypatch.setattr(Workers, "at_once", 4)
    answers = Workers.answers
    asked = []
    monkeypatch.setattr(
        Workers, "answers", lambda crew, jobs: (asked.extend(jobs), reversed(list(answers(crew, jobs))))[1]
    )
    run_study(load_study(path), out=copy, workers=1)
    assert [job.part for job in asked] == [(0, 2), (2, 4)] * 2
    for folder in (copy / "test").iterdir():
        assert (folder / "episodes.jsonl").read_bytes() == (out / "test" / folder.name / "episodes.jsonl").read_bytes()


def test_a_cluster_that_loses_a_node_half_way_gives_the_same_records(on_ray):
    on_ray(Path(__file__).with_name("on_ray.py"))

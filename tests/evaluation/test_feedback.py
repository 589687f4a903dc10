"""Test-time feedback: the measures by hand, and the command on a run of several checkpoints."""

import json
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from dopr_robot import seeds
from dopr_robot.cli import main
from dopr_robot.datasets import Attributes, Store
from dopr_robot.evaluation import Evaluation, read_records, run_evaluation
from dopr_robot.evaluation.feedback import rank_correlation
from dopr_robot.evaluation.rollouts.divergence import Demonstrations, Foreseeing, Tracer, gaps_on_demonstrations
from dopr_robot.policies import load_policy
from dopr_robot.training import load_config, load_data


@pytest.fixture
def run(tmp_path, monkeypatch, make_run, point_tasks):
    """A run of three checkpoints, and its demonstrations: straight lines to the goal."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    with Store.create("point.zarr", Attributes(task=point_tasks[0], observations=("position", "goal"))) as store:
        for _ in range(12):
            start, goal = rng.uniform(-1, 1, (2, 2))
            position = np.linspace(start, goal, 20)
            action = np.diff(position, axis=0, append=goal[None])
            store.append({"position": position, "goal": np.repeat(goal[None], 20, 0), "action": action})
    data = {"store": "point.zarr", "validation_fraction": 0.25}
    policy = {"n_obs_steps": 2, "horizon": 16, "n_action_steps": 8}
    folder = make_run(tmp_path / "a", data=data, policy=policy)
    (folder / "config.yaml").write_text(
        json.dumps(json.loads((folder / "config.yaml").read_text()) | {"training": {"batch_size": 8}})
    )
    for step, scale in ((40, 0.1), (60, 0.15)):
        other = make_run(tmp_path / f"other{step}", scale=scale)
        shutil.copytree(other / "checkpoints" / "20", folder / "checkpoints" / str(step))
    return folder


@pytest.fixture
def demonstrations(run):
    config = load_config(run / "config.yaml")
    return Demonstrations(config, load_data(config))


def test_held_out_demonstrations_are_one_away_and_shown_ones_none(demonstrations):
    store = Store.open("point.zarr")
    assert len(demonstrations.held_out) == 3
    assert np.median(demonstrations.apart) == pytest.approx(1)
    held_out = {episode["goal"].tobytes() for episode in demonstrations.held_out}
    shown = [store.episode(i) for i in range(12) if store.episode(i)["goal"].tobytes() not in held_out]
    states = np.concatenate([demonstrations.states(episode) for episode in shown])
    assert demonstrations.distance(states).max() == 0
    # By hand: the nearest of all shown states, each entry over its deviation, root mean square, over the unit.
    visited = np.array([[0.3, -2.0, 0.1, 0.9]])
    by_hand = np.sqrt((((states - visited) / states.std(axis=0)) ** 2).mean(axis=1)).min() / demonstrations.unit
    assert demonstrations.distance(visited) == pytest.approx([by_hand])


def test_a_policy_that_shows_its_plans_acts_as_before(run, tmp_path):
    policy = load_policy(run)
    for name, each in (("plain", policy), ("foreseeing", Foreseeing(policy))):
        run_evaluation(Evaluation(each, policy.task, episodes=6), tmp_path / name, video=0)
    plain, foreseeing = ((tmp_path / name / "episodes.jsonl").read_bytes() for name in ("plain", "foreseeing"))
    assert plain == foreseeing


def test_the_action_gap_by_hand(demonstrations, point_tasks, point_policy):
    """Plans of seven actions, four executed: the next plan says for every step 0.04 less than the one before."""

    class Ramp(point_policy):
        def act(self, observation, generator):
            return (0.01 * torch.arange(7.0)[:, None]).expand(16, 7, 2) - 0.03

    tracer = Tracer(demonstrations)
    evaluation = Evaluation(Ramp(), point_tasks[1], episodes=3)
    evaluation.rollout(tracer).run(evaluation.jobs, lambda record: None)
    expected = np.sqrt(((0.04 / demonstrations.action_scale) ** 2).mean())
    for trace in tracer.traces.values():
        assert len(trace.states) == len(trace.gaps) + 1
        assert np.isnan(trace.gaps[:4]).all()
        for step, gap in enumerate(trace.gaps[4:], start=4):
            assert np.isnan(gap) if step % 4 == 3 else gap == pytest.approx(expected, rel=1e-4)
        assert not any(trace.cut)


def test_the_gap_on_demonstrations_is_of_the_policys_own_plans(run, demonstrations):
    gaps = gaps_on_demonstrations(load_policy(run), demonstrations)
    assert len(gaps) == 3 * (20 - 8) * 7 and (gaps >= 0).all() and gaps.std() > 0


def test_rank_correlations_are_scipys():
    rng = np.random.default_rng(1)
    success = rng.random((6, 40)) < np.array([0.1, 0.3, 0.2, 0.6, 0.9, 0.6])[:, None]
    measure = np.array([5.0, 4.0, 4.5, 2.0, 1.0, 2.5])
    found = rank_correlation(measure, success)
    assert found["spearman"] == pytest.approx(stats.spearmanr(measure, success.mean(axis=1)).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(measure, success.mean(axis=1)).statistic)
    assert found["p_value"] < 0.05 and found["ci95"][0] <= found["spearman"] <= found["ci95"][1]
    nothing = {"spearman": None, "kendall": None, "p_value": None, "ci95": None}
    assert rank_correlation(measure, np.zeros((6, 40), bool)) == nothing


@pytest.mark.drawn
def test_the_command_measures_every_checkpoint_and_goes_on_where_it_stopped(run, capsys, request):
    words = ["eval", "a", "--feedback", "--episodes", "8", "--num-envs", "4"]
    assert main(words) == 0
    output = capsys.readouterr().out.splitlines()
    folder = run / "eval" / "feedback-seed0"
    assert output[-1] == str(folder)
    first = json.loads((folder / "feedback.json").read_text())
    assert [each["step"] for each in first["checkpoints"]] == [20, 40, 60]
    assert {path.name for path in folder.iterdir()} >= {"feedback.png", "validation.png", "report.html"}
    for each in first["checkpoints"]:
        assert each["validation_loss"] > 0 and each["divergence"]["mean"] > 0 and each["action_gap"]["mean"] > 0
        records = read_records(folder / str(each["step"]) / "episodes.jsonl")
        assert {seeds.use_of(record.seed) for record in records} == {"selection"}
        under_way = {point["step"]: point["episodes"] for point in each["divergence"]["along"]}
        assert under_way == {step: sum(record.length >= step for record in records) for step in under_way}
    assert {each["measure"] for each in first["rank_correlation"]} == {"validation_loss", "divergence", "action_gap"}
    # As after a kill in the second checkpoint.
    request.getfixturevalue("undrawn")
    kept = (folder / "20" / "feedback.json").stat().st_mtime_ns
    (folder / "feedback.json").unlink()
    (folder / "40" / "feedback.json").unlink()
    lines = (folder / "40" / "episodes.jsonl").read_text().splitlines(keepends=True)
    (folder / "40" / "episodes.jsonl").write_text("".join(lines[:3]))
    shutil.rmtree(folder / "60")
    assert main([*words, "--resume"]) == 0
    assert json.loads((folder / "feedback.json").read_text()) == first
    assert (folder / "20" / "feedback.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--lengths", "1,2"], "--feedback goes without --lengths"),
        (["a/checkpoints", "--episodes", "2"], "neither a run folder nor a checkpoint"),
        (["other40"], "demonstrations are not there: None"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, words, message):
    assert main(["eval", *words, "--feedback"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and message in captured.err

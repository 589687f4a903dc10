"""Trainings of several lengths, and best checkpoints beside last ones."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dopr_robot.errors import UserError
from dopr_robot.evaluation.selection import SelectionRollout
from dopr_robot.study import load_study, run_study
from dopr_robot.study.budgets import at_equal_time, seconds_of, sentences, training_seconds
from dopr_robot.study.summary import read_table
from dopr_robot.study.workers import Workers


@pytest.fixture(scope="module")
def path(make_study) -> Path:
    return make_study("""
budgets: [1, 0.5]
seeds: [0, 1]
training: {steps: 8, batch_size: 32, warmup_steps: 2, checkpoint_every: 8}
evaluation: {selection_episodes: 2, test_episodes: 3}
""")


def test_a_budget_is_a_training_of_its_own_with_all_that_counts_steps_shrunk(path):
    study = load_study(path, ["training.steps=80", "training.warmup_steps=10", "training.checkpoint_every=7"])
    half, whole = (next(arm.config.training for arm in study.arms() if arm.budget == b) for b in (0.5, 1.0))
    assert (half.steps, half.warmup_steps, half.validate_every, half.rollout_every) == (40, 5, 10, 10)
    assert (whole.steps, whole.warmup_steps, whole.validate_every, whole.rollout_every) == (80, 10, 20, 20)
    assert half.checkpoint_every == whole.checkpoint_every == 7
    tiny = load_study(path, ["budgets=[0.01]", "training.warmup_steps=0"]).arms()[0].config.training
    assert (tiny.steps, tiny.warmup_steps, tiny.rollout_every) == (1, 0, 1)


def test_an_arm_of_the_whole_training_is_what_it_was_before_there_were_budgets(path):
    arms = load_study(path).arms()
    before = load_study(path, ["budgets=[1]"]).arms()
    whole = [arm for arm in arms if arm.budget == 1]
    assert [(arm.name, arm.key, arm.config_sha256()) for arm in whole] == [
        (arm.name, arm.key, arm.config_sha256()) for arm in before
    ]
    assert "budget" not in before[0].key and len(arms) == 2 * len(before) == len({arm.name for arm in arms})


def test_each_budget_chooses_its_own_rate_unless_told_where_to_choose(path):
    study = load_study(path)
    rates = {(budget, name): 1e-3 if budget == 1 else 3e-3 for budget in (0.5, 1.0) for name in ("adamw", "dopr_adamw")}
    chosen = {arm.choice: {"lr": rates[arm.budget, arm.key["optimizer"]]} for arm in study.arms()}
    assert {(arm.budget, arm.learning_rate) for arm in study.final_arms(chosen)} == {(0.5, 3e-3), (1.0, 1e-3)}
    told = load_study(path, ["choose_budget=0.25"])
    assert {arm.budget for arm in told.arms()} == {0.25} and len(told.arms()) == 8
    final = told.final_arms({arm.choice: {"lr": 3e-3} for arm in told.arms()})
    assert {arm.budget for arm in final} == {0.5, 1.0} and len(final) == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budgets=[]"], "a study needs budgets"),
        (["budgets=[0, 1]"], "a budget of 0: shares of training.steps=8 lie above 0 and up to 1"),
        (["budgets=[2]"], "a budget of 2"),
        (["budgets=[0.5, 0.5]"], "names one twice"),
        (["budgets=[0.5, 0.52]"], "budgets 0.5 and 0.52 are both 4 steps"),
        (["choose_budget=3"], "a budget of 3"),
        (["budget=[1]"], "did you mean 'budgets'"),
    ],
)
def test_budgets_that_are_none_are_refused_in_one_line(path, overrides, message):
    with pytest.raises(UserError) as caught:
        load_study(path, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def method(optimizer, budget, rates, speed):
    """Of two seeds and ten episodes at one horizon."""
    success = np.zeros((2, 10, 1), bool)
    for seed, rate in enumerate(rates):
        success[seed, : round(10 * rate)] = True
    records = tuple({"cost": {"seconds_per_step": speed}} for _ in rates)
    return SimpleNamespace(
        task="T",
        policy="p",
        optimizer=optimizer,
        budget=budget,
        steps=round(100 * budget),
        score=success,
        rates=True,
        records=records,
    )


def test_the_difference_in_equal_time_is_interpolated_between_the_others_budgets_and_never_beyond():
    fast = [method("a", b, rates, 1.0) for b, rates in ((0.25, (0.2, 0.4)), (0.5, (0.4, 0.6)), (1.0, (0.6, 0.8)))]
    slow = [method("b", b, rates, 1.5) for b, rates in ((0.25, (0.4, 0.6)), (0.5, (0.6, 0.8)), (1.0, (0.8, 1.0)))]
    clock = training_seconds([*fast, *slow])
    assert [seconds_of(m, clock) for m in slow] == [37.5, 75, 150]
    found = [at_equal_time(m, [*fast, *slow], clock, "a") for m in slow]
    # After 37.5 s the other has 0.3 and 0.5 (between 25 and 50 s) here, after 75 s 0.5 and 0.7; it was never trained for 150 s.
    assert [None if each is None else round(float(each.difference[0]), 6) for each in found] == [0.1, 0.1, None]
    back = [at_equal_time(m, [*fast, *slow], clock, "b") for m in fast]
    assert back[0] is None and float(back[2].difference[0]) == pytest.approx(0.7 - (0.7 + 0.2 * (100 - 75) / 75))


def test_the_answer_says_how_a_difference_goes_with_the_budget():
    table = [
        {
            "task": "T",
            "policy": "p",
            "optimizer": "b",
            "reference": "a",
            "budget": b,
            "difference": d,
            "equal_time_difference": t,
        }
        for b, d, t in ((0.25, 0.2, 0.1), (1.0, 0.01, None))
    ]
    (text,) = sentences(table, {"a": "A", "b": "B"})
    assert text == (
        "B against A, points on average over settings: +20.0 after 0.25 of the training, +1.0 after the whole training; "
        "in equal training time, at the largest budget for which both have one, +10.0."
    )
    assert sentences(table[:1], {"a": "A", "b": "B"}) == []


@pytest.mark.drawn
def test_a_study_over_budgets_with_best_checkpoints_and_its_resume(path, tmp_path, monkeypatch, request):
    rolled = SelectionRollout.__call__
    scores = iter(range(10**6, 0, -1))  # each look is worse than the one before: the first is the best

    def falling(self, policy):
        return {**rolled(self, policy), "success_rate": next(scores) / 10**6}

    monkeypatch.setattr(SelectionRollout, "__call__", falling)
    out = tmp_path / "out"
    run_study(load_study(path, ["seeds=[0]", "learning_rates=[3e-3]"]), out=out, workers=1)
    arms = [json.loads(line) for line in (out / "arms.jsonl").read_text().splitlines()]
    assert len(arms) == 4 and sorted({arm.get("budget") for arm in arms}, key=str) == [0.5, None]
    assert {(arm.get("budget"), arm["best_step"], arm["curve"][-1]["step"]) for arm in arms} == {
        (0.5, 1, 4),
        (None, 2, 8),
    }
    assert all(arm["best_weights_sha256"] != arm["weights_sha256"] for arm in arms)
    assert len(list((out / "test").iterdir())) == len(list((out / "best").iterdir())) == 4
    rows = read_table(out)
    assert [(row["budget"], row["optimizer"], row["steps"]) for row in rows[::2]] == [
        ("0.5", "adamw", "4"), ("0.5", "dopr_adamw", "4"), ("1.0", "adamw", "8"), ("1.0", "dopr_adamw", "8"),
    ]  # fmt: skip
    assert all(row["best_success"] and float(row["seconds"]) > 0 for row in rows)
    assert all(bool(row["best_difference"]) == (row["optimizer"] == "dopr_adamw") for row in rows)
    page = (out / "report.html").read_text()
    assert "Faster, or better in the end?" in page and "best checkpoint" in page and "After 0.5 of the training" in page
    assert {each.name for each in out.glob("*.png")} == {
        "budgets-QuadrotorTrack-regression_mlp.png", "curves-QuadrotorTrack-regression_mlp.png",
        "curves-QuadrotorTrack-regression_mlp-budget0.5.png",
    }  # fmt: skip

    request.getfixturevalue("undrawn")
    asked = []
    answers = Workers.answers
    monkeypatch.setattr(Workers, "answers", lambda crew, jobs: (asked.extend(jobs), answers(crew, jobs))[1])
    shown = str(run_study(load_study(path, ["seeds=[0]", "learning_rates=[3e-3]"]), out=out, workers=1))
    assert not asked and "budget" in shown and "best %" in shown

    # Records of a version that knew neither budgets nor best checkpoints.
    old = [{k: v for k, v in arm.items() if not k.startswith("best_")} for arm in arms if "budget" not in arm]
    (out / "arms.jsonl").write_text("".join(json.dumps(arm) + "\n" for arm in old))
    shown = str(run_study(load_study(path, ["budgets=[1]", "seeds=[0]", "learning_rates=[3e-3]"]), out=out, workers=1))
    assert not asked and "best %" not in shown and " budget" not in shown
    rows = read_table(out)
    assert len(rows) == 4 and {row["best_success"] for row in rows} == {""}

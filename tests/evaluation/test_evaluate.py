import json
import os
import resource
import signal
import sys
import threading
import time

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from dopr_robot import seeds
from dopr_robot.envs import get_task
from dopr_robot.errors import DoprError, UserError
from dopr_robot.evaluation import Evaluation, read_records, run_evaluation
from dopr_robot.evaluation.reports.showcase import choose, film
from dopr_robot.evaluation.reports.video import rendered

FILES = {"episodes.jsonl", "results.json", "horizon.png", "rollouts.mp4", "failures.png", "report.html"}


@pytest.fixture
def reach(policy, point_tasks):
    return Evaluation(policy, point_tasks[0], episodes=40)


@pytest.fixture
def results(reach, tmp_path):
    return run_evaluation(reach, tmp_path / "whole", num_envs=5, video=0)


def lines(folder):
    return (folder / "episodes.jsonl").read_text().splitlines()


@pytest.mark.drawn
@pytest.mark.parametrize("kind", [0, 1])
def test_a_whole_evaluation(policy, point_tasks, tmp_path, kind):
    results = run_evaluation(
        Evaluation(policy, point_tasks[kind], episodes=30), tmp_path / "e", video=6, validation_loss=0.25
    )
    assert {path.name for path in (tmp_path / "e").iterdir()} == FILES
    assert results == json.loads((tmp_path / "e" / "results.json").read_text())
    documented = {
        "task",
        "kind",
        "checkpoint",
        "episodes",
        "seed",
        "num_envs",
        "partial",
        "outcomes",
        "curve",
        "metrics",
    }
    assert documented | {"validation_loss", "wall_s", "env_steps_per_s", "versions"} <= results.keys()
    assert results["partial"] is False and results["episodes"] == 30 and results["validation_loss"] == 0.25
    records = read_records(tmp_path / "e" / "episodes.jsonl")
    assert [record.episode for record in records] == list(range(30))
    assert [record.seed for record in records] == list(seeds.block("final", 0, 30))
    assert sum(results["outcomes"].values()) == 30
    rates = [point["success_rate"] for point in results["curve"]]
    assert rates == sorted(rates, reverse=results["kind"] == "sustain")
    assert results["curve"][-1]["successes"] == results["outcomes"]["success"]
    assert results["metrics"]["closeness"]["mean"] == pytest.approx(
        np.mean([record.metrics["closeness"] for record in records])
    )


def test_only_what_is_shown_is_drawn(reach, results, tmp_path, monkeypatch, capsys):
    """An episode that has ended, and a frame between two that are shown, cost nothing: a picture may take longer than the step."""
    point = sys.modules["point_task"].PointEnv
    drawn, render = [], point.render
    monkeypatch.setattr(point, "render", lambda env: drawn.append(env) or render(env))
    records = read_records(tmp_path / "whole" / "episodes.jsonl")
    shown = {0: "best", 1: "worst", 2: "random", 3: "random"}
    assert len({records[episode].length for episode in shown}) > 1
    clips = film(reach, records, shown)
    assert len(drawn) == sum(len(clip.frames) for clip in clips)
    assert [clip.steps[-1] for clip in clips] == [records[episode].length for episode in shown]
    assert "film: 4/4 episodes" in capsys.readouterr().err


def test_whatever_a_vector_environment_draws_is_shown_or_refused():
    """One that is not ours draws every copy, as a tuple or as one array."""
    frames = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    for drawn in (frames, tuple(frames)):
        assert [image.item() for image in rendered(Drawing(drawn), [2, 0])] == [2, 0]
    for drawn in (None, (), (None, None, None)):
        with pytest.raises(UserError, match="does not render images"):
            rendered(Drawing(drawn), [0])


class Drawing:
    """Three copies."""

    num_envs = 3

    def __init__(self, drawn):
        self.render = lambda: drawn


def test_the_video_shows_how_episodes_ended(reach, tmp_path):
    run_evaluation(reach, tmp_path / "e", video=6)
    records = {record.episode: record for record in read_records(tmp_path / "e" / "episodes.jsonl")}
    chosen = choose(list(records.values()), "attain", 6)
    assert list(chosen.values()) == ["best"] * 2 + ["worst"] * 2 + ["random"] * 2
    with imageio.get_reader(tmp_path / "e" / "rollouts.mp4") as reader:
        frames = [frame for frame in reader]  # noqa: C416 - its length is inf
    height, width = frames[-1].shape[0] // 2, frames[-1].shape[1] // 3
    for position, episode in enumerate(chosen):
        row, column = divmod(position, 3)
        border = frames[-1][row * height + height // 2, column * width + 1].astype(int)
        assert (border.argmax() == 1) == (records[episode].outcome == "success"), (episode, border)
    longest = max(records[episode].length for episode in chosen)
    assert len(frames) == longest + 1 + 10  # every step at 10 Hz, the start, and a second at the end
    first = frames[0][height // 2, 1].astype(int)
    assert np.ptp(first) < 20  # undecided


def test_rollouts_stop_at_the_longest_horizon_asked_for(policy, point_tasks, results, tmp_path):
    short = run_evaluation(
        Evaluation(policy, point_tasks[0], episodes=40, horizons=[6, 12]), tmp_path / "short", video=0
    )
    records = read_records(tmp_path / "short" / "episodes.jsonl")
    assert max(record.length for record in records) == 12
    at_12 = next(point for point in results["curve"] if point["horizon"] == 12)
    assert short["curve"][-1] == at_12


def test_interrupted_work_is_kept_and_resumed(reach, point_policy, results, tmp_path, caplog):
    """Ctrl-C while threads are rolling out."""
    calls = []
    act = point_policy.act

    class Interrupting(point_policy):
        def act(self, observation, generator):
            calls.append(None)
            if len(calls) == 12:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the others are still at work when the signal arrives
            return act(self, observation, generator)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(
            Evaluation(Interrupting(), reach.task, episodes=40), tmp_path / "e", num_envs=6, workers=2, video=0
        )
    assert threading.active_count() == before
    partial = json.loads((tmp_path / "e" / "results.json").read_text())
    assert f"{partial['episodes']} of 40 episodes are kept: the same call with --resume" in caplog.text
    assert partial["partial"] is True and 0 < partial["episodes"] < 40 == partial["episodes_asked"]
    assert len(lines(tmp_path / "e")) == partial["episodes"]
    assert (
        f"{partial['episodes']} of 40 episodes. The same call with --resume"
        in (tmp_path / "e" / "report.html").read_text()
    )
    kept = lines(tmp_path / "e")
    with (tmp_path / "e" / "episodes.jsonl").open("a") as file:
        file.write(kept[0][:50])  # as a kill in the middle of a line would leave it
    resumed = run_evaluation(reach, tmp_path / "e", video=0, resume=True)
    assert set(kept) <= set(lines(tmp_path / "e")) and lines(tmp_path / "e") == lines(tmp_path / "whole")
    assert resumed["curve"] == results["curve"] and resumed["partial"] is False


def test_a_full_disk_keeps_what_fitted(reach, results, tmp_path):
    """A limit on the size of files stands for the full disk: writing beyond it raises OSError."""
    out = tmp_path / "e"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, hard))
    try:
        with pytest.raises(DoprError, match=r"too large; \d+ of 40 episodes are kept: make room"):
            run_evaluation(reach, out, video=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = read_records(out / "episodes.jsonl")
    assert 0 < len(kept) < 40
    assert json.loads((out / "results.json").read_text())["partial"] is True
    run_evaluation(reach, out, video=0, resume=True)
    assert lines(out) == lines(tmp_path / "whole")


def test_exceptions_count_as_failures_in_every_rate(reach, policy, point_tasks, results, tmp_path):
    whole = read_records(tmp_path / "whole" / "episodes.jsonl")
    broken = [record.seed for record in whole if record.length >= 5][:10]
    evaluation = Evaluation(policy, point_tasks[0], episodes=40, env_options={"broken_seeds": broken})
    found = run_evaluation(evaluation, tmp_path / "e", num_envs=4, video=3)
    assert found["outcomes"]["exception"] == 10 and found["causes"]["RuntimeError"] == 10
    spared = [record for record in whole if record.seed not in broken]
    assert found["curve"][-1]["successes"] == sum(record.outcome == "success" for record in spared)
    assert found["curve"][-1]["episodes"] == 40


def test_figures_that_are_no_numbers_are_told_and_do_not_stop_the_work(policy, point_tasks, tmp_path):
    seed = seeds.block("final", 0, 1)[0]
    evaluation = Evaluation(policy, point_tasks[0], episodes=3, env_options={"blurred_seeds": [seed]})
    found = run_evaluation(evaluation, tmp_path / "e", video=0, validation_loss=float("nan"))
    assert found["validation_loss"] is None and found["faults"] == ["the validation loss is nan"]
    first = read_records(tmp_path / "e" / "episodes.jsonl")[0]
    assert first.outcome == "exception" and first.error == "FloatingPointError: the task's closeness is nan at step 3"


def test_a_policy_that_never_acts_is_evaluated_to_the_end(point_policy, point_tasks, tmp_path):
    class Broken(point_policy):
        def act(self, observation, generator):
            return super().act(observation, generator) * float("nan")

    found = run_evaluation(Evaluation(Broken(), point_tasks[0], episodes=3), tmp_path / "e", video=3)
    assert found["outcomes"]["exception"] == 3 and found["curve"][-1]["success_rate"] == 0
    assert {path.name for path in (tmp_path / "e").iterdir()} == FILES - {"rollouts.mp4", "failures.png"}


def test_an_evaluation_is_not_overwritten(reach, results, tmp_path):
    before = (tmp_path / "whole" / "results.json").read_bytes()
    with pytest.raises(UserError, match="--resume goes on with it"):
        run_evaluation(reach, tmp_path / "whole", video=0)
    assert (tmp_path / "whole" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"horizons": [5]}, "horizons was"),
        ({"episodes": 9}, "ask for --episodes 40 or more"),
        ({"use": "selection"}, "use was final"),
    ],
)
def test_another_evaluation_is_not_resumed(policy, point_tasks, results, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run_evaluation(
            Evaluation(policy, point_tasks[0], **({"episodes": 40} | change)), tmp_path / "whole", video=0, resume=True
        )


def test_resume_can_ask_for_more_episodes(policy, point_tasks, results, tmp_path):
    run_evaluation(Evaluation(policy, point_tasks[0], episodes=12), tmp_path / "e", video=0)
    more = run_evaluation(Evaluation(policy, point_tasks[0], episodes=40), tmp_path / "e", video=0, resume=True)
    assert lines(tmp_path / "e") == lines(tmp_path / "whole") and more["curve"] == results["curve"]


def test_a_final_figure_is_never_made_from_selection_seeds(policy, point_tasks, tmp_path):
    from dopr_robot.evaluation.evaluator import figures

    chosen = run_evaluation(Evaluation(policy, point_tasks[0], episodes=5, use="selection"), tmp_path / "e", video=0)
    assert chosen["use"] == "selection"
    records = read_records(tmp_path / "e" / "episodes.jsonl")
    assert {seeds.use_of(record.seed) for record in records} == {"selection"}
    with pytest.raises(UserError, match="belongs to selection, not to final"):
        figures(records, get_task(point_tasks[0]), [24])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "point/Reech-v0"}, "did you mean"),
        ({"episodes": 0}, "at least 1"),
        ({"horizons": [25]}, "the task's longest"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_input_writes_nothing(policy, point_tasks, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        run_evaluation(Evaluation(**({"policy": policy, "task": point_tasks[0]} | change)), tmp_path / "e")
    assert not (tmp_path / "e").exists()


class Still:
    """Does nothing, for the cheetah."""

    n_obs_steps, n_action_steps, action_dim = 1, 8, 6
    observations = {"state": (17,)}

    def act(self, observation, generator):
        return torch.zeros(len(observation["state"]), 8, 6)


def test_episodes_are_as_long_as_the_longest_horizon_where_the_task_allows_it():
    evaluation = Evaluation(Still(), "HalfCheetah-v5", episodes=1, horizons=[1000, 1004])
    records = []
    evaluation.rollout().run(evaluation.jobs, records.append, num_envs=1)
    assert [record.length for record in records] == [1004]
    assert Evaluation(Still(), "HalfCheetah-v5", episodes=1).horizon == 1000
    with pytest.raises(UserError, match=r"horizon 161 is outside 1\.\.160"):
        Evaluation(Still(), "PickPlace", episodes=1, horizons=[161])

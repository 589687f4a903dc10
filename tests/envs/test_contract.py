"""What somebody else's simulator does wrong is told in a line, or recorded; it never ends the program or passes for the user."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.collection import demonstrations
from dopr_robot.datasets import Store
from dopr_robot.envs import TASKS, ActionSpec, faults, load_expert, make, make_vec
from dopr_robot.envs.conformance import check_task
from dopr_robot.envs.contract import check_start
from dopr_robot.envs.faults import SimulatorError, SimulatorHang, ask, note_stops
from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts.episode import Job
from dopr_robot.evaluation.rollouts.plan import Evaluation
from dopr_robot.evaluation.rollouts.rollout import Rollout


class Homing:
    """Drives to the middle."""

    n_obs_steps, n_action_steps, action_dim = 1, 2, 1
    observations = {"state": (1,)}

    def act(self, observation, generator):
        return (-observation["state"][:, -1:]).clip(-0.1, 0.1).repeat(1, 2, 1)


@pytest.mark.parametrize("workers", [1, 2], ids=["main thread", "two threads"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [("exit", "SystemExit: 0"), ("interrupt", "KeyboardInterrupt"), ("hang", "did not answer in time")],
)
def test_what_ends_a_program_is_an_exception_in_the_records(line, monkeypatch, fault, said, workers):
    monkeypatch.setattr(faults, "STEP_S", 0.2)
    monkeypatch.setattr(faults, "TICK_S", 0.05)
    records = []
    Rollout(Homing(), lambda n, cores: make_vec(line.id, n, fault=fault), "attain", 30).run(
        [Job(index, seed) for index, seed in enumerate([1, 2, 3, 4])], records.append, num_envs=4, workers=workers
    )
    outcomes = {record.seed: record.outcome for record in records}
    assert outcomes == {1: "success", 2: "success", 3: "exception", 4: "success"}
    assert said in next(record.error for record in records if record.seed == 3)


def test_collecting_ends_with_the_simulators_fault_and_not_with_exit_code_0(line, tmp_path, capsys):
    """The third of the block's seeds, 0, 1, 2, ..., is run too."""
    assert main(["collect", line.id, "--episodes", "9", "--out", str(tmp_path / "s"), "--option", "fault=exit"]) == 1
    error = capsys.readouterr().err
    assert error.splitlines()[-1] == "dopr: SystemExit: 0" and "Traceback" not in error


def stopped_by(number, during):
    """What ``ask`` raises where a signal comes while ``during`` runs, which knows of it."""
    came = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def handler(*_):
        came.set()
        raise KeyboardInterrupt("the user") if number == signal.SIGINT else SystemExit(143)

    signal.signal(number, handler)
    note_stops()
    try:
        ask(lambda: during(lambda: os.kill(os.getpid(), number)))
    finally:
        assert came.is_set()
        for each, old in before.items():
            signal.signal(each, old)


def test_the_users_stop_is_told_from_a_simulators():
    def plain(send):
        send()
        time.sleep(5)

    def swallowing(send):
        try:
            plain(send)
        except BaseException:
            return

    def exiting(send):
        try:
            plain(send)
        except KeyboardInterrupt:
            sys.exit(0)

    for during in (plain, swallowing, exiting):
        with pytest.raises(KeyboardInterrupt, match="the user"):
            stopped_by(signal.SIGINT, during)
    for during in (plain, swallowing):
        with pytest.raises(SystemExit, match="143"):
            stopped_by(signal.SIGTERM, during)


def test_a_stop_of_an_unknown_handler_is_the_users():
    def raising():
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            ask(raising)
        note_stops()
        with pytest.raises(SimulatorError, match="KeyboardInterrupt"):
            ask(raising)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_exception_of_the_watch_arrives_in_its_call_or_never(monkeypatch):
    """Calls that end about when their time is up: whatever was sent is taken back, and none arrives later."""
    monkeypatch.setattr(faults, "TICK_S", 0.002)
    hung = 0
    for turn in range(60):
        end = time.monotonic() + 0.001 + turn * 1e-4
        try:
            ask(lambda end=end: [None for _ in iter(lambda: time.monotonic() < end, False)], seconds=0.003)
        except SimulatorHang:
            hung += 1
        for _ in range(200):  # where a late one would arrive
            pass
    assert hung < 60


def test_a_hang_outside_python_ends_the_process_with_a_line():
    code = (
        "import logging, time; from dopr_robot.envs import faults; logging.basicConfig(format='%(message)s')\n"
        "faults.TICK_S = faults.AGAIN_S = 0.05\n"
        "faults.ask(time.sleep, 60, seconds=0.1)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 1 and done.stderr.startswith("the simulator hangs outside Python")


@pytest.mark.parametrize("task", ["QuadrotorTrack", "InvertedPendulum-v5"])
def test_a_program_ends_that_leaves_a_simulator_to_the_interpreters_end(task):
    code = (
        "import gc; gc.disable()\n"
        "from dopr_robot.envs import make_vec\n"
        "def steps():\n"
        f"    env = make_vec({task!r}, 2)\n"
        "    try:\n"
        "        yield env.reset(seed=[0, 1])\n"
        "    finally:\n"
        "        env.close()\n"
        "episodes = steps()\n"
        "next(episodes)\n"
        "print('made')\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr


def test_a_task_that_ignores_its_seed_is_refused(line):
    assert Evaluation(Homing(), line.id, episodes=3).jobs
    with pytest.raises(UserError, match=r"begins differently at two resets with seed \d+ \(state\[0\]: .*, then "):
        Evaluation(Homing(), line.id, episodes=3, env_options={"fault": "unseeded"})
    with pytest.raises(UserError, match="begins differently"):
        next(demonstrations(line.id, range(3), num_envs=2, fault="unseeded"))


def test_pictures_may_differ_where_there_is_something_else():
    class Shown:
        num_envs = 1

        def reset(self, seed):
            picture = np.random.default_rng().integers(0, 255, (1, 4, 4, 3), np.uint8)
            return {"state": np.zeros((1, 2)), "camera": picture}, {}

    check_start(Shown(), None, 0)


def test_is_success_is_understood(line):
    arrays = [
        [each.arrays for each in demonstrations(line.id, range(4), num_envs=2, **options)]
        for options in ({}, {"fault": "named otherwise"})
    ]
    assert len(arrays[0]) == len(arrays[1]) == 4
    for ours, theirs in zip(*arrays, strict=True):
        assert np.array_equal(ours["state"], theirs["state"])
    assert make(line.id, fault="named otherwise").reset(seed=0)[1]["success"] is False


@pytest.mark.parametrize("fault", ["silent", "late"])
def test_a_task_without_success_is_refused(line, fault):
    policy = Homing()
    with pytest.raises(
        UserError, match=r"line/Middle-v0 gives no success in info: a bool at every reset and step \(attain"
    ):
        Evaluation(policy, line.id, episodes=3, env_options={"fault": fault})


def test_a_success_that_is_told_at_the_end_alone_ends_a_rollout(line, monkeypatch):
    from line_task import LineEnv

    whole = LineEnv.step

    def step(self, action):
        *rest, info = whole(self, action)
        return *rest, info if info["success"] else {}

    monkeypatch.setattr(LineEnv, "step", step)
    with pytest.raises(UserError, match="no success in info"):
        Rollout(Homing(), lambda n, cores: make_vec(line.id, n), "attain", 30).run([Job(0, 2)], print)


def test_what_is_missing_is_said_at_the_door(line):
    with pytest.raises(UserError, match=r"observes Box.*: it has to be a Dict of arrays"):
        make_vec(line.id, 2, fault="flat")
    with pytest.raises(UserError, match=r"Speechless has no noise: the class names the standard deviation"):
        load_expert(replace(line, expert="line_task:Speechless"))
    with pytest.raises(UserError, match=r"'line_task:Nobody' can not be loaded \(AttributeError"):
        load_expert(replace(line, expert="line_task:Nobody"))
    with pytest.raises(UserError, match="kind 'reach' is neither"):
        replace(line, kind="reach")
    with pytest.raises(UserError, match="have one entry each"):
        ActionSpec("velocity", False, "m/s", ("x", "y"), (-1.0,), (1.0,))


def test_the_check_says_what_a_task_does_not_keep_to(line, capsys, monkeypatch):
    assert main(["tasks", "line/Middle-v0", "--check"]) == 0
    assert capsys.readouterr().out.endswith("line/Middle-v0: good\n")
    assert main(["tasks", "--check", "Middle"]) == 0
    for fault, said in (("unseeded", "begins differently"), ("silent", "gives no success"), ("flat", "to be a Dict")):
        monkeypatch.setitem(TASKS._entries, line.id, replace(line, arguments={"fault": fault}))
        found = dict(check_task(TASKS[line.id]))
        assert any(said in text for text in found["seed"]), fault
    capsys.readouterr()
    assert main(["tasks", "Middle", "--check"]) == 1
    assert capsys.readouterr().out.endswith("line/Middle-v0: 5 of 6 checks failed\n")
    shared = replace(line, metrics={"share": "max"}, shares=("share",), arguments={"fault": "more than all"})
    monkeypatch.setitem(TASKS._entries, line.id, shared)
    assert dict(check_task(shared))["episodes"] == [
        "share is 1.5, and the TaskSpec says that it is a share, from 0 to 1 (step 1)"
    ]
    monkeypatch.setitem(TASKS._entries, line.id, replace(line, extensible=True))
    assert "unexpected keyword argument 'max_steps'" in dict(check_task(TASKS[line.id]))["limit"][0]


def test_an_expert_that_never_succeeds_is_given_up(line, tmp_path, capsys):
    words = ["collect", line.id, "--out", str(tmp_path / "s")]
    assert main([*words, "--episodes", "3", "--option", "fault=hopeless", "--tries", "7"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "dopr: 0 of 7 tries of line/Middle-v0 succeeded and nothing was kept: --tries N tries more often"
    assert not (tmp_path / "s").exists()
    assert main([*words, "--episodes", "3", "--tries", "2"]) == 1  # as many as succeed are kept
    assert (
        f"2 of 2 tries of line/Middle-v0 succeeded and 2 of 3 episodes are in {tmp_path / 's'}"
        in capsys.readouterr().err
    )
    assert main([*words, "--episodes", "3", "--tries", "2"]) == 0
    assert Store.open(tmp_path / "s").num_episodes == 3


def test_everything_about_a_task(capsys):
    assert main(["tasks", "Stack"]) == 0
    said = capsys.readouterr().out
    for words in (
        "attain, 480 control steps at 20 Hz",
        "overview, wrist",
        "StackExpert",
        "how many cubes",
        "(default 0.0)",
    ):
        assert words in said
    assert "opening: 0 to 0.08 m" in said and "`" not in said

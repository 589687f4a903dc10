"""--quiet and --verbose mean the same everywhere."""

import json
import logging
import re

import pytest

import dopr_robot as dopr
from dopr_robot.cli import COMMANDS, main

SMALL = [
    "name=a",
    "training.steps=4",
    "training.batch_size=16",
    "training.checkpoint_every=2",
    "policy.network.dim=16",
    "policy.network.layers=1",
    "optimizer.damping=0.2",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_quiet_is_the_result_and_nothing_else(here, capfd, undrawn):
    """The calls of the README, one after another; the last line of stdout is all that is said."""
    said = {
        "collect CartPoleSwingUp --episodes 3 --out s.zarr": "s.zarr",
        f"train data.store=s.zarr {' '.join(SMALL)} training.rollout_every=1000": "runs/a",
        "eval runs/a --episodes 2 --horizons 20 --out e --video 0": "e",
        "compare runs/a runs/a/checkpoints/2 --episodes 2 --horizons 20 --out c": "c",
        "render s.zarr --out v.mp4 --episodes 1 --size 64": "v.mp4",
        "convert s.zarr s.hdf5 --to robomimic": "s.hdf5: 3 episodes",
        "info s.zarr --html s.html": "s.html",
    }
    for call, result in said.items():
        assert main([*call.split(), "--quiet"]) == 0
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == (f"{result}\n", ""), call
    assert main(["-q", "runs", "--json"]) == 0  # a listing is the result
    assert json.loads(capfd.readouterr().out)[0]["run"] == "runs/a"


def test_quiet_keeps_errors_and_their_codes(here, capfd):
    assert main(["--quiet", "eval", "nowhere"]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.startswith("dopr: nowhere") and captured.err.count("\n") == 1


def test_verbose_says_what_is_read_and_written_and_where_an_error_comes_from(here, capfd, caplog, undrawn):
    assert (
        main(["eval", "runs/a", "--verbose", "--episodes", "1", "--horizons", "9", "--out", "f", "--video", "0"]) == 0
    )
    said = [record.getMessage() for record in caplog.records]
    for line in (r"dopr-robot ", r"loaded \S*runs/a/checkpoints/", r"opened s\.zarr", r"wrote f/results\.json"):
        assert any(re.match(line, each) for each in said), said
    capfd.readouterr()
    assert main(["-v", "train", "pick_place", "stepz=3"]) == 2
    *trace, last = capfd.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in trace and last.startswith("dopr: unknown config key 'stepz'")
    assert main(["train", "pick_place", "stepz=3"]) == 2
    assert capfd.readouterr().err == last + "\n"


def test_both_at_once_are_a_mistake(capsys):
    for words in (["-q", "tasks", "-v"], ["tasks", "--quiet", "--verbose"]):
        assert main(words) == 2
        assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_them(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert {"--quiet", "--verbose"} <= set(capsys.readouterr().out.replace(",", " ").split())


def test_from_python_the_packages_logger_is_the_switch(tmp_path, capfd):
    logger = logging.getLogger("dopr_robot")
    assert logger.level == logging.NOTSET  # a call of the command leaves it as it was
    logger.setLevel(logging.ERROR)
    try:
        dopr.collect("CartPoleSwingUp", 1, tmp_path / "s.zarr")
    finally:
        logger.setLevel(logging.NOTSET)
    assert capfd.readouterr() == ("", "")
    dopr.collect("CartPoleSwingUp", 2, tmp_path / "s.zarr")
    assert "2/2 episodes" in capfd.readouterr().err

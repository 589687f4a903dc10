"""The command as a user meets it: exit codes, and one line for every mistake."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from dopr_robot.cli import COMMANDS, main
from dopr_robot.datasets import Attributes, Store


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def store_at(path: Path, **attributes) -> Path:
    rng = np.random.default_rng(0)
    with Store.create(path, Attributes(observations=("state",), **attributes)) as store:
        for seed in range(4):
            store.append(
                {"state": rng.normal(size=(40, 3)), "action": rng.normal(size=(40, 2))}, seed=seed, success=True
            )
    return path


def mistake(capsys, *words: str) -> str:
    """The one line that a mistake leaves on stderr."""
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("dopr: ")
    return captured.err


def test_help_of_everything_reads(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert name in overview
        with pytest.raises(SystemExit) as leaving:
            main([name, "--help"])
        assert leaving.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: dopr {name}")


@pytest.mark.parametrize("listing", ["tasks", "policies", "optimizers"])
def test_a_listed_name_is_one_that_other_commands_take(listing, capsys, here):
    assert main([listing]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"tasks": "gym_pusht/PushT-v0", "policies": "flow_unet", "optimizers": "dopr_adamw"}[listing] in names
    if listing != "tasks":
        key = {"policies": "policy", "optimizers": "optimizer"}[listing]
        for name in names:
            assert main(["train", f"{key}={name}", "--print"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'"),
        (["train", "--recume", "x"], "dopr train --help"),
        (["train", "pik_place"], "unknown experiment 'pik_place': did you mean 'pick_place'"),
        (["train", "pick_place", "pusht_state"], "one experiment at a time"),
        (["train", "policy=flow_unt"], "did you mean 'flow_unet'"),
        (["train", "optimizer=dopr_adam_w"], "did you mean 'dopr_adamw'"),
        (["train", "optimizer.rl=1"], "did you mean 'optimizer.lr'"),
        (["train"], "data.store is not set"),
        (["train", "--resume", "nowhere"], "nowhere is no run folder"),
        (["eval", "nowhere"], "nowhere does not exist"),
        (["eval", "."], "neither a run folder nor a checkpoint"),
        (["render", "nowhere", "--out", "a.mp4"], "nowhere"),
        (["collect", "PickPlce", "--episodes", "1", "--out", "a.zarr"], "unknown task 'PickPlce': did you mean 'PickPlace'"),
        (["collect", "gym_pusht/PushT-v0", "--episodes", "1", "--out", "a.zarr"], "no expert"),
        (["collect", "PickPlace", "--episodes", "0", "--out", "a.zarr"], "at least 1"),
        (["info", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(words, message, capsys, here):
    assert message in mistake(capsys, *words)
    assert list(here.iterdir()) == []


def test_a_store_without_episode_ends_is_refused(capsys, here):
    zarr.create_group("broken.zarr").create_group("data")
    assert "episode_ends" in mistake(capsys, "train", "data.store=broken.zarr")
    assert not (here / "runs").exists()


def test_a_missing_extra_is_named_with_its_install_command(here):
    code = (
        "import importlib.util, sys; found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'gym_pusht' else found(name, *a)\n"
        "from dopr_robot.envs import make_vec\n"
        "make_vec('gym_pusht/PushT-v0', 2)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'dopr-robot[pusht]'" in done.stderr.splitlines()[-1]


def small_run(name: str, store: Path, *more: str) -> list[str]:
    return [
        "train", f"data.store={store}", f"name={name}", "training.steps=6", "training.batch_size=16", "policy.network.dim=16",
        "policy.network.layers=1", "policy.network.heads=2", "training.checkpoint_every=3", "data.validation_fraction=0.25", *more,
    ]  # fmt: skip


def test_training_ends_with_the_run_folder_alone_on_stdout(capsys, here):
    assert main(small_run("first", store_at(here / "s.zarr"))) == 0
    assert capsys.readouterr().out == "runs/first\n"
    assert (here / "runs/first/config.yaml").is_file()
    # A name that is taken is not trained over,
    before = (here / "runs/first/metrics.jsonl").read_bytes()
    assert "runs/first exists" in mistake(capsys, *small_run("first", here / "s.zarr"))
    assert (here / "runs/first/metrics.jsonl").read_bytes() == before
    # and a resume with other settings has to be meant.
    assert "training.steps: 6 -> 9" in mistake(capsys, "train", "--resume", "runs/first", "training.steps=9")
    assert main(["train", "--resume", "runs/first", "training.steps=9", "--force"]) == 0
    assert (here / "runs/first/checkpoints/last").readlink() == Path("9")


def test_a_run_folder_may_be_moved(capsys, here):
    from dopr_robot.policies import load_policy

    main(small_run("first", store_at(here / "s.zarr")))
    (here / "runs/first").rename(here / "elsewhere")
    assert load_policy(here / "elsewhere").n_obs_steps == 2
    assert main(["train", "--resume", "elsewhere", "training.steps=9", "--force"]) == 0


def test_a_page_about_a_run(capsys, here):
    main(small_run("first", store_at(here / "s.zarr"), "training.log_every=2"))
    assert main(["info", "runs/first", "--html", "first.html"]) == 0
    page = (here / "first.html").read_text()
    assert all(word in page for word in ("<svg", "s.zarr: 4 episodes", "dopr train runs/first/config.yaml", "cosine"))
    assert str(here.parent) not in page.split("Every setting")[0]


def test_the_printed_configuration_is_a_configuration(capsys, here):
    assert main(["train", "pusht_state", "optimizer.lr=1e-3", "--print"]) == 0
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "mine.yaml", "--print"]) == 0
    assert capsys.readouterr().out == (here / "mine.yaml").read_text()


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "'a\\nb'"])
def test_a_run_stays_in_its_folder(name, capsys, here):
    store_at(here / "s.zarr")
    assert main(small_run(name, here / "s.zarr")) == 2
    captured = capsys.readouterr()
    assert "name" in captured.err and captured.err.count("\n") == 1
    assert [each.name for each in here.iterdir()] == ["s.zarr"]


def test_what_nobody_foresaw_is_a_line_that_says_how_to_see_more(here, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("in the\nmiddle \x1b[31m")

    monkeypatch.setattr("dopr_robot.cli.optimizers.run", broken)
    assert main(["optimizers"]) == 1
    assert (
        capsys.readouterr().err
        == "dopr: unexpected ZeroDivisionError: in the middle \\x1b[31m (--verbose shows where)\n"
    )
    assert main(["optimizers", "--verbose"]) == 1
    assert "in broken" in capsys.readouterr().err


def test_nothing_that_a_store_says_acts_on_the_terminal(here, capsys):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m"
    with Store.create("s.zarr", Attributes(source=evil, licence=evil, task=evil, provenance=(evil,))) as store:
        store.append({f"a{evil}": np.ones((3, 2)), "action": np.ones((3, 2))}, seed=1)
    for words in (["info", "s.zarr"], ["info", "s.zarr", "--check"], ["info", "s.zarr", "--json"], ["info", evil]):
        main(words)
        out, err = capsys.readouterr()
        assert not {"\x1b", "\x07", "\x9b"} & set(out + err), words
        assert "\\x1b" in out + err or "u001b" in out


def test_a_full_disk_leaves_no_cut_video(here, capsys):
    with Store.create("s.zarr", Attributes(control_hz=10)) as store:
        images = np.random.default_rng(0).integers(0, 255, (40, 64, 64, 3), np.uint8)
        store.append({"image": images, "action": np.ones((40, 2))})
    words = ["render", "s.zarr", "--out", "v.mp4"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (100, 50_000, 200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            assert main(words) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        error = capsys.readouterr().err
        assert "v.mp4: the video can not be written" in error and error.count("dopr: ") == 1
        assert [each.name for each in here.iterdir()] == ["s.zarr"]
    assert main(words) == 0


def test_a_reader_that_leaves_is_no_crash(here):
    command = f"{sys.executable} -P -m dopr_robot.cli tasks | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert "Traceback" not in done.stderr


def test_a_store_goes_on_under_the_noise_and_options_that_it_was_begun_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["collect", "PickPlace", "--episodes", "1", "--out", "a.zarr"]
    assert main([*words, "--noise", "0"]) == 0
    capsys.readouterr()
    for others, said in (([], "--noise 0, not 1"), (["--noise", "0", "--option", "disturbance=2"], "with options {}")):
        assert main([*words, *others]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1

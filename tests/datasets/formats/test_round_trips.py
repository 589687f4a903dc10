"""There and back: every number, dtype, seed and word."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.datasets import Store
from dopr_robot.datasets.formats import FORMATS, Format, convert, find_format
from dopr_robot.errors import UserError

WRITTEN = {"robomimic": "out.hdf5", "lerobot": "out", "diffusion_policy": "out.zarr.zip"}


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].write])
def test_a_store_comes_back_whole(store, tmp_path, name, assert_same_numbers):
    out = tmp_path / WRITTEN[name]
    assert convert(store.path, out, write_as=name) == 3
    assert find_format(out) == name
    convert(out, tmp_path / "back.zarr")
    back = Store.open(tmp_path / "back.zarr")
    assert_same_numbers(store, back)
    for field in ("task", "control_hz", "observations", "action", "licence"):
        assert getattr(back.attributes, field) == getattr(store.attributes, field)
    assert back.attributes.provenance[0] == "made by hand"
    convert(tmp_path / "back.zarr", tmp_path / f"again{out.suffix}", write_as=name)
    convert(tmp_path / f"again{out.suffix}", tmp_path / "twice.zarr")
    assert_same_numbers(back, Store.open(tmp_path / "twice.zarr"))


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WRITTEN, 2)))
def test_formats_in_a_row_lose_no_number(store, tmp_path, first, second, assert_same_numbers):
    convert(store.path, tmp_path / WRITTEN[first], write_as=first)
    convert(tmp_path / WRITTEN[first], tmp_path / f"b{WRITTEN[second]}", write_as=second)
    convert(tmp_path / f"b{WRITTEN[second]}", tmp_path / "end.zarr")
    assert_same_numbers(store, Store.open(tmp_path / "end.zarr"))


def test_a_folder_of_diffusion_policy_is_written_too(store, tmp_path, assert_same_numbers):
    convert(store.path, tmp_path / "out.zarr", write_as="diffusion_policy")
    back = Store.open(tmp_path / "out.zarr")
    assert_same_numbers(store, back)
    assert not back.is_own
    with pytest.raises(UserError, match="made by another program"):
        back.append(store.episode(0))


def test_the_command_converts_and_adds_what_the_source_does_not_say(store, tmp_path, capsys):
    out = tmp_path / "low.zarr"
    assert main(["convert", store.path, str(out), "--hz", "10", "--observations", "state", "--relative"]) == 0
    assert capsys.readouterr().out == f"{out}: 3 episodes\n"
    about = Store.open(out).attributes
    assert (about.control_hz, about.observations, about.action.absolute) == (10, ("state",), False)
    for wrong, said in {
        "--to minari": "minari is only read: --to can be diffusion_policy, lerobot, robomimic",
        "--to lerobots": "did you mean 'lerobot'?",
        "--from robomimc": "did you mean 'robomimic'?",
        "--hz 0": "--hz 0 has to be above 0",
        "--hz 20": "says that it was recorded at 10 Hz: leave --hz 20 out",
        "--observations stat": "--observations stat: ",
        "--success-from reward": "--success-from reward: there are action, force",
        "--task PickPlace": "dopr_robot/PickPlace-v0 runs at 20 Hz",
        "--task PikPlace": "did you mean",
    }.items():
        assert main(["convert", store.path, str(tmp_path / "new"), *wrong.split()]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert main(["convert", store.path, str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_another_package_adds_a_format(tmp_path, monkeypatch):
    from dopr_robot.datasets import Attributes, Episode, Recording

    def read(path):
        return Recording(Attributes(), [Episode({"action": np.loadtxt(path, ndmin=2)})])

    monkeypatch.setitem(FORMATS._entries, "text", Format("numbers", lambda path: path.suffix == ".txt", read))
    np.savetxt(tmp_path / "a.txt", [[1.0, 2.0], [3.0, 4.0]])
    convert(tmp_path / "a.txt", tmp_path / "a.zarr")
    assert Store.open(tmp_path / "a.zarr").episode(0)["action"].tolist() == [[1, 2], [3, 4]]


def test_an_archive_that_was_packed_with_its_folder_is_read(store, tmp_path, assert_same_numbers):
    convert(store.path, tmp_path / "out.zarr", write_as="diffusion_policy")
    for source in (tmp_path / "out.zarr", store.path):
        packed = shutil.make_archive(str(tmp_path / "packed.zarr"), "zip", tmp_path, Path(source).name)
        assert_same_numbers(store, Store.open(packed))
        convert(packed, tmp_path / "s.zarr")
        assert_same_numbers(store, Store.open(tmp_path / "s.zarr"))
        shutil.rmtree(tmp_path / "s.zarr")


def test_text_is_kept_and_is_no_observation(store, tmp_path, caplog):
    with Store.create(tmp_path / "text.zarr", store.attributes) as made:
        made.append({**store.episode(0), "state": np.array(["left"] * 5)})
    convert(tmp_path / "text.zarr", tmp_path / "s.zarr")
    kept = Store.open(tmp_path / "s.zarr")
    assert kept.observations == ["top"] and kept.episode(0)["state"].tolist() == ["left"] * 5
    assert "state is no number: kept as a key, and no observation" in caplog.text

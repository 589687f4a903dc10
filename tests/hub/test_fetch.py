"""Public data by name: whole, checked, once; and what is said where that can not be."""

import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from dopr_robot import UserError, convert, fetch, list_data
from dopr_robot.cli import main
from dopr_robot.datasets import Attributes, Store
from dopr_robot.errors import DamagedError
from dopr_robot.hub import PUBLIC, Address

FILES = {"README.md": b"---\nlicense: mit\n---\n", "data/a.parquet": b"a" * 3_000_000, "data/[b].parquet": b"b" * 100}


@pytest.fixture
def data(hub):
    return hub.add("datasets", "lerobot/pusht", FILES, {"license": "mit"})


@pytest.fixture
def store(tmp_path):
    """Two episodes of numbers."""
    with Store.create(tmp_path / "some.zarr", Attributes(control_hz=10, observations=("state",))) as store:
        for seed in range(2):
            rows = np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32)
            store.append({"state": rows, "action": rows[:, :2]}, seed=seed, success=True)
    return tmp_path / "some.zarr"


def error_of(capsys, *call: str) -> str:
    """The one line that a call ends with, a user's mistake."""
    capsys.readouterr()
    assert main(call) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    return err


def test_a_data_set_is_fetched_whole_and_once(hub, data, tmp_path):
    found = fetch("lerobot/pusht")
    assert {name: (found.path / name).read_bytes() for name in FILES} == FILES
    assert found.path.is_relative_to(tmp_path / "cache")
    assert (found.address.revision, found.licence) == (data.sha, "mit")
    assert found.next == "dopr convert hf://lerobot/pusht data/pusht.zarr"
    assert sorted(hub.gets()) == sorted(FILES)
    assert fetch("hf://lerobot/pusht") == found
    assert sorted(hub.gets()) == sorted(FILES)  # none again


def test_a_file_or_a_folder_of_it(hub, data, tmp_path):
    assert fetch("lerobot/pusht/data/[b].parquet").path.read_bytes() == b"b" * 100
    assert hub.gets() == ["data/[b].parquet"]
    out = tmp_path / "out"
    assert fetch("hf://datasets/lerobot/pusht@main/data", out).path == out
    assert sorted(path.name for path in out.iterdir()) == ["[b].parquet", "a.parquet"]
    assert not any(path.is_symlink() for path in out.iterdir())
    assert fetch("lerobot/pusht/README.md", tmp_path / "one").path == tmp_path / "one" / "README.md"


def test_a_broken_connection_is_taken_up_at_the_byte(hub, data, monkeypatch):
    monkeypatch.setattr(
        constants, "DOWNLOAD_CHUNK_SIZE", 2**20
    )  # what is kept of a file that breaks off is whole chunks
    data.cut = {"data/a.parquet"}
    assert (fetch("lerobot/pusht").path / "data/a.parquet").read_bytes() == FILES["data/a.parquet"]
    assert [asked for how, path, asked in hub.asked if how == "GET" and path.endswith("a.parquet")] == [
        None,
        "bytes=1048576-",
    ]


def test_a_call_that_was_stopped_goes_on(hub, data, tmp_path):
    data.barred = {"data/[b].parquet"}
    with pytest.raises(UserError, match="owner grants access"):
        fetch("lerobot/pusht", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    before = [name for name in hub.gets() if name not in data.barred]
    data.barred = set()
    fetch("lerobot/pusht")
    assert not set(before) & set(hub.gets()[len(before) :])


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_the_hub_says_is_not_kept(hub, data, name, tmp_path):
    data.lies = {name: FILES[name][:-1] + b"?"}
    with pytest.raises(DamagedError, match="taken out of the cache"):
        fetch("lerobot/pusht", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    data.lies = {}
    assert (fetch("lerobot/pusht").path / name).read_bytes() == FILES[name]


def test_names_that_lead_nowhere(hub, data, capsys):
    assert "did you mean 'lerobot/pusht'" in error_of(capsys, "fetch", "lerobot/push")
    assert "did you mean 'lerobot/pusht'" in error_of(capsys, "fetch", "pushd")
    assert "did you mean 'data/a.parquet'" in error_of(capsys, "fetch", "lerobot/pusht/data/aa.parquet")
    assert "no revision v9" in error_of(capsys, "fetch", "hf://lerobot/pusht@v9")
    for name in ("a b/c", "lerobot/pusht/../x", "_/x"):
        assert "address" in error_of(capsys, "fetch", name)


def test_what_is_private_is_seen_with_a_token(hub, data, capsys, monkeypatch):
    data.private = True
    assert "HF_TOKEN" in error_of(capsys, "fetch", "lerobot/pusht")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert main(["fetch", "lerobot/pusht", "--quiet"]) == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_without_a_hub_nothing_is_written(data, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    out = str(tmp_path / "out")
    for call in (
        ["fetch", "lerobot/pusht", "--out", out],
        ["convert", "hf://lerobot/pusht", out],
        ["eval", "hf://ada/x", "--out", out],
    ):
        assert "can not be reached" in error_of(capsys, *call)
        assert not Path(out).exists()
    assert not (tmp_path / "cache").exists()


def test_without_a_hub_what_was_fetched_is_there(data, capsys, monkeypatch):
    found = fetch("lerobot/pusht")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch("lerobot/pusht").path == found.path
    assert "lerobot/pusht/data" not in error_of(capsys, "fetch", "lerobot/other")


def test_half_of_a_data_set_is_none(hub, data, capsys, monkeypatch):
    fetch("lerobot/pusht/README.md")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "can not be reached" in error_of(capsys, "fetch", "lerobot/pusht")


def test_without_the_library(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'dopr-robot[hub]'" in error_of(capsys, "fetch", "lerobot/pusht")


def test_what_is_in_the_way(data, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    assert "exists already" in error_of(capsys, "fetch", "lerobot/pusht", "--out", str(tmp_path / "out"))


def test_every_public_name_is_an_address_and_is_listed(capsys):
    for name, entry in PUBLIC.items():
        assert str(Address.parse(entry.address)) == entry.address
        assert entry.licence
        assert name.count("/") == 1
    assert list_data().names == [*PUBLIC]
    assert main(["fetch"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*PUBLIC]


def test_a_public_name_is_converted(hub, store, tmp_path, capsys):
    """A LeRobot set as it lies on the hub, and a file of a repository that has many."""
    convert(store, tmp_path / "flat", write_as="lerobot")
    flat = {
        path.relative_to(tmp_path / "flat").as_posix(): path.read_bytes()
        for path in (tmp_path / "flat").rglob("*")
        if path.is_file()
    }
    hub.add("datasets", "lerobot/pusht", flat)
    assert main(["convert", "hf://lerobot/pusht", str(tmp_path / "a.zarr")]) == 0
    convert(store, tmp_path / "demo.hdf5", write_as="robomimic")
    hub.add(
        "datasets",
        "robomimic/robomimic_datasets",
        {"v1.5/lift/ph/low_dim_v15.hdf5": (tmp_path / "demo.hdf5").read_bytes()},
    )
    assert convert("hf://robomimic/lift-ph", tmp_path / "b.zarr") == 2
    for name in ("a", "b"):
        made = Store.open(tmp_path / f"{name}.zarr")
        np.testing.assert_array_equal(made.episode(1)["action"], Store.open(store).episode(1)["action"])


def test_a_bar_that_nobody_sees_is_not_drawn(data, capsys):
    fetch("lerobot/pusht")
    out, err = capsys.readouterr()
    assert not out
    assert err.count("\n") == 1
    assert "3 files, 2.9 MiB" in err

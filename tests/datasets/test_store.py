import itertools
import json
import shutil
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from dopr_robot.datasets import ActionAttributes, Attributes, Episode, KeyInfo, Store
from dopr_robot.errors import DamagedError, UserError

ATTRIBUTES = Attributes(
    task="dopr/PickPlace-v0",
    control_hz=20,
    observations=("state",),
    action=ActionAttributes("end-effector velocity", absolute=False, units="m/s", low=(-1, -1), high=(1, 1)),
    licence="CC0-1.0",
)


def episode(length, offset=0.0):
    steps = np.arange(length, dtype=np.float32)[:, None] + offset
    return {"state": steps * [1, 2, 3], "action": (steps * [1, -1]).astype(np.float32)}


def make(path, lengths=(5, 3, 7)):
    with Store.create(path, ATTRIBUTES) as store:
        for index, length in enumerate(lengths):
            store.append(episode(length, 100 * index), seed=index + 40, success=index != 1)
    return store


def test_what_was_appended_is_read_back(tmp_path):
    make(tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert store.attributes == ATTRIBUTES
    assert store.episode_ends.tolist() == [5, 8, 15] and store.episode_lengths.tolist() == [5, 3, 7]
    assert store.seeds.tolist() == [40, 41, 42] and store.success.tolist() == [1, 0, 1]
    assert store.keys == {
        "action": KeyInfo((2,), np.dtype(np.float32)),
        "state": KeyInfo((3,), np.dtype(np.float64)),
    }
    for index, length in enumerate((5, 3, 7)):
        for key, value in episode(length, 100 * index).items():
            np.testing.assert_array_equal(store.episode(index)[key], value)
    assert list(store.episode(-1, ["action"])) == ["action"]
    with pytest.raises(UserError, match="no episode 3"):
        store.episode(3)
    with pytest.raises(UserError, match="no key 'img'"):
        store.episode(0, ["img"])


def test_meta_of_an_episode_may_be_texts_and_may_be_lacking(tmp_path):
    with Store.create(tmp_path / "s.zarr") as store:
        store.append(episode(2))
        store.append(episode(2), meta={"name": "demo_1", "initial_state": np.arange(3.0)})
        store.append(episode(2))
    meta = Store.open(tmp_path / "s.zarr").meta
    assert meta["name"].tolist() == ["", "demo_1", ""]
    assert meta["initial_state"].tolist() == [[0, 0, 0], [0, 1, 2], [0, 0, 0]]
    assert meta["seed"].tolist() == [-1, -1, -1] and meta["success"].tolist() == [-1, -1, -1]


def test_episodes_added_together_are_those_added_one_after_another(tmp_path):
    episodes = [
        Episode(episode(2)),
        Episode(episode(3, 10), 7, True, {"name": "demo_1"}),
        Episode(episode(1, 20), 8, False, {"weight": 0.5}),
        Episode(episode(4, 30), 9, True, {"name": "demo_3", "weight": 1.5}),
    ]
    for name, cuts in (("alone", [0, 1, 2, 3, 4]), ("two", [0, 2, 4]), ("all", [0, 4])):
        with Store.create(tmp_path / name) as store:
            store.extend([])
            for a, b in itertools.pairwise(cuts):
                store.extend(iter(episodes[a:b]))
    alone = Store.open(tmp_path / "alone")
    assert alone.num_episodes == 4 and alone.meta["weight"].tolist() == [0, 0, 0.5, 1.5]
    for other in (Store.open(tmp_path / "two"), Store.open(tmp_path / "all")):
        assert other.episode_ends.tolist() == alone.episode_ends.tolist() and other.keys == alone.keys
        assert {name: values.tolist() for name, values in other.meta.items()} == {
            name: values.tolist() for name, values in alone.meta.items()
        }
        for key, values in alone.read().items():
            np.testing.assert_array_equal(other.read()[key], values)


def test_of_episodes_added_together_none_is_there_where_one_does_not_fit(tmp_path):
    for name, wrong, message in (
        (
            "shape",
            Episode({"state": np.zeros((2, 4)), "action": np.zeros((2, 2), np.float32)}),
            r"state: .*\(episode 3\)",
        ),
        ("meta", Episode(episode(2), meta={"goal": [1.0, 2.0]}), r"meta/goal: .*\(episode 3\)"),
    ):
        make(tmp_path / name, lengths=(5, 3))
        with Store.open(tmp_path / name) as store, pytest.raises(UserError, match=message):
            store.extend([Episode(episode(2), meta={"goal": 1.0}), wrong])
        again = Store.open(tmp_path / name)
        assert again.num_episodes == 2 and again.episode(1)["state"].shape == (3, 3)
        with again:
            again.append(episode(6), meta={"goal": 1.0})
        assert Store.open(tmp_path / name).episode_ends.tolist() == [5, 8, 14]


@pytest.mark.parametrize(("first", "then"), [("text", 1.5), (1.5, "text"), (1, 1.5), (1.5, [1.5, 2.5])])
def test_what_belongs_to_episodes_is_alike_or_refused(tmp_path, first, then):
    with Store.create(tmp_path / "s.zarr") as store:
        store.append(episode(2), meta={"goal": first})
        with pytest.raises(UserError, match=r"meta/goal: is .*, earlier episodes' .* \(episode 1\)"):
            store.append(episode(2), meta={"goal": then})
    store = Store.open(tmp_path / "s.zarr")
    assert store.num_episodes == 1 and store.meta["goal"].tolist() == [first]


def test_a_reopened_store_goes_on_and_a_reader_sees_it_after_refresh(tmp_path):
    make(tmp_path / "s.zarr")
    reader = Store.open(tmp_path / "s.zarr")
    with Store.open(tmp_path / "s.zarr") as writer:
        writer.append(episode(4, 1000))
    assert reader.num_episodes == 3
    reader.refresh()
    np.testing.assert_array_equal(reader.episode(3)["state"], episode(4, 1000)["state"])


def test_a_second_writer_is_refused(tmp_path):
    with Store.create(tmp_path / "s.zarr") as first:
        first.append(episode(3))
        second = Store.open(tmp_path / "s.zarr")
        with pytest.raises(UserError, match="another program is writing"):
            second.append(episode(3))
    second.append(episode(3))
    assert second.num_episodes == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("state"), "missing: \\['state'\\]"),
        (lambda e: e.update(extra=np.zeros(5)), "new: \\['extra'\\]"),
        (lambda e: e.update(state=e["state"][:4]), "steps"),
        (
            lambda e: e.update(state=e["state"].astype(np.float32)),
            "float32\\[3\\] a step, the first episode's float64\\[3\\]",
        ),
        (lambda e: e.update(state=np.zeros((5, 4))), "float64\\[4\\]"),
        (lambda e: e.update({key: value[:0] for key, value in e.items()}), "0 steps"),
        (lambda e: e.clear(), "without any key"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, change, message):
    store = make(tmp_path / "s.zarr")
    wrong = episode(5)
    change(wrong)
    with pytest.raises(UserError, match=message) as caught:
        store.append(wrong)
    assert "\n" not in str(caught.value) and "s.zarr" in str(caught.value)
    assert Store.open(tmp_path / "s.zarr").num_episodes == 3


def test_rows_beyond_the_last_end_are_no_damage_and_are_overwritten(tmp_path):
    make(tmp_path / "s.zarr")
    group = zarr.open_group(tmp_path / "s.zarr", mode="r+")
    group["data/state"].resize((40, 3))
    group["data/state"][15:] = 9.0
    group["meta/episode_ends"].resize((4,))  # grown and killed before the number was written
    with Store.open(tmp_path / "s.zarr") as store:
        assert store.num_episodes == 3
        store.append(episode(2, 7))
    store = Store.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.episode(3)["state"], episode(2, 7)["state"])
    assert store.array("state").shape == (17, 3)


def test_zip_and_fsspec_addresses_are_read(tmp_path):
    make(tmp_path / "s.zarr")
    archive = shutil.make_archive(str(tmp_path / "s.zarr"), "zip", tmp_path / "s.zarr")
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "s.zarr").rglob("*"):
        if file.is_file():
            memory.pipe(f"/s.zarr/{file.relative_to(tmp_path / 's.zarr')}", file.read_bytes())
    for path in (archive, "memory://s.zarr", (tmp_path / "s.zarr").as_uri()):
        store = Store.open(path)
        assert store.attributes == ATTRIBUTES
        np.testing.assert_array_equal(store.episode(1)["state"], episode(3, 100)["state"])
        with pytest.raises(UserError, match="only a local folder"):
            store.append(episode(3))


def test_a_foreign_v2_store_opens_and_is_never_modified(tmp_path):
    group = zarr.create_group(tmp_path / "dp.zarr", zarr_format=2)
    group.create_array("data/action", data=np.ones((6, 2), np.float32))
    group.create_array("data/keypoint", data=np.arange(108, dtype=np.float32).reshape(6, 9, 2))
    group.create_array("meta/episode_ends", data=np.array([2, 6]))
    store = Store.open(tmp_path / "dp.zarr")
    assert store.attributes == Attributes() and store.observations == ["keypoint"]
    assert store.success.tolist() == [-1, -1] and store.episode(1)["keypoint"].shape == (4, 9, 2)
    with pytest.raises(UserError, match="dopr convert"):
        store.append({"action": np.ones((6, 2), np.float32), "keypoint": np.ones((6, 9, 2), np.float32)})


def test_the_pusht_store_opens(pusht_path):
    store = Store.open(pusht_path)
    assert (store.num_episodes, store.num_steps) == (206, 25650)
    assert store.keys["img"] == KeyInfo((96, 96, 3), np.dtype(np.float32))
    assert store.episode(0, ["state"])["state"].shape == (161, 5)


def test_what_is_not_a_store_is_said_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for file in ("text.zip", "demo.hdf5"):
        (tmp_path / file).write_text("no archive")
    zarr.create_group(tmp_path / "no_ends.zarr").create_group("data")
    zarr.create_group(tmp_path / "no_data.zarr").create_array("meta/episode_ends", data=np.array([1]))
    zarr.create_array(tmp_path / "array.zarr", data=np.zeros(3))
    for name, message in {
        "none.zarr": "no such file",
        "empty": "no zarr group .dopr convert SOURCE OUT.zarr makes",
        "text.zip": "cannot be opened",
        "demo.hdf5": "cannot be opened.*dopr convert SOURCE OUT.zarr makes",
        "no_ends.zarr": "'meta/episode_ends' is missing",
        "no_data.zarr": "'data' is missing",
        "array.zarr": "not a demonstration store|cannot be opened",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            Store.open(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    make(tmp_path / "s.zarr")
    with pytest.raises(UserError, match="exists already"):
        Store.create(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "3 and this dopr_robot reads 1 to 2"),
        ({"control_hz": "20"}, "control_hz is '20'"),
        ({"control_hz": -1}, "positive"),
        ({"observations": "state"}, "observations is 'state'"),
        ({"colour": 1}, "unknown field colour"),
        ({"action": {"absolute": "yes"}}, "action.absolute is 'yes'"),
        ({"action": {"low": [0]}}, "action.low has 1"),
    ],
)
def test_attributes_are_validated_when_opened(tmp_path, change, message):
    make(tmp_path / "s.zarr")
    file = tmp_path / "s.zarr" / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["demonstrations"].update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Store.open(tmp_path / "s.zarr")


def test_a_store_of_schema_version_1_keeps_the_options_that_were_noted_elsewhere(tmp_path):
    make(tmp_path / "s.zarr")
    file = tmp_path / "s.zarr" / "zarr.json"
    content = json.loads(file.read_text())
    about = content["attributes"]["demonstrations"]
    del about["options"]
    about |= {"schema_version": 1, "carried": {"collect": {"noise": 1.0, "options": {"cubes": 3}}}}
    file.write_text(json.dumps(content))
    found = Store.open(tmp_path / "s.zarr").attributes
    assert found.options == {"cubes": 3} and found.carried == {"collect": {"noise": 1.0}}


def test_ends_that_do_not_increase_are_damage(tmp_path):
    make(tmp_path / "s.zarr")
    zarr.open_group(tmp_path / "s.zarr", mode="r+")["meta/episode_ends"][:] = [5, 4, 15]
    with pytest.raises(DamagedError, match="does not increase \\(episode 1\\)"):
        Store.open(tmp_path / "s.zarr")


def test_a_chunk_that_lost_bytes_is_damage_named_by_key_and_episode(tmp_path):
    make(tmp_path / "s.zarr")
    shard = next(file for file in (tmp_path / "s.zarr/data/state/c").rglob("*") if file.is_file())
    content = bytearray(shard.read_bytes())
    content[12] ^= 0xFF
    shard.write_bytes(bytes(content))
    store = Store.open(tmp_path / "s.zarr")
    with pytest.raises(DamagedError, match=r"state: cannot be read .*\(episode 0\)"):
        store.read(["state"])
    assert store.read(["action"])["action"].shape == (15, 2)


def test_a_truncated_archive_is_said_in_one_line(tmp_path):
    make(tmp_path / "s.zarr")
    archive = Path(shutil.make_archive(str(tmp_path / "s"), "zip", tmp_path / "s.zarr"))
    assert zipfile.is_zipfile(archive)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(UserError, match=r"s\.zip: cannot be opened"):
        Store.open(archive)

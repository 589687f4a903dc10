"""What a kill, a second program or a broken disk can do to a store."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from dopr_robot.datasets import Episode, Store, check, repair
from dopr_robot.datasets.check import Replayed
from dopr_robot.errors import DamagedError, UserError


def episode(index):
    rng = np.random.default_rng(index)
    length = int(rng.integers(2, 40))
    return {
        "state": rng.normal(size=(length, 3)),
        "image": rng.integers(0, 255, (length, 40, 40, 3), np.uint8),
        "action": rng.normal(size=(length, 2)).astype(np.float32),
    }


def assert_holds(store, first=0):
    for index in range(first, store.num_episodes):
        for key, value in episode(index).items():
            np.testing.assert_array_equal(store.episode(index)[key], value)


def append_until_killed(path, acknowledge):
    with Store.open(path) as store:
        while True:
            index = store.num_episodes
            store.append(episode(index), seed=index, success=True, meta={"name": f"demo_{index}"})
            os.write(acknowledge, b".")


CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
"""Audit events of changes to the file system; of ``open``, where it is for writing."""


def append_until(change, path, count):
    """Add some episodes in a process that is killed before its nth change to the store; whether it was."""
    child = os.fork()
    if child == 0:
        left = [change]

        def watch(event, args):
            if (
                event in CHANGES
                and str(path) in str(args[0])
                and (event != "open" or args[2] & (os.O_WRONLY | os.O_RDWR))
            ):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            with Store.open(path) as store:
                new = range(store.num_episodes, store.num_episodes + count)
                store.extend([Episode(episode(index), index, True, {"name": f"demo_{index}"}) for index in new])
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(("earlier", "count", "step"), [(0, 1, 10), (2, 1, 2), (2, 3, 8)])
def test_a_kill_before_any_change_to_the_files_leaves_every_earlier_episode(tmp_path, earlier, count, step):
    """Of an append to one of two episodes before every second change, since a file takes two: it is written beside its place and moved.
    Of an append to an empty store, which makes the arrays, and of several episodes together, which are there all or none, before some."""
    with Store.create(tmp_path / "before.zarr") as store:
        for index in range(earlier):
            store.append(episode(index), seed=index, success=True, meta={"name": f"demo_{index}"})
    for change in range(2, 1000, step):
        path = shutil.copytree(tmp_path / "before.zarr", tmp_path / f"{change}.zarr")
        if not append_until(change, path, count):
            break
        store = Store.open(path)
        assert store.num_episodes in (earlier, earlier + count)
        assert_holds(store)
        assert check(path).damage == []
        if change % 8 == 0:
            with store:
                store.append(episode(store.num_episodes), meta={"name": "next"})
            assert_holds(Store.open(path))
        shutil.rmtree(path)
    assert change > 8 and Store.open(path).num_episodes == earlier + count


def test_a_kill_at_any_moment_leaves_every_earlier_episode(tmp_path):
    path = tmp_path / "s.zarr"
    Store.create(path).close()
    generator = random.Random(0)
    checked = 0
    for _ in range(25):
        reading, writing = os.pipe()
        before = Store.open(path).num_episodes
        child = os.fork()
        if child == 0:
            try:
                append_until_killed(path, writing)
            finally:
                os._exit(1)
        os.close(writing)
        time.sleep(generator.uniform(0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        acknowledged = len(os.read(reading, 10_000))
        os.close(reading)
        store = Store.open(path)
        assert before + acknowledged <= store.num_episodes <= before + acknowledged + 1
        assert_holds(store, first=max(before - 1, checked))
        checked = before
        assert check(path).damage == []
        if store.num_episodes > 15:  # a small store is checked sooner, so that more moments can be tried
            assert_holds(store)
            shutil.rmtree(path)
            Store.create(path).close()
            checked = 0
    with Store.open(path) as store:
        store.append(episode(store.num_episodes), meta={"name": "last"})
    assert_holds(Store.open(path))


def test_readers_see_whole_episodes_while_a_writer_appends(tmp_path):
    path = tmp_path / "s.zarr"
    Store.create(path).close()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            append_until_killed(path, writing)
        finally:
            os._exit(1)
    try:
        assert os.read(reading, 1) == b"."  # the writer has begun
        seen = 0
        while seen < 20:
            store = Store.open(path)
            assert store.num_episodes >= seen
            assert_holds(store, first=seen)
            seen = store.num_episodes
            with pytest.raises(UserError, match="another program is writing"):
                store.append(episode(0))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading), os.close(writing)


def make(path, n=6):
    with Store.create(path) as store:
        for index in range(n):
            store.append(episode(index), seed=index, success=True)
    return path


def files(path, key):
    return sorted(file for file in (path / "data" / key / "c").rglob("*") if file.is_file())


def remove_file(path):
    files(path, "image")[-1].unlink()


def flip_bytes(path):
    file = files(path, "image")[-1]
    content = bytearray(file.read_bytes())
    content[100:120] = bytes(20)
    file.write_bytes(bytes(content))


def truncate_file(path):
    file = files(path, "image")[-1]
    file.write_bytes(file.read_bytes()[:-100])


def shorten_array(path):
    zarr.open_group(path, mode="r+")["data/action"].resize((int(Store.open(path).episode_ends[3]) + 1, 2))


def shorten_meta(path):
    zarr.open_group(path, mode="r+")["meta/seed"].resize((4,))


def spoil_ends(path):
    zarr.open_group(path, mode="r+")["meta/episode_ends"][4] = 1


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (remove_file, "image: a file is missing"),
        (flip_bytes, "image: cannot be read"),
        (truncate_file, "image: cannot be read"),
        (shorten_array, "action: has .* rows and episode_ends .* \\(episode 4\\)"),
        (shorten_meta, "meta/seed: has 4 entries for 6 episodes \\(episode 4\\)"),
        (spoil_ends, "episode_ends: does not increase \\(episode 4\\)"),
    ],
)
def test_damage_is_named_and_repaired_to_the_last_whole_episode(tmp_path, monkeypatch, spoil, found):
    monkeypatch.setattr("dopr_robot.datasets.layout.SHARD_BYTES", 40 * 4800)  # several shards in six episodes
    path = make(tmp_path / "s.zarr")
    spoil(path)
    lines = [str(finding) for finding in check(path).damage]
    assert any(__import__("re").match(found, line) for line in lines), lines
    assert all("\n" not in line for line in lines)
    done = repair(path)
    store = Store.open(path)
    assert done[-1] == f"kept {store.num_episodes} whole episodes" and 0 < store.num_episodes < 6
    assert_holds(store)
    assert check(path).damage == []
    assert repair(path) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]
    with store:
        store.append(episode(store.num_episodes), seed=99)
    assert_holds(Store.open(path))


def test_a_store_without_a_whole_episode_is_left_as_it_is(tmp_path):
    path = make(tmp_path / "s.zarr", 2)
    remove_file(path)
    content = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(DamagedError, match="no whole episode is left; first damage: image: a file is missing"):
        repair(path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == content


def test_check_tells_numbers_that_are_none_from_oddities(tmp_path):
    path = Path(tmp_path / "s.zarr")
    with Store.create(path) as store:
        for index in range(3):
            arrays = {"state": np.ones((4, 2)), "action": np.tile([[1.0, 0.0]], (4, 1))}
            arrays["action"][:, 1] = index
            if index == 1:
                arrays["state"][2, 0] = np.nan
            store.append(arrays, seed=5 if index else 4)
    report = check(path)
    assert [str(finding) for finding in report.damage] == ["state: NaN (episode 1)"]
    warnings = [str(finding) for finding in report.warnings]
    assert "action: constant: entries [0] never change" in warnings
    assert "seed: 5 is also episode 1's (episode 2)" in warnings
    assert repair(path) == [], "a NaN is no broken tail"


def test_saturated_actions_are_a_warning(tmp_path):
    from dopr_robot.datasets import ActionAttributes, Attributes

    with Store.create(tmp_path / "s.zarr", Attributes(action=ActionAttributes(low=(-1, -1), high=(1, 1)))) as store:
        store.append({"action": np.stack([np.linspace(-2, 2, 50).clip(-1, 1), np.linspace(-0.9, 0.9, 50)], 1)})
    warnings = [str(finding) for finding in check(tmp_path / "s.zarr").warnings]
    assert warnings == ["action: saturated: entry 0 is at its bounds in 52% of the steps"]


def test_a_replay_that_drifts_is_a_warning(tmp_path):
    path = make(tmp_path / "s.zarr")
    asked = []

    def replay(episode):
        asked.append(episode.seed)
        return Replayed({"state": 0.5 if episode.seed == 5 else 1e-9}, success=bool(episode.success))

    assert [str(f) for f in check(path, replay=replay, replay_episodes=3).warnings] == [
        "state: a replay drifts by 0.5 (episode 5)"
    ]
    assert asked == [0, 2, 5]


def test_the_pusht_store_is_whole(pusht_path, tmp_path):
    shutil.unpack_archive(pusht_path, tmp_path, "zip")
    store = next(tmp_path.glob("**/meta")).parent
    shutil.rmtree(store / "data" / "img")  # 2.8 GB to read, and nothing else to learn from it
    report = check(store)
    assert report.damage == []

import multiprocessing
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopr_robot.datasets import Store, Windows, batch_indices, split_episodes, statistics
from dopr_robot.errors import DamagedError, UserError


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "s.zarr") as store:
        for length in (6, 1, 9):
            store.append(
                {"state": rng.normal(size=(length, 3)) * [1, 10, 1e-3] + 5, "action": rng.normal(size=(length, 2))}
            )
    return store


def slow_windows(store, episodes, To, H, Ta):
    """The definition, one window at a time: pad the episode with its first and last step, then cut; a short one to one window."""
    for index in episodes:
        arrays = store.episode(index)
        after = max(Ta - 1, H - (To - 1) - len(arrays["action"]))
        padded = {
            key: np.concatenate([value[:1]] * (To - 1) + [value] + [value[-1:]] * after)
            for key, value in arrays.items()
        }
        for start in range(len(padded["action"]) - H + 1):
            yield padded["state"][start : start + To], padded["action"][start : start + H]


@pytest.mark.parametrize(("To", "H", "Ta"), [(1, 1, 1), (2, 4, 3), (3, 5, 2), (2, 8, 4), (2, 16, 8), (1, 20, 1)])
def test_windows_equal_their_definition(store, To, H, Ta):
    for episodes in ([0, 1, 2], [2], [2, 0]):
        windows = Windows(store, ["state"], n_obs_steps=To, horizon=H, n_action_steps=Ta, episodes=episodes)
        expected = list(slow_windows(store, episodes, To, H, Ta))
        assert len(windows) == len(expected)
        batch = windows.batch(np.arange(len(windows)))
        np.testing.assert_array_equal(batch["observation"]["state"], np.stack([state for state, _ in expected]))
        np.testing.assert_array_equal(batch["action"], np.stack([action for _, action in expected]))


def test_windows_read_only_the_keys_asked_for(pusht_path, monkeypatch):
    store = Store.open(pusht_path)
    asked = []
    read = store.array
    monkeypatch.setattr(store, "array", lambda key: asked.append(key) or read(key))
    windows = Windows(store, ["state"], n_obs_steps=2, horizon=16, n_action_steps=8)
    assert set(asked) == {"state", "action"}
    assert len(windows) == 25650 - 206 * (16 - 1 - 7 - 1)
    batch = windows.batch([0, 5])
    assert batch["observation"]["state"].shape == (2, 2, 5) and batch["action"].shape == (2, 16, 2)


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Images in several shards, written in two goes, so that a shard was replaced half-way."""
    monkeypatch.setattr("dopr_robot.datasets.layout.SHARD_BYTES", 20 * 16 * 16 * 3 * 8)
    rng = np.random.default_rng(0)
    for lengths in ((30, 4), (17, 50, 9)):
        with Store.open(tmp_path / "i.zarr") if lengths[0] != 30 else Store.create(tmp_path / "i.zarr") as store:
            for length in lengths:
                frames = rng.normal(size=(length, 16, 16, 3))
                store.append(
                    {"image": frames, "state": rng.normal(size=(length, 3)), "action": rng.normal(size=(length, 2))}
                )
    return Store.open(tmp_path / "i.zarr")


def image_windows(store, horizon=5, **options):
    return Windows(store, ["image", "state"], n_obs_steps=2, horizon=horizon, n_action_steps=3, **options)


def assert_alike(first, second):
    np.testing.assert_array_equal(first["action"], second["action"])
    for key, value in first["observation"].items():
        np.testing.assert_array_equal(value, second["observation"][key])
        assert value.dtype == second["observation"][key].dtype


def diffusion_policys_rows(ends, horizon, before, after):
    """``create_indices`` of Diffusion Policy's sampler: rows ``[windows, horizon]``, repeated at both ends of an episode."""
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        for start in range(-before, end - begin - horizon + after + 1):
            yield np.clip(np.arange(start, start + horizon) + begin, begin, end - 1)


@pytest.mark.parametrize(("To", "H", "Ta"), [(2, 4, 3), (2, 8, 4), (2, 16, 8)])
def test_windows_are_diffusion_policys_and_one_of_each_episode_that_it_leaves_out(store, To, H, Ta):
    windows = Windows(store, ["state"], n_obs_steps=To, horizon=H, n_action_steps=Ta)
    short = np.isin(windows.episode_of(np.arange(len(windows))), windows.short)
    assert windows.short.tolist() == [e for e, length in enumerate((6, 1, 9)) if length < H - To - Ta + 2]
    assert short.sum() == len(windows.short)
    rows = np.array(list(diffusion_policys_rows(store.episode_ends.tolist(), H, To - 1, Ta - 1)))
    found = windows.batch(np.flatnonzero(~short))
    np.testing.assert_array_equal(found["action"], store.read(["action"])["action"][rows])
    np.testing.assert_array_equal(found["observation"]["state"], store.read(["state"])["state"][rows[:, :To]])


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_streamed_windows_travel_to_processes_that_are_not_forked(images, method):
    windows = image_windows(images, memory_bytes=10_000)
    stream = windows.ahead(iter(batch_indices(len(windows), 16, 0, 0)))
    next(stream)  # half-way through an epoch
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert_alike(pool.submit(windows.batch, np.arange(8)).result(timeout=120), windows.batch(np.arange(8)))


@pytest.mark.parametrize("horizon", [5, 12])
def test_streamed_windows_equal_those_in_memory(images, horizon):
    held, streamed = image_windows(images, horizon), image_windows(images, horizon, memory_bytes=10_000)
    assert held.streamed == [] and streamed.streamed == ["image"] and len(held.short) == (horizon == 12)
    for indices in batch_indices(len(held), 16, 0, 0):
        assert_alike(held.batch(indices), streamed.batch(indices))


@pytest.mark.parametrize("start", [0, 3])
def test_batches_read_ahead_are_the_streams_in_its_order_and_few_at_a_time(images, start):
    held, streamed = image_windows(images), image_windows(images, memory_bytes=10_000)
    stream = batch_indices(len(held), 16, seed=1, epoch=0)
    taken = 0

    def counted():
        nonlocal taken
        for indices in stream[start:]:
            taken += 1
            yield indices

    for number, indices in enumerate(streamed.ahead(counted(), lambda all: [all[0::2], all[1::2]], steps=2), start=1):
        assert np.array_equal(indices, stream[start + number - 1]) and taken <= number + 2
        if number != 2:  # a step may be left out
            assert_alike(streamed.batch(indices[0::2]), held.batch(indices[0::2]))
        assert_alike(streamed.batch(indices[1::2]), held.batch(indices[1::2]))
    assert number == len(stream) - start and not streamed._coming


def test_a_stream_that_is_dropped_leaves_no_thread(images):
    streamed = image_windows(images, memory_bytes=10_000)
    before = threading.active_count()
    stream = streamed.ahead(iter(batch_indices(len(streamed), 16, 0, 0)))
    next(stream)
    stream.close()
    assert threading.active_count() == before and not streamed._coming


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), r"image: a file is missing .*\(episode 0\)"),
        (lambda file: file.write_bytes(file.read_bytes()[:200]), r"image: cannot be read .*\(episode 0\)"),
        (
            lambda file: file.write_bytes(b"\x00" * 64 + file.read_bytes()[64:]),
            r"image: cannot be read .*\(episode 0\)",
        ),
    ],
)
def test_damage_is_named_while_streaming(images, spoil, said):
    streamed = image_windows(images, memory_bytes=10_000)
    spoil(Path(images.path) / "data" / "image" / "c" / "0" / "0" / "0" / "0")
    with pytest.raises(DamagedError, match=said):
        streamed.batch(np.arange(8))
    assert streamed.batch([len(streamed) - 1])["action"].shape == (1, 5, 2)


def test_windows_of_a_store_share_what_they_hold(images):
    train, validation = (image_windows(images, episodes=[e]) for e in (0, 1))
    assert train._held["image"] is validation._held["image"]


def test_somebody_elses_store_beyond_the_memory_is_refused(images, tmp_path, monkeypatch):
    from dopr_robot.datasets.formats import convert

    convert(images.path, tmp_path / "dp.zarr", write_as="diffusion_policy")
    monkeypatch.setattr("dopr_robot.datasets.windows.physical_bytes", lambda: 400_000)
    with pytest.raises(
        UserError, match=r"'image' takes 0\.0 GiB and cannot be streamed from this layout: dopr convert"
    ):
        image_windows(Store.open(tmp_path / "dp.zarr"), memory_bytes=10_000)


def test_numbers_that_do_not_fit_are_refused(store):
    with pytest.raises(UserError, match="must be at most horizon"):
        Windows(store, ["state"], n_obs_steps=2, horizon=4, n_action_steps=4)
    with pytest.raises(UserError, match="no key 'image'"):
        Windows(store, ["image"], n_obs_steps=1, horizon=1, n_action_steps=1)
    with pytest.raises(UserError, match="no episode 3"):
        Windows(store, ["state"], n_obs_steps=1, horizon=1, n_action_steps=1, episodes=[3])


def test_statistics_equal_numpy(store, monkeypatch):
    monkeypatch.setattr(sys.modules["dopr_robot.datasets.statistics"], "BLOCK_BYTES", 100)  # several blocks an episode
    monkeypatch.setattr(sys.modules["dopr_robot.datasets.statistics"], "PART_BYTES", 40)
    for episodes in (None, [2, 0]):
        rows = np.concatenate([store.episode(e)["state"] for e in (episodes or range(3))])
        found = statistics(store, ["state"], episodes)["state"]
        for name, expected in {
            "min": rows.min(0),
            "max": rows.max(0),
            "mean": rows.mean(0),
            "std": rows.std(0),
        }.items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_statistics_of_the_pusht_store(pusht_path):
    found = statistics(Store.open(pusht_path), ["action"])["action"]
    assert found["min"].min() >= 0 and found["max"].max() <= 512
    assert found["std"].dtype == np.float64 and (found["std"] > 50).all()


@given(
    n=st.integers(1, 300),
    batch=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    world=st.integers(1, 4),
)
def test_ranks_share_an_epoch_without_overlap(n, batch, seed, epoch, world):
    if n < world:
        with pytest.raises(UserError):
            batch_indices(n, batch, seed, epoch, 0, world)
        return
    ranks = [batch_indices(n, batch, seed, epoch, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = np.concatenate([np.concatenate(batches) for batches in ranks])
    assert len(np.unique(seen)) == len(seen) and seen.min() >= 0 and seen.max() < n
    assert len(seen) > n - world * batch
    again = batch_indices(n, batch, seed, epoch, world - 1, world)
    assert all(np.array_equal(a, b) for a, b in zip(again, ranks[-1], strict=True))


def test_epochs_and_seeds_differ():
    first = np.concatenate(batch_indices(100, 10, 0, 0))
    assert not np.array_equal(first, np.concatenate(batch_indices(100, 10, 0, 1)))
    assert not np.array_equal(first, np.concatenate(batch_indices(100, 10, 1, 0)))


@given(n=st.integers(0, 60), fraction=st.floats(0, 0.99), seed=st.integers(0, 3))
def test_split_is_a_partition(n, fraction, seed):
    train, validation = split_episodes(n, fraction, seed)
    assert sorted([*train, *validation]) == list(range(n))
    if n:
        assert len(train) >= 1
    if fraction > 0 and n > 1:
        assert len(validation) == min(max(round(n * fraction), 1), n - 1)

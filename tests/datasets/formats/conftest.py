from pathlib import Path

import numpy as np
import pytest

from dopr_robot.datasets import Attributes, Store


@pytest.fixture
def store(tmp_path):
    """Three episodes of numbers, a picture and a flag, with everything that a store can say."""
    about = Attributes(
        task="dopr_robot/PickPlace-v0",
        control_hz=10,
        observations=("state", "top"),
        licence="CC0-1.0",
        provenance=("made by hand",),
    )
    rng = np.random.default_rng(0)
    with Store.create(tmp_path / "source.zarr", about) as made:
        for index, length in enumerate((5, 3, 7)):
            arrays = {
                "state": rng.normal(size=(length, 3)),
                "top": rng.integers(0, 255, (length, 32, 48, 3), np.uint8),
                "action": rng.normal(size=(length, 2)).astype(np.float32),
                "pose": rng.normal(size=(length, 2, 3)).astype(np.float32),
                "force": rng.normal(size=length),
                "phase": rng.integers(0, 9, (length, 1)),
            }
            meta = {"name": f"take {index}", "initial": np.arange(3.0) + index}
            made.append(arrays, seed=40 + index, success=index != 1, meta=meta)
    return Store.open(tmp_path / "source.zarr")


@pytest.fixture(scope="session")
def assert_same_numbers():
    """Every key of one store is in another, to the bit and in its dtype; seeds, success and the rest of ``meta`` too."""

    def check(store, other):
        assert store.episode_ends.tolist() == other.episode_ends.tolist()
        for key, value in store.read().items():
            again = other.read([key])[key]
            assert again.dtype == value.dtype and again.shape == value.shape, key
            np.testing.assert_array_equal(again, value, err_msg=key)
        for name, value in store.meta.items():
            np.testing.assert_array_equal(other.meta[name], value, err_msg=name)

    return check


@pytest.fixture(scope="session")
def written_by_lerobot():
    return Path(__file__).parent / "written_by_lerobot"

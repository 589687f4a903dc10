"""Files whose parts are missing, of another type, or far larger than they look: one line that names the file, and nothing left."""

import json
import pickle
import zipfile

import h5py
import numpy as np
import pytest

from dopr_robot.datasets.formats import FORMATS, convert, find_format
from dopr_robot.datasets.formats.conversion import checked
from dopr_robot.errors import UserError


def robomimic(path):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}})
        for index in range(2):
            demo = data.create_group(f"demo_{index}")
            demo["actions"], demo["obs/object"], demo["rewards"] = np.zeros((3, 7)), np.zeros((3, 10)), np.zeros(3)


def robosuite(path):
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": "Panda"})
        demo = data.create_group("demo_1")
        demo["states"], demo["actions"] = np.zeros((3, 32)), np.zeros((3, 7))
        demo.attrs["model_file"] = "<mujoco/>"


def minari(path):
    with h5py.File(path, "w") as file:
        for index in range(2):
            episode = file.create_group(f"episode_{index}")
            episode["actions"], episode["observations"] = np.zeros((3, 2)), np.zeros((4, 5))
            episode["infos/success"] = np.zeros(4, bool)


def d4rl(path):
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((6, 5)), np.zeros((6, 2))
        file["terminals"], file["metadata/x"] = np.eye(6, dtype=bool)[3], np.zeros(3)


def put(name, value):
    """Another data set, or attribute (``node@name``), in the place of one."""

    def spoil(file):
        node, _, attribute = name.partition("@")
        if attribute:
            file[node].attrs[attribute] = value
            return
        if node in file:
            del file[node]
        if isinstance(value, dict):
            file.create_dataset(node, **value)
        elif value is not None:
            file[node] = value

    return spoil


def nest(file):
    """A group that holds itself, under two names."""
    demo = file["data/demo_0"]
    demo["again"], demo["more"] = demo, demo


ZEROS = {"shape": (10**9, 7), "dtype": "f8", "chunks": (1000, 7), "compression": "gzip"}
BIG_CHUNK = {"shape": (6, 7), "maxshape": (None, 7), "dtype": "f8", "chunks": (2_000_000, 7), "compression": "gzip"}

DAMAGE = [
    (robomimic, put("data@env_args", "[1]"), "env_args is list: a JSON object is expected"),
    (robomimic, put("data@env_args", json.dumps({"type": 1, "env_kwargs": [1]})), "env_kwargs of env_args is list"),
    (robomimic, put("data@env_args", np.arange(3)), "attribute env_args of data is no JSON"),
    (robomimic, put("data@demonstrations", "[" * 30_000), "attribute demonstrations of data is no JSON"),
    (robomimic, put("data@demonstrations", json.dumps({"control_hz": "fast"})), "control_hz is 'fast'"),
    (robomimic, put("data/demo_0@seed", "many"), "its content is damaged"),
    (robomimic, put("data/demo_0@success", np.zeros(3)), "its content is damaged"),
    (robomimic, put("data/demo_0", np.zeros(3)), "found demo_0, demo_1 in data; expected"),
    (robomimic, put("data/demo_0/actions", np.float64(1)), "actions: has no step"),
    (robomimic, put("data/demo_0/actions", np.zeros((0, 7))), "actions: has no step"),
    (robomimic, put("data/demo_0/obs/object", np.zeros((3, 10), "c16")), "numbers or texts were expected"),
    (robomimic, put("mask", np.arange(3)), "expected lists of demonstrations"),
    (robomimic, put("mask/train", np.float64(1)), "its content is damaged"),
    (robomimic, put("data/²/actions", np.zeros((3, 7))), "in data/²; expected"),
    (robomimic, nest, "groups lie in one another"),
    (robosuite, put("data@env_info", "[]"), "expected env_info or env_args as JSON"),
    (robosuite, put("data@env_info", "{"), "attribute env_info of data is no JSON"),
    (robosuite, put("data/demo_1@model_file", "lift.xml"), "model_file is 'lift.xml': the model's XML is expected"),
    (robosuite, put("data/demo_1/states", np.zeros(3)), r"states: is float64\[3\]: a vector a step is expected"),
    (robosuite, put("data/demo_1/states", np.array([["a"]] * 3, "S")), "a vector a step is expected"),
    (minari, put("episode_0", np.zeros(3)), "expected episode_<n>"),
    (minari, put("episode_0/actions", np.float64(1)), "actions: has no step"),
    (minari, put("episode_0/observations", np.float64(1)), "observations: has 0 steps and actions 3"),
    (minari, lambda file: (file["episode_0"].pop("actions"), put("episode_0/actions/a", np.zeros(3))(file)), "actions: is a group"),
    (d4rl, put("terminals", np.float64(1)), "terminals: has 0 steps and actions 6"),
    (d4rl, put("terminals", np.array(["x"] * 6, "S")), "a flag a step is expected"),
    (d4rl, put("terminals", np.zeros((6, 2), bool)), "a flag a step is expected"),
    (d4rl, put("actions", np.zeros(6)), r"actions: is of shape \[6\]"),
    (d4rl, put("actions", np.zeros((0, 2))), "has 6 steps and actions 0"),
    (d4rl, put("metadata/x", ZEROS), "metadata/x: takes .* GiB .* nothing of it is read|declares .* GiB of which its file holds 0"),
    (d4rl, put("observations", BIG_CHUNK), "observations: has chunks of 0.1 GiB .* nothing of it is read"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "spoil", "said"), DAMAGE)
def test_damage_is_told_in_one_line_and_nothing_is_left(tmp_path, make, spoil, said):
    path = tmp_path / "file.hdf5"
    make(path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(UserError, match=said) as caught:
        convert(path, tmp_path / "s.zarr", read_as=make.__name__)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def texts(file):
    for index in range(2):
        put(f"episode_{index}/infos/success", np.array(["x"] * 4, "S"))(file)


@pytest.mark.parametrize(
    ("make", "spoil"),
    [
        (robomimic, put("data@env_args", json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": None}))),
        (robomimic, put("data@env_args", json.dumps({"env_kwargs": {"controller_configs": {"body_parts": 3}}}))),
        (minari, put("episode_0@seed", np.array(["x"], "S"))),
        (minari, texts),
    ],
)
def test_what_is_only_odd_is_read(tmp_path, make, spoil):
    path = tmp_path / "file.hdf5"
    make(path)
    with h5py.File(path, "r+") as file:
        spoil(file)
    assert convert(path, tmp_path / "s.zarr") == 2


@pytest.mark.parametrize("make", [robomimic, minari, d4rl])
def test_bytes_that_were_changed_or_cut_off(tmp_path, make):
    """A read gives the numbers or one line; what a format is, is found out without a fall."""
    path, out, rng = tmp_path / "file.hdf5", tmp_path / "s.zarr", np.random.default_rng(0)
    make(path)
    whole = path.read_bytes()
    for index in range(12):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=4):
            content[place] = rng.integers(256)
        path.write_bytes(content[: len(content) // 2] if index == 0 else content)
        try:
            FORMATS[make.__name__].recognises(path)
            list(checked(FORMATS[make.__name__].read(path), path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert not out.exists()


class Calls:
    def __init__(self, what, *arguments):
        self.what = what, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "episodes",
    [
        [{"observations": np.zeros((2, 1)), "actions": Calls(np.ndarray, (10**12,))}],
        [{"observations": np.zeros((2, 1)), "actions": [[1], [1, 2]]}],
        [{"observations": np.zeros((2, 1)), "actions": 3.0}],
        [{"observations": np.zeros((2, 1)), "actions": {"a": np.zeros(2)}}],
        [{"observations": {"a": np.zeros((2, 1)), "a/b": np.zeros(2)}, "actions": np.zeros((2, 1))}],
        [{"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "..": np.zeros(2)}],
        [{"observations": np.zeros((2, 1)), "actions": np.zeros((2, 1)), "x": np.zeros(n + 3)} for n in range(2)],
    ],
)
def test_a_pickle_of_other_things(tmp_path, episodes):
    path = tmp_path / "demos.pickle"
    path.write_bytes(pickle.dumps(episodes))
    with pytest.raises(UserError) as caught:
        convert(path, tmp_path / "s.zarr", read_as="dapg")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_archive_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/.zgroup", "{}" * 500)
    content = path.read_bytes()
    path.write_bytes(content[:10] + content[200:])
    with pytest.raises(UserError, match=r"a\.zarr\.zip: "):
        find_format(path)

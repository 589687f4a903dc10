"""robomimic's HDF5: a file after its description, there and back; and robomimic's own reader on our export."""

import json

import h5py
import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.datasets import Store, check
from dopr_robot.datasets.formats import convert
from dopr_robot.errors import UserError
from dopr_robot.policies.torchvision import make_importable

ENV_ARGS = {
    "env_name": "Lift",
    "type": 1,
    "env_version": "1.4.1",
    "env_kwargs": {
        "control_freq": 20,
        "reward_shaping": False,
        "controller_configs": {"type": "OSC_POSE", "control_delta": True},
    },
}


@pytest.fixture
def robomimic_file(tmp_path):
    """Everything that robomimic.github.io/docs/datasets/overview.html describes, and what MimicGen and others add."""
    rng = np.random.default_rng(0)
    path = tmp_path / "low_dim.hdf5"
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        lengths = {"demo_0": 4, "demo_1": 6, "demo_10": 3, "demo_2": 5}
        for name, length in lengths.items():
            demo = data.create_group(name)
            demo["actions"] = rng.uniform(-1, 1, (length, 7))
            demo["states"] = rng.normal(size=(length, 32))
            demo["rewards"] = np.eye(length)[-1] * (name != "demo_2")
            demo["dones"] = np.eye(length, dtype=np.int64)[-1]
            for group in ("obs", "next_obs"):
                demo[f"{group}/object"] = rng.normal(size=(length, 10))
                demo[f"{group}/robot0_eef_pos"] = rng.normal(size=(length, 3)).astype(np.float32)
                demo[f"{group}/agentview_image"] = rng.integers(0, 255, (length, 8, 8, 3), np.uint8)
            demo["datagen_info/gripper"] = rng.normal(size=(length, 1))
            demo["src_demo_inds"] = np.arange(length % 3)
            demo.attrs["num_samples"] = length
            demo.attrs["model_file"] = f"<mujoco model='{name}'/>"
            demo.attrs["scales"] = np.array([0.5, np.nan], np.float32)
        data.attrs["total"] = sum(lengths.values())
        data.attrs["env_args"] = json.dumps(ENV_ARGS, indent=4)
        data.attrs["collector"] = np.int32(7)
        file["mask/train"] = np.array(["demo_0", "demo_1", "demo_10"], "S")
        file["mask/valid"] = np.array(["demo_2"], "S")
        file["mask/20_percent"] = np.array([], "S8")
        file["extra/table"] = rng.normal(size=(9, 9))
        file.attrs["site"] = "lab"
    return path


def content(node):
    """Everything in a file: values, dtypes, attributes."""
    found = {("", name): np.asarray(value) for name, value in node.attrs.items()}

    def visit(name, child):
        found.update({(name, key): np.asarray(value) for key, value in child.attrs.items()})
        if isinstance(child, h5py.Dataset):
            found[name] = child[()]

    node.visititems(visit)
    return found


def test_everything_in_a_file_comes_back(robomimic_file, tmp_path):
    before = robomimic_file.read_bytes()
    convert(robomimic_file, tmp_path / "s.zarr")
    convert(tmp_path / "s.zarr", tmp_path / "back.hdf5", write_as="robomimic")
    with h5py.File(robomimic_file) as file, h5py.File(tmp_path / "back.hdf5") as back:
        old, new = content(file), content(back)
    for name, value in old.items():
        if "mask" in name and not len(value):
            assert not len(new[name])
            continue
        np.testing.assert_array_equal(new[name], value, err_msg=str(name))
        assert np.asarray(new[name]).dtype == np.asarray(value).dtype, name
    assert set(new) - set(old) == {("data", "demonstrations")}
    assert robomimic_file.read_bytes() == before


def test_what_robomimic_says_is_understood(robomimic_file, tmp_path):
    convert(robomimic_file, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert store.meta["name"].tolist() == ["demo_0", "demo_1", "demo_2", "demo_10"]
    assert store.episode_lengths.tolist() == [4, 6, 5, 3]
    assert store.success.tolist() == [1, 1, 0, 1], "a sparse reward of 1 is robosuite's success"
    about = store.attributes
    assert about.observations == ("agentview_image", "object", "robot0_eef_pos")
    assert (about.control_hz, about.simulator, about.simulator_version) == (20, "robosuite", "1.4.1")
    assert (about.action.meaning, about.action.absolute) == ("end-effector pose", False)
    assert store.meta["mask/train"].tolist() == [True, True, False, True]
    assert store.keys["robot0_eef_pos"].dtype == np.float32 and "next_obs/object" in store.keys
    assert check(store.path).damage == []


def test_the_task_and_its_success_are_those_of_the_file(robomimic_file, tmp_path):
    words = ["convert", str(robomimic_file), str(tmp_path / "s.zarr")]
    assert main(words) == 0
    store = Store.open(tmp_path / "s.zarr")
    assert store.attributes.task == "robosuite/Lift-v0"
    assert store.attributes.observations == ("agentview", "object", "robot0_eef_pos"), (
        "a camera by the task's name for it"
    )
    assert store.attributes.action.low == (-1.0,) * 7 and store.attributes.action.meaning == "end-effector pose"
    with h5py.File(robomimic_file, "r+") as file:
        options = {**ENV_ARGS["env_kwargs"], "reward_scale": 2.0}
        file["data"].attrs["env_args"] = json.dumps({**ENV_ARGS, "env_name": "Door", "env_kwargs": options})
    convert(robomimic_file, tmp_path / "half.zarr")
    assert Store.open(tmp_path / "half.zarr").success.tolist() == [0, 0, 0, 0], "a reward of 1 is half of the full one"
    assert Store.open(tmp_path / "half.zarr").attributes.task is None
    convert(robomimic_file, tmp_path / "said.zarr", success_key="rewards")
    assert Store.open(tmp_path / "said.zarr").success.tolist() == [1, 1, 0, 1]
    convert(tmp_path / "said.zarr", tmp_path / "back.hdf5", write_as="robomimic")
    convert(tmp_path / "back.hdf5", tmp_path / "again.zarr")
    assert Store.open(tmp_path / "again.zarr").success.tolist() == [1, 1, 0, 1], "what was said survives an export"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: f["data/demo_1"].pop("obs"), r"found .*actions.* in data/demo_1; expected"),
        (lambda f: f["data/demo_1"].pop("actions"), r"in data/demo_1; expected data/demo_<n> with actions"),
        (
            lambda f: shorten(f["data/demo_10"], "obs/object"),
            r"obs/object: has 2 steps and actions 3 \(episode demo_10\)",
        ),
        (lambda f: shorten(f["data/demo_1"], "rewards"), r"rewards: has 5 steps and actions 6 \(episode demo_1\)"),
        (lambda f: f["data/demo_2/obs"].pop("object"), r"obs/object: is missing \(episode demo_2\)"),
        (lambda f: f["data/demo_2"].pop("src_demo_inds"), None),
        (lambda f: f["data"].attrs.__setitem__("env_args", "{"), "env_args of data is no JSON"),
        (
            lambda f: f.__setitem__("mask/more", np.array(["demo_9"], "S")),
            "mask/more: lists 'demo_9', which is not in data",
        ),
        (lambda f: outside(f["data/demo_1"]), r"data/demo_1/obs/secret: leads into another file \(/etc/passwd\)"),
        (
            lambda f: recast(f["data/demo_2"]),
            r"object: is float32\[10\] a step, the first episode's float64\[10\] \(episode 2\)",
        ),
        (lambda f: f["data"].clear(), "found no demonstration in data"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(robomimic_file, tmp_path, spoil, said):
    with h5py.File(robomimic_file, "r+") as file:
        spoil(file)
    if said is None:  # a data set that no step needs may be lacking
        convert(robomimic_file, tmp_path / "s.zarr", read_as="robomimic")
        return
    with pytest.raises(UserError, match=said) as caught:
        convert(robomimic_file, tmp_path / "s.zarr", read_as="robomimic")
    assert str(robomimic_file) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["low_dim.hdf5"]


def shorten(group, name):
    value = group[name][:-1]
    del group[name]
    group[name] = value


def recast(group):
    value = group["obs/object"][()].astype(np.float32)
    del group["obs/object"]
    group["obs/object"] = value


def outside(group):
    group["obs/secret"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.sim
def test_robomimics_own_reader_opens_an_export(store, tmp_path):
    make_importable()
    from robomimic.utils.dataset import SequenceDataset
    from robomimic.utils.file_utils import get_env_metadata_from_dataset

    out = tmp_path / "out.hdf5"
    convert(store.path, out, write_as="robomimic")
    assert get_env_metadata_from_dataset(str(out))["env_name"] == "dopr_robot/PickPlace-v0"
    data = SequenceDataset(
        str(out),
        obs_keys=("state", "top"),
        dataset_keys=("actions", "rewards", "dones"),
        frame_stack=1,
        seq_length=4,
        pad_seq_length=True,
        hdf5_cache_mode=None,
        load_next_obs=False,  # as its behaviour cloning has it
    )
    assert len(data) == store.num_steps
    row = 0
    for index in range(3):
        episode = store.episode(index)
        length = len(episode["action"])
        for step in range(length):
            seen = np.minimum(step + np.arange(4), length - 1)
            item = data[row]
            np.testing.assert_array_equal(item["actions"], episode["action"][seen])
            np.testing.assert_array_equal(item["obs"]["state"], episode["state"][seen])
            np.testing.assert_array_equal(item["obs"]["top"], episode["top"][seen])
            assert item["rewards"][0] == float(step == length - 1 and index != 1)
            row += 1

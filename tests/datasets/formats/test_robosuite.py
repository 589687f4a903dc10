"""robosuite's raw demonstrations: observations rebuilt by replay equal those that were seen."""

import json

import h5py
import numpy as np
import pytest

from dopr_robot.datasets import Store, check
from dopr_robot.datasets.formats import convert, find_format
from dopr_robot.envs import get_task, recorded_task
from dopr_robot.errors import UserError


@pytest.mark.sim
def test_robosuites_own_collector(tmp_path, monkeypatch):
    import robosuite
    from robosuite.scripts.collect_human_demonstrations import gather_demonstrations_as_hdf5
    from robosuite.wrappers import DataCollectionWrapper

    options = {"env_name": "Lift", "robots": ["Panda"]}
    blind = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
    env = DataCollectionWrapper(robosuite.make(**options, **blind), str(tmp_path / "raw"))
    monkeypatch.setattr(env.env, "_check_success", lambda: True)  # or the collector drops the episode
    rng = np.random.default_rng(0)
    seen, actions = [], []
    env.reset()
    for _ in range(6):
        env.sim.forward()  # after a step, positions lag by a substep
        seen.append(env.env._get_observations(force_update=True))
        actions.append(rng.uniform(-1, 1, env.action_dim))
        env.step(actions[-1])
    env.close()
    (tmp_path / "out").mkdir()
    gather_demonstrations_as_hdf5(str(tmp_path / "raw"), str(tmp_path / "out"), json.dumps(options))
    file = tmp_path / "out" / "demo.hdf5"
    assert find_format(file) == "robosuite"
    convert(file, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    episode = store.episode(0)
    np.testing.assert_array_equal(episode["action"], actions)
    for key in ("robot0_eef_pos", "robot0_joint_pos", "robot0_gripper_qvel"):
        np.testing.assert_allclose(episode[key], [each[key] for each in seen], atol=1e-9)
    np.testing.assert_allclose(episode["object"], [each["object-state"] for each in seen], atol=1e-9)
    assert store.success.tolist() == [0] and store.attributes.control_hz == 20
    convert(tmp_path / "s.zarr", tmp_path / "robomimic.hdf5", write_as="robomimic")
    with h5py.File(tmp_path / "robomimic.hdf5") as exported:
        assert json.loads(exported["data"].attrs["env_args"])["env_name"] == "Lift"
        assert "<mujoco" in exported["data/demo_1"].attrs["model_file"]


@pytest.mark.sim
def test_human_demonstrations_of_an_older_robosuite(human_lift, tmp_path):
    assert find_format(human_lift) == "robosuite"
    convert(human_lift, tmp_path / "s.zarr", find_task=recorded_task)
    store = Store.open(tmp_path / "s.zarr")
    assert store.episode_lengths.tolist() == [482, 510, 392] and store.success.tolist() == [1, 1, 1]
    about = store.attributes
    assert (about.action.meaning, about.action.absolute, about.control_hz) == ("end-effector pose", False, 20)
    assert about.task == "robosuite/Lift-v0" and set(about.observations) == set(get_task(about.task).observations)
    assert about.source.startswith("robosuite 1.4.0, Lift") and "rebuilt" in about.provenance[0]
    with h5py.File(human_lift) as file:
        for index, name in enumerate(("demo_1", "demo_2", "demo_3")):
            np.testing.assert_array_equal(store.episode(index)["action"], file[f"data/{name}/actions"][()])
            states = file[f"data/{name}/states"][()]
            # A state is the time, then the positions: seven joints, two fingers, the cube.
            np.testing.assert_array_equal(store.episode(index)["robot0_joint_pos"], states[:, 1:8])
            np.testing.assert_array_equal(store.episode(index)["object"][:, :3], states[:, 10:13])
    for index in range(3):
        last = store.episode(index)
        assert np.linalg.norm(last["robot0_eef_pos"][-1] - last["object"][-1, :3]) < 0.04, "the cube is in the gripper"
    assert check(store.path).damage == []


@pytest.mark.sim
def test_a_model_that_differs_is_refused(human_lift, tmp_path):
    with h5py.File(human_lift, "r+") as file:
        demo = file["data/demo_1"]
        demo.attrs["model_file"] = demo.attrs["model_file"].replace(
            '<body name="robot0_base" pos="', '<body name="robot0_base" pos="1', 1
        )
    with pytest.raises(
        UserError,
        match=r"robosuite 1\.4\.0 recorded them and .* is installed, whose model differs: .*\(episode demo_1\)",
    ):
        convert(human_lift, tmp_path / "s.zarr")
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo.hdf5"]


def test_without_robosuite_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("dopr_robot.datasets.formats.robosuite.version", no_version)
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file["data/demo_1/states"], file["data/demo_1/actions"] = np.zeros((3, 32)), np.zeros((3, 7))
        file["data/demo_1"].attrs["model_file"] = "<mujoco/>"
        file["data"].attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": "Panda"})
    with pytest.raises(UserError, match=r"pip install 'dopr-robot\[robosuite\]'"):
        convert(tmp_path / "demo.hdf5", tmp_path / "s.zarr")


def no_version(name):
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)

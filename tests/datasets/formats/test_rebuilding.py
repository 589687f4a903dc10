"""Observations rebuilt by replay in the task itself: what a policy is trained on is what it is shown when it is evaluated."""

import json
import re

import h5py
import numpy as np
import pytest

from dopr_robot import Store, convert
from dopr_robot.cli import main
from dopr_robot.datasets.formats import robosuite
from dopr_robot.datasets.recording import unfinished
from dopr_robot.envs import make
from dopr_robot.errors import UserError

CAMERAS = ["robot0_eye_in_hand", "agentview"]


def write_raw(path, episodes, model, version, **info):
    """A file as robosuite writes it: states and actions by episode."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", "robots": "Panda", **info})
        data.attrs["repository_version"] = version
        for index, (states, actions) in enumerate(episodes):
            demo = data.create_group(f"demo_{index}")
            demo["states"], demo["actions"] = states, actions
            demo.attrs["model_file"] = model


@pytest.mark.sim
def test_what_is_rebuilt_is_what_the_task_shows(tmp_path, monkeypatch):
    import robosuite as package

    env = make("robosuite/Lift-v0", cameras=CAMERAS, camera_size=[32, 40])
    inside = env.unwrapped.env
    model = inside.sim.model.get_xml()
    inside.reset_from_xml_string(model)  # six digits of every number, as the file has it
    rng, episodes, seen = np.random.default_rng(0), [], []
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        states, actions, shown = [], [], []
        for _ in range(4 + seed):
            states.append(inside.sim.get_state().flatten())
            shown.append(observation)
            actions.append(rng.uniform(-1, 1, 7).astype(np.float32))
            observation, *_ = env.step(actions[-1])
        episodes.append((np.array(states), np.array(actions)))
        seen.append(shown)
    env.close()
    raw, out = tmp_path / "demo.hdf5", tmp_path / "seen.zarr"
    write_raw(raw, episodes, model, package.__version__)
    stopped = iter([False, True])
    extend = Store.extend

    def stop(store, *args, **kwargs):
        if next(stopped):
            raise KeyboardInterrupt
        extend(store, *args, **kwargs)

    monkeypatch.setattr(Store, "extend", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(raw, out, cameras=CAMERAS, size=(32, 40))
    monkeypatch.setattr(Store, "extend", extend)
    assert not out.exists() and Store.open(unfinished(out)).num_episodes == 1
    with pytest.raises(UserError, match="is the beginning of something else"):
        convert(raw, out, cameras=CAMERAS[:1], size=(32, 40))
    assert convert(raw, out, cameras=CAMERAS, size=(32, 40)) == 2
    assert not unfinished(out).exists()
    store = Store.open(out)
    assert store.attributes.options == {"cameras": CAMERAS, "camera_size": [32, 40]}
    assert store.attributes.task == "robosuite/Lift-v0" and store.attributes.control_hz == 20
    assert set(store.keys) == {*seen[0][0], "action", "states"} == {*store.attributes.observations, "action", "states"}
    for index, shown in enumerate(seen):
        episode = store.episode(index)
        np.testing.assert_array_equal(episode["action"], episodes[index][1])
        for key in shown[0]:
            live = np.stack([each[key] for each in shown])
            assert episode[key].dtype == live.dtype
            np.testing.assert_array_equal(episode[key], live, err_msg=f"{key}, episode {index}")


@pytest.mark.sim
def test_an_older_robosuites_cubes_are_shown_in_their_sizes(human_lift):
    recording, sizes = robosuite.recorded(human_lift), []
    env = robosuite._make(human_lift, "Lift", {"robots": "Panda"})
    for episode in recording.episodes:
        robosuite.load_model(env, episode, "1.4.0", str(human_lift))
        written = re.search(r'name="cube_g0_vis" size="([^"]*)"', episode.meta[robosuite.MODEL])
        sizes.append(env.sim.model.geom_size[env.sim.model.geom_name2id("cube_g0_vis")].tolist())
        assert sizes[-1] == [float(word) for word in written[1].split()]
    assert len({tuple(size) for size in sizes}) == 3
    env.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["store.zarr", "--cameras", "agentview"],
            "states in a file of robosuite or robomimic, and store.zarr is a store",
        ),
        (["raw.hdf5", "--size", "84"], "--size 84 is of pictures"),
        (["raw.hdf5", "--cameras", "agentview", "--to", "robomimic"], "--cameras makes a store"),
        (["raw.hdf5", "--cameras", "agentveiw"], "did you mean 'agentview'"),
        (["raw.hdf5", "--cameras", "overview", "--task", "PickPlace"], "one of robosuite's tasks"),
        (["raw.hdf5", "--cameras", "agentview", "--size", "0"], "camera_size=0 has to be a whole number"),
    ],
)
def test_what_can_not_be_rebuilt_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    write_raw("raw.hdf5", [(np.zeros((3, 32)), np.zeros((3, 7)))], "<mujoco/>", "1.5.2")
    with Store.create("store.zarr") as store:
        store.append({"action": np.zeros((3, 7)), "states": np.zeros((3, 32))})
    before = sorted(tmp_path.iterdir())
    assert main(["convert", words[0], "out.zarr", *words[1:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert sorted(tmp_path.iterdir()) == before

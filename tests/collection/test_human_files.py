"""People's demonstrations of Adroit's hand and the kitchen, laid out as DAPG, D4RL and Minari do: from the file to an evaluated policy."""

import json
import pickle

import h5py
import numpy as np
import pytest

from dopr_robot import UserError, check_store, convert, evaluate, train
from dopr_robot.collection import replaying
from dopr_robot.datasets import Store
from dopr_robot.datasets.recording import read_store
from dopr_robot.envs import get_task, make

pytestmark = pytest.mark.sim
STEPS, EPISODES = 12, 3


def recorded(task: str, steps: int = STEPS) -> list[dict]:
    """Episodes in the package's own environment, each from a state that no seed gives."""
    import gymnasium
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make(task, max_episode_steps=400).unwrapped
    random, episodes = np.random.default_rng(0), []

    def action():
        return random.uniform(-0.3, 0.3, env.action_space.shape).astype(np.float32)

    for seed in range(EPISODES):
        env.reset(seed=seed)
        for _ in range(5):
            env.step(action())
        start = env.get_env_state()  # with more in it than set_env_state takes
        taken = {part: start[part] for part in get_task(task).start}
        observation, _ = env.reset(options={"initial_state_dict": taken})
        rows = {name: [] for name in ("observations", "actions", "rewards", "success", "states")}
        for _ in range(steps):
            rows["observations"].append(observation)
            rows["states"].append(env.get_env_state())
            rows["actions"].append(action())
            observation, reward, _, _, info = env.step(rows["actions"][-1])
            rows["rewards"].append(reward)
            rows["success"].append(bool(info["success"]))
        episodes.append({**{name: rows[name] for name in rows}, "start": start, "last": observation})
    env.close()
    return episodes


def as_dapg(path, task, steps=STEPS):
    files = [
        {
            "observations": np.array(each["observations"]),
            "actions": np.array(each["actions"]),
            "rewards": np.array(each["rewards"]),
            "env_infos": {"goal_achieved": np.array(each["success"])},
            "init_state_dict": each["start"],
        }
        for each in recorded(task, steps)
    ]
    path = path / "demos.pickle"
    path.write_bytes(pickle.dumps(files))
    return path, "dapg"


def as_d4rl(path, task):
    episodes = recorded(task)
    path = path / "human-v1.hdf5"
    with h5py.File(path, "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = np.concatenate([each[name] for each in episodes])
        for part in episodes[0]["start"]:
            file[f"infos/{part}"] = np.array([state[part] for each in episodes for state in each["states"]])
        file["terminals"] = np.zeros(EPISODES * STEPS, bool)
        file["timeouts"] = np.tile(np.arange(STEPS) == STEPS - 1, EPISODES)
    return path, None


def as_minari(path, task):
    (path / "data").mkdir()
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for index, each in enumerate(recorded(task)):
            group = file.create_group(f"episode_{index}")
            group.attrs.update({"id": index, "seed": 2**40 + index, "total_steps": STEPS})
            for part in get_task(task).start:
                group.attrs[f"options/initial_state_dict/{part}"] = each["start"][part]
            group["observations"] = np.array([*each["observations"], each["last"]])
            for name in ("actions", "rewards"):
                group[name] = np.array(each[name])
            group["terminations"] = np.zeros(STEPS, bool)
            group["truncations"] = np.arange(STEPS) == STEPS - 1
            group["infos/success"] = np.array([False, *each["success"]])
    metadata = {"dataset_id": "D4RL/x/human-v2", "env_spec": json.dumps({"id": task}), "data_format": "hdf5"}
    (path / "data" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    return path, None


LAYOUTS = {"dapg": as_dapg, "d4rl": as_d4rl, "minari": as_minari}


def learned(store, tmp_path, monkeypatch):
    """Two steps of training on a store, and one episode of what came of it."""
    monkeypatch.chdir(tmp_path)
    small = {"policy.network.dim": 16, "policy.network.layers": 1}
    run = train(store=str(store), policy="flow_transformer", steps=2, batch_size=4, **small)
    return evaluate(run, episodes=1, horizons=[3], video=0)


@pytest.mark.parametrize(
    ("layout", "hand", "trained"),
    [("dapg", "Hammer", True), ("d4rl", "Door", True), ("minari", "Relocate", True), ("dapg", "Pen", False)],
)
def test_a_hands_file_is_of_its_task_and_begins_where_it_began(tmp_path, monkeypatch, layout, hand, trained):
    """And what is trained on it is evaluated."""
    task = f"AdroitHand{hand}-v1"
    source, named = LAYOUTS[layout](tmp_path, task)
    assert convert(source, tmp_path / "s.zarr", read_as=named) == EPISODES
    store = Store.open(tmp_path / "s.zarr")
    assert (store.attributes.task, store.attributes.observations) == (task, ("state",))
    for part in get_task(task).start:
        assert f"init_state_dict/{part}" in store.meta
    report = check_store(store.path)
    assert not report.damage
    assert (report.replays.episodes, report.replays.compared) == (EPISODES, ("state",)), report
    assert not [each for each in report.warnings if "replay" in each.what], report
    if trained:
        results = learned(tmp_path / "s.zarr", tmp_path, monkeypatch)
        assert (results.task, len(results.episodes)) == (task, 1)


def test_the_kitchens_file_is_trained_on_and_evaluated(tmp_path, monkeypatch):
    """Minari's: the observation lies beside what is to be reached and what is reached, of each part of the kitchen."""
    import gymnasium
    import gymnasium_robotics

    gymnasium.register_envs(gymnasium_robotics)
    env = gymnasium.make("FrankaKitchen-v1", tasks_to_complete=["microwave", "kettle", "light switch", "slide cabinet"])
    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        seen = [env.reset(seed=0)[0]]
        actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, 9))
        seen += [env.step(action)[0] for action in actions]
        for index in range(2):
            group = file.create_group(f"episode_{index}")
            group["observations/observation"] = np.array([each["observation"] for each in seen])
            for part in ("achieved_goal", "desired_goal"):
                for name in seen[0][part]:
                    group[f"observations/{part}/{name}"] = np.array([each[part][name] for each in seen])
            group["actions"], group["rewards"] = actions, np.zeros(STEPS)
            group["terminations"] = group["truncations"] = np.zeros(STEPS, bool)
    env.close()
    about = {"env_spec": json.dumps({"id": "FrankaKitchen-v1"}), "data_format": "hdf5"}
    (tmp_path / "metadata.json").write_text(json.dumps(about), encoding="utf-8")
    convert(tmp_path, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert (store.attributes.task, store.attributes.observations) == ("FrankaKitchen-v1", ("state",))
    assert "achieved_goal/light switch" in store.keys  # kept, and no observation
    assert learned(tmp_path / "s.zarr", tmp_path, monkeypatch).task == "FrankaKitchen-v1"


def test_a_start_that_is_not_the_tasks_is_refused_in_one_line():
    env = make("AdroitHandDoor-v1")
    with pytest.raises(UserError, match=r"takes .*qpos \[30\]"):
        env.reset(options={"initial_state_dict": {"qpos": np.zeros(7)}})
    env.close()


def test_an_episode_beyond_the_tasks_limit_is_replayed_to_its_end(tmp_path):
    """People take longer than the task's 200 steps."""
    source, named = as_dapg(tmp_path, "AdroitHandDoor-v1", steps=210)
    convert(source, tmp_path / "s.zarr", read_as=named)
    with replaying(Store.open(tmp_path / "s.zarr").attributes, longest=210) as replay:
        episode = next(iter(read_store(Store.open(tmp_path / "s.zarr")).episodes))
        episode.arrays["state"][209] += 1
        assert replay(episode).drift["state"] == pytest.approx(1, abs=1e-3)

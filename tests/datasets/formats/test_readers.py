"""Files that somebody else's program wrote, and files made after a format's published description."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import gymnasium
import h5py
import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.datasets import Store
from dopr_robot.datasets.formats import FORMATS, convert, find_format
from dopr_robot.envs import get_task, recorded_task
from dopr_robot.errors import UserError


class Reach(gymnasium.Env):
    """A Dict observation, a Box action, `success` in the infos."""

    observation_space = gymnasium.spaces.Dict(
        {"arm": gymnasium.spaces.Box(-9, 9, (3,), np.float32), "goal": gymnasium.spaces.Box(-9, 9, (2,))}
    )
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 3 + (seed or 0) % 3
        return self.observation_space.sample(), {"success": False}

    def step(self, action):
        self.left -= 1
        return self.observation_space.sample(), 0.5, self.left == 0, False, {"success": self.left == 0}


def test_minaris_own_collector(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    import minari

    gymnasium.register("Reach-v0", f"{__name__}:Reach")
    try:
        env = minari.DataCollector(gymnasium.make("Reach-v0"), record_infos=True)
        for seed in (4, 5):
            env.reset(seed=seed)
            done = False
            while not done:
                *_, done, _, _ = env.step(env.action_space.sample())
        with pytest.warns():  # that the data set has no author
            env.create_dataset("test/reach-v0", algorithm_name="random")
        theirs = minari.load_dataset("test/reach-v0")
    finally:
        gymnasium.registry.pop("Reach-v0")
    folder = tmp_path / "minari" / "test" / "reach-v0"
    assert find_format(folder) == find_format(folder / "data" / "main_data.hdf5") == "minari"
    convert(folder, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert store.attributes.task == "Reach-v0" and store.attributes.observations == ("arm", "goal")
    assert store.seeds.tolist() == [4, 5] and store.success.tolist() == [1, 1]
    assert store.attributes.carried["minari"]["metadata"]["algorithm_name"] == "random"
    for index, episode in enumerate(theirs.iterate_episodes()):
        mine = store.episode(index)
        for key, value in {
            "action": episode.actions,
            "arm": episode.observations["arm"][:-1],
            "goal": episode.observations["goal"][:-1],
            "rewards": episode.rewards,
            "terminations": episode.terminations,
            "infos/success": episode.infos["success"][:-1],
        }.items():
            np.testing.assert_array_equal(mine[key], value, err_msg=key)
            assert mine[key].dtype == value.dtype
        np.testing.assert_array_equal(store.meta["final/arm"][index], episode.observations["arm"][-1])


@pytest.fixture
def d4rl_file(tmp_path):
    """As github.com/Farama-Foundation/D4RL/wiki/Tasks describes: three episodes, the last one cut off."""
    rng = np.random.default_rng(0)
    path = tmp_path / "pen-human-v1.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = rng.normal(size=(12, 5)).astype("f4"), rng.normal(size=(12, 2))
        file["rewards"], file["infos/qpos"] = rng.normal(size=12), rng.normal(size=(12, 4))
        file["terminals"], file["timeouts"] = np.eye(12, dtype=bool)[4], np.eye(12, dtype=bool)[9]
        file["metadata/policy/fc0/weight"] = rng.normal(size=(32, 8)).astype("f4")
        file["metadata/algorithm"] = "SAC"
    return path


def test_d4rl(d4rl_file, tmp_path, monkeypatch):
    monkeypatch.setattr("dopr_robot.datasets.formats.d4rl.BLOCK", 6)
    assert find_format(d4rl_file) == "d4rl"
    convert(d4rl_file, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert store.episode_ends.tolist() == [5, 10, 12]
    with h5py.File(d4rl_file) as file:
        for key, name in {
            "observation": "observations",
            "action": "actions",
            "infos/qpos": "infos/qpos",
            "timeouts": "timeouts",
        }.items():
            np.testing.assert_array_equal(store.read([key])[key], file[name][()])
            assert store.keys[key].dtype == file[name].dtype
        weights = (
            FORMATS["d4rl"]
            .read.__globals__["hdf5"]
            .from_json(store.attributes.carried["d4rl"]["rest"]["metadata/policy/fc0/weight"])
        )
        np.testing.assert_array_equal(weights, file["metadata/policy/fc0/weight"][()])


def dapg_episodes():
    rng = np.random.default_rng(0)
    return [
        {
            "observations": rng.normal(size=(n, 5)),
            "actions": rng.normal(size=(n, 3)).astype(np.float32),
            "rewards": rng.normal(size=n),
            "env_infos": {"goal_achieved": np.arange(n) == n - 1},
            "init_state_dict": {"qpos": rng.normal(size=7), "hand": np.float64(2.5)},
        }
        for n in (4, 6)
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dapg(tmp_path, protocol):
    path, episodes = tmp_path / "demos.pickle", dapg_episodes()
    path.write_bytes(pickle.dumps(episodes, protocol))
    convert(path, tmp_path / "s.zarr", read_as="dapg")
    store = Store.open(tmp_path / "s.zarr")
    for index, episode in enumerate(episodes):
        mine = store.episode(index)
        np.testing.assert_array_equal(mine["observation"], episode["observations"])
        np.testing.assert_array_equal(mine["env_infos/goal_achieved"], episode["env_infos"]["goal_achieved"])
        np.testing.assert_array_equal(store.meta["init_state_dict/qpos"][index], episode["init_state_dict"]["qpos"])
        assert mine["action"].dtype == np.float32 and store.meta["init_state_dict/hand"][index] == 2.5


def test_a_pickle_of_the_other_numpy(tmp_path):
    """numpy 1 pickles `numpy.core`, numpy 2 partly `numpy._core`; either reads both."""
    path = tmp_path / "demos.pickle"
    content = pickle.dumps(dapg_episodes(), 0).replace(b"numpy._core", b"numpy.core")
    for number, name in enumerate((b"numpy.core", b"numpy._core")):
        path.write_bytes(content.replace(b"numpy.core", name))
        assert convert(path, tmp_path / f"{number}.zarr", read_as="dapg") == 2


def test_flags_that_stay_true_are_a_warning(d4rl_file, tmp_path, caplog):
    with h5py.File(d4rl_file, "r+") as file:
        file["terminals"][4:7] = True
    convert(d4rl_file, tmp_path / "s.zarr")
    assert "terminals or timeouts stay true" in caplog.text and "2 of 5 episodes have one step" in caplog.text
    assert Store.open(tmp_path / "s.zarr").episode_ends.tolist() == [5, 6, 7, 10, 12]


def test_the_task_that_minaris_metadata_name_gives_names_rate_and_bounds(tmp_path):
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    (data / "metadata.json").write_text(json.dumps({"env_spec": json.dumps({"id": "PointMaze_UMaze-v3"})}))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        episode["actions"], episode["infos/success"] = np.zeros((3, 2)), np.array([0, 0, 1, 0], bool)
        for key, size in {"observation": 4, "achieved_goal": 2, "desired_goal": 2}.items():
            episode[f"observations/{key}"] = np.zeros((4, size))
    convert(tmp_path / "set", tmp_path / "s.zarr", find_task=recorded_task)
    store, spec = Store.open(tmp_path / "s.zarr"), get_task("PointMaze_UMaze-v3")
    about = store.attributes
    assert about.task == spec.id and about.control_hz == spec.control_hz and about.action.high == (1.0, 1.0)
    assert about.observations == ("desired_goal", "state") and "achieved_goal" in store.keys
    assert store.success.tolist() == [1], "reached once, whatever followed"


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_minaris_other_forms_are_named(tmp_path, form):
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "metadata.json").write_text(json.dumps({"data_format": form}))
    for path in (tmp_path / "set", tmp_path / "set" / "data"):
        with pytest.raises(UserError, match=rf"Minari's {form} form, .* data_format='hdf5'"):
            convert(path, tmp_path / "s.zarr")


class RunsCode:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def test_a_pickle_that_holds_code_is_refused_before_it_runs(tmp_path, capsys):
    import os
    import subprocess

    trace = tmp_path / "trace"
    hidden = np.empty(1, object)
    hidden[0] = RunsCode(os.system, f"touch {trace}")
    for number, (bad, named) in enumerate(
        {
            RunsCode(os.system, f"touch {trace}"): "system",
            RunsCode(eval, f"open({str(trace)!r}, 'w')"): "builtins.eval",
            RunsCode(subprocess.Popen, ["touch", str(trace)]): "subprocess.Popen",
            RunsCode(np.load, "x.npy"): "numpy.load",
            RunsCode(getattr, "text", "format"): "builtins.getattr",
        }.items()
    ):
        for protocol in (0, 2, 4):
            path = tmp_path / f"bad{number}.pickle"
            path.write_bytes(pickle.dumps([{"observations": np.zeros((2, 1)), "actions": bad}], protocol))
            assert main(["convert", str(path), str(tmp_path / "s.zarr"), "--from", "dapg"]) == 2
            error = capsys.readouterr().err
            assert str(path) in error and "only numpy arrays are admitted" in error and error.count("\n") == 1
            assert named in error or protocol < 4
    path.write_bytes(pickle.dumps([{"observations": hidden, "actions": np.zeros(1)}]))
    with pytest.raises(UserError, match="only numpy arrays are admitted"):
        convert(path, tmp_path / "s.zarr", read_as="dapg")
    assert not trace.exists() and not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobots_own_writer(written_by_lerobot, tmp_path, version):
    assert find_format(written_by_lerobot / version) == "lerobot"
    convert(written_by_lerobot / version, tmp_path / "s.zarr")
    store = Store.open(tmp_path / "s.zarr")
    assert store.episode_lengths.tolist() == [6, 4] and store.success.tolist() == [1, 0]
    assert store.meta["task"].tolist() == ["reach", "push"]
    about = store.attributes
    assert about.control_hz == 10 and about.observations == ("state", "top", "wrist")
    assert about.carried["lerobot"]["features"]["action"]["names"] == ["a", "b"]
    k = np.array([0, 1, 2, 3, 4, 5, 10, 11, 12, 13])
    found = store.read()
    np.testing.assert_array_equal(found["state"], np.stack([k, k / 2, -k], 1).astype(np.float32))
    np.testing.assert_array_equal(found["action"], np.stack([k, k * 0 + 1], 1).astype(np.float32))
    assert found["next_reward"].shape == (10, 1) and found["next_success"].dtype == bool
    assert (found["wrist"] == k[:, None, None, None]).all()
    assert found["top"].shape == (10, 64, 64, 3)
    assert np.abs(found["top"].astype(int) - (20 * k % 250)[:, None, None, None]).max() <= 8, "AV1 loses a little"
    convert(tmp_path / "s.zarr", tmp_path / "out", write_as="lerobot")
    said = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    theirs = json.loads((written_by_lerobot / version / "meta" / "info.json").read_text())
    assert set(said["features"]) == set(theirs["features"]) and said["robot_type"] == "arm"
    for name in ("observation.state", "action", "next.reward"):
        assert {key: said["features"][name][key] for key in ("dtype", "shape", "names")} == {
            key: theirs["features"][name][key] for key in ("dtype", "shape", "names")
        }
    statistics = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    np.testing.assert_allclose(statistics["observation.state"]["std"], np.stack([k, k / 2, -k], 1).std(0))
    np.testing.assert_allclose(statistics["observation.images.wrist"]["mean"], np.full((3, 1, 1), k.mean() / 255))


def test_the_pusht_store(pusht_path, tmp_path):
    assert find_format(pusht_path) == "diffusion_policy"
    with zipfile.ZipFile(pusht_path) as old, zipfile.ZipFile(tmp_path / "pusht.zarr.zip", "w") as new:
        for name in old.namelist():
            if "/img/" not in name:  # 2.8 GB, and nothing else to learn from it
                new.writestr(name, old.read(name))
    convert(tmp_path / "pusht.zarr.zip", tmp_path / "s.zarr")
    store, theirs = Store.open(tmp_path / "s.zarr"), Store.open(tmp_path / "pusht.zarr.zip")
    assert store.num_episodes == 206 and store.is_own and not theirs.is_own
    for key, value in theirs.read().items():
        mine = store.read([key])[key]
        assert mine.dtype == value.dtype
        np.testing.assert_array_equal(mine, value)


# Bad input: one line that names the file, and nothing left behind


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupted(path):
    """Fletcher's checksum tells that the bytes are not what was written."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        del file["observations"]
        values = rng.normal(size=(12, 5))
        dataset = file.create_dataset("observations", data=values, chunks=(12, 5), fletcher32=True)
        offset = dataset.id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = bytes(8)
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (truncated, "cannot be opened as HDF5"),
        (corrupted, r"observations: cannot be read.*\(episode 0\)"),
        (lambda path: path.write_bytes(b""), "the layout is unfamiliar: found an empty file; expected one of: d4rl"),
        (lambda path: path.write_bytes(b"hello, world"), "found a file that begins with b'hello, w'"),
        (
            lambda path: edit(path, lambda f: f.pop("actions")),
            "the layout is unfamiliar: found HDF5 with infos, metadata, observations",
        ),
        (lambda path: edit(path, lambda f: replace(f, "rewards", np.zeros(5))), "rewards: has 5 steps and actions 12"),
        (
            lambda path: edit(path, lambda f: (f.pop("timeouts"), replace(f, "terminals", np.zeros(12, bool)))),
            "where do episodes end",
        ),
    ],
)
def test_hdf5_that_is_not_whole(d4rl_file, tmp_path, spoil, said):
    spoil(d4rl_file)
    before = d4rl_file.read_bytes()
    with pytest.raises(UserError, match=said) as caught:
        convert(
            d4rl_file,
            tmp_path / "s.zarr",
            read_as="d4rl" if said.startswith("cannot be opened") or "rewards" in said else None,
        )
    assert str(d4rl_file) in str(caught.value) and "\n" not in str(caught.value)
    assert d4rl_file.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == [d4rl_file.name]


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(file, name, value):
    del file[name]
    file[name] = value


def spoil_json(root, name, **changes):
    file = root / "meta" / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda root: spoil_json(root, "info.json", codebase_version="v1.6"),
            "found codebase_version 'v1.6' .*; expected v2.1 or v3.0",
        ),
        (
            lambda root: spoil_json(root, "info.json", data_path="../../{chunk_index}.parquet"),
            "leads out of the data set",
        ),
        (lambda root: (root / "meta" / "info.json").write_text("{"), "info.json is no JSON"),
        (lambda root: next((root / "data").rglob("*.parquet")).unlink(), "data/chunk-000/file-000.parquet: is missing"),
        (lambda root: truncated(next((root / "data").rglob("*.parquet"))), "cannot be read as parquet"),
        (lambda root: next((root / "videos").rglob("*.mp4")).unlink(), r"file-000.mp4: is missing \(episode 0\)"),
        (lambda root: truncated(next((root / "videos").rglob("*.mp4"))), r"file-000.mp4: .*\(episode [01]\)"),
    ],
)
def test_lerobot_that_is_not_whole(written_by_lerobot, tmp_path, spoil, said):
    root = tmp_path / "root"
    shutil.copytree(written_by_lerobot / "v3.0", root)
    spoil(root)
    with pytest.raises(UserError, match=said) as caught:
        convert(root, tmp_path / "s.zarr")
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["root"]


def test_what_is_unfamiliar_is_described(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "meta").mkdir()
    (tmp_path / "a.pickle").write_bytes(pickle.dumps([1]))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../outside", "x")
    for name, said in {
        "empty": "found an empty folder",
        "half": "found a folder with meta/",
        "a.pickle": "a pickle has to be named",
        "evil.zip": "'../../outside' leads out of the archive",
        "nothing": "no such file or folder",
    }.items():
        assert main(["convert", str(tmp_path / name), str(tmp_path / "s.zarr")]) == 2
        error = capsys.readouterr().err
        assert said in error and str(tmp_path / name) in error and error.count("\n") == 1
    assert main(["convert", str(tmp_path / "a.pickle"), str(tmp_path / "s.zarr"), "--from", "dapg"]) == 2
    assert "found a list of int; expected a list of dicts" in capsys.readouterr().err


def test_an_unknown_codec_is_named(store, tmp_path):
    convert(store.path, tmp_path / "out.zarr", write_as="diffusion_policy")
    metadata = tmp_path / "out.zarr" / "data" / "state" / ".zarray"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "compressor": {"id": "imagecodecs_none_such"}}))
    with pytest.raises(UserError, match="imagecodecs_none_such") as caught:
        convert(tmp_path / "out.zarr", tmp_path / "s.zarr")
    assert "\n" not in str(caught.value) and not (tmp_path / "s.zarr").exists()


def test_images_in_jpeg_xl_are_read(tmp_path):
    """The codec of UMI's stores, by imagecodecs itself."""
    import zarr
    from imagecodecs.numcodecs import Jpegxl, register_codecs

    register_codecs(verbose=False)
    y, x = np.mgrid[:32, :48]
    images = np.stack([np.stack([x * 2 + n, y * 3, x + y], -1) for n in range(6)]).astype(np.uint8)
    group = zarr.create_group(tmp_path / "umi.zarr", zarr_format=2)
    array = group.create_array(
        "data/img", shape=images.shape, dtype=np.uint8, chunks=(1, 32, 48, 3), compressors=Jpegxl(lossless=True)
    )
    array[:] = images
    group.create_array("data/action", data=np.zeros((6, 2), np.float32))
    group.create_array("meta/episode_ends", data=np.array([2, 6]))
    words = ["convert", str(tmp_path / "umi.zarr"), str(tmp_path / "s.zarr")]
    code = f"from dopr_robot.cli import main; raise SystemExit(main({words!r}))"
    # Another process: nothing has registered the codecs there.
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(Store.open(tmp_path / "s.zarr").read(["img"])["img"], images)

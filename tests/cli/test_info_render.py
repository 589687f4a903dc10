"""dopr info, repair and render."""

import json
import os
import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
import zarr
from PIL import Image

from dopr_robot.cli import main
from dopr_robot.datasets import Attributes, Store
from dopr_robot.evaluation.reports.video import CAPTION, Clip


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "s.zarr"
    with Store.create(path, Attributes(observations=("state",), control_hz=10)) as made:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            images = rng.integers(0, 255, (12, 16, 16, 3), np.uint8)
            made.append(
                {"state": rng.normal(size=(12, 3)), "image": images, "action": rng.normal(size=(12, 2))}, seed=seed
            )
    return path


def test_info_as_json_says_what_is_in_a_store(store, capsys):
    assert main(["info", str(store), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["episodes"], said["steps"]) == ("store", 3, 36)
    assert said["keys"]["state"] == {"shape": [3], "dtype": "float64"}
    assert said["warnings"] == []


def test_info_for_people_names_every_key(store, capsys):
    assert main(["info", str(store)]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("3 episodes", "state", "image", "action", "lengths"))


def test_check_tells_good_from_damaged_and_repair_mends(store, capsys):
    assert main(["info", str(store), "--check"]) == 0
    ends = zarr.open_group(store)["meta/episode_ends"]
    ends[2] = 20  # before the end of the second episode
    capsys.readouterr()
    assert main(["info", str(store), "--check"]) == 1
    assert "episode_ends" in capsys.readouterr().out
    assert main(["repair", str(store)]) == 0
    assert main(["info", str(store), "--check"]) == 0
    assert Store.open(store).num_episodes == 2


def test_render_shows_the_images_of_a_store(store, tmp_path, capsys):
    out = tmp_path / "v.mp4"
    assert main(["render", str(store), "--out", str(out), "--episodes", "2"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    frames = imageio.imread(out, plugin="FFMPEG")
    assert frames.shape[0] >= 12
    assert frames.std() > 10


def test_render_makes_a_picture_that_moves(store, tmp_path, capsys):
    assert main(["render", str(store), "--out", str(tmp_path / "a.webp"), "--episodes", "2", "--size", "32"]) == 0
    with Image.open(tmp_path / "a.webp") as picture:
        assert picture.is_animated and picture.info["loop"] == 0
        assert picture.height == 32 + 2 * CAPTION
    assert main(["render", str(store), "--out", str(tmp_path / "b.webp"), "--size", "3"]) == 2
    assert "--size 3 has to be from 16 to 2160" in capsys.readouterr().err


def test_render_makes_the_folder(store, tmp_path):
    assert main(["render", str(store), "--episodes", "1", "--out", str(tmp_path / "new" / "v.mp4")]) == 0
    assert (tmp_path / "new" / "v.mp4").stat().st_size


def test_a_camera_of_the_store_is_chosen_by_name(store, tmp_path, capsys):
    words = ["render", str(store), "--episodes", "1", "--out", str(tmp_path / "v.mp4"), "--camera"]
    assert main([*words, "image"]) == 0
    assert main([*words, "imag"]) == 2
    assert "did you mean 'image'" in capsys.readouterr().err


def test_a_video_says_step_and_seconds():
    clip = Clip("episode 3", [np.zeros((48, 64, 3), np.uint8)] * 3, "success", [0, 5, 8], 10.0)
    assert [clip.moment(index) for index in range(3)] == ["step 0 · 0.0 s", "step 5 · 0.5 s", "step 8 · 0.8 s"]


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    out = tmp_path_factory.mktemp("demonstration") / "one.zarr"
    assert main(["collect", "PickPlace", "--episodes", "1", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("name", ["nonsense", "glfw"])
def test_an_opengl_that_is_not_there_is_one_line(demonstration, tmp_path, name):
    """Whether loading mujoco fails on it (a wrong name) or drawing does (a window without a screen).
    ``disable`` is in tests/evaluation/test_trained_is_evaluated.py."""
    env = {key: value for key, value in os.environ.items() if key != "DISPLAY"} | {"MUJOCO_GL": name}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "dopr_robot.cli", "render", demonstration, "--out", "one.mp4"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"MUJOCO_GL={name}" in done.stderr
    assert not (tmp_path / "one.mp4").exists()

"""docs/pixels.md: every simulator's calls, in their order, as they stand but for sizes."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from dopr_robot import Run, Store
from dopr_robot.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "pixels.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- (.+?) -->\n```\n(.*?)```", PAGE, re.DOTALL))
SMALLER = {
    r"--episodes \d+": "--episodes 2",
    r"--size 84": "--size 40",
    r"^(train .*)": r"\1 training.steps=2 training.batch_size=4 training.warmup_steps=0 training.checkpoint_every=2 "
    "data.validation_fraction=0 training.device=cpu policy.network.dim=16 policy.network.layers=1 policy.network.heads=2",
    r"^(eval|compare) (.*)": r"\1 \2 --episodes 2 --horizons 2",
    r"^(eval .*)": r"\1 --video 0",
    r"^(render .*)": r"\1 --episodes 1 --size 64",
}


def follow(name):
    """Run a block's calls of ours."""
    for line in BLOCKS[name].splitlines():
        if line.startswith("dopr "):
            call = line.removeprefix("dopr ")
            for large, small in SMALLER.items():
                call = re.sub(large, small, call)
            assert (main(shlex.split(call)), call) == (0, call)


def seen(run):
    """What a run's policy reads: shapes of its pictures."""
    return {key: each.shape for key, each in Run(run).policy().spec.observations.items() if len(each.shape) == 3}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, undrawn):
    monkeypatch.chdir(tmp_path)


def test_every_block_is_tested():
    assert set(BLOCKS) == {"PickPlace", "PushT", "Lift", "Lift, human", "assembly"}


def test_pick_place():
    follow("PickPlace")
    assert seen("runs/pick_place_image") == {"overview": (40, 40, 3), "wrist": (40, 40, 3)}


def test_pusht():
    """Of a store as the human demonstrations are: pictures as floats under another name."""
    rng = np.random.default_rng(0)
    with Store.create("data/pusht/pusht_cchi_v7_replay.zarr") as store:
        for _ in range(2):
            numbers = {
                key: rng.uniform(0, 500, (20, size)).astype(np.float32)
                for key, size in (("action", 2), ("state", 5), ("n_contacts", 1))
            }
            pictures = rng.integers(0, 256, (20, 96, 96, 3)).astype(np.float32)
            store.append({**numbers, "img": pictures, "keypoint": np.zeros((20, 9, 2), np.float32)})
    follow("PushT")
    assert seen("runs/pusht_image") == {"image": (96, 96, 3)}


@pytest.mark.sim
@pytest.mark.slow
def test_lift(human_lift):
    follow("Lift")
    assert seen("runs/lift_image") == {"agentview": (40, 40, 3), "robot0_eye_in_hand": (40, 40, 3)}
    assert "object" not in Run("runs/lift_image").policy().spec.observations


@pytest.mark.sim
@pytest.mark.slow
def test_assembly():
    follow("assembly")
    assert seen("runs/assembly") == {"corner2": (40, 40, 3), "gripperPOV": (40, 40, 3)}

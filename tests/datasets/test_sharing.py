"""Processes of one launch hold a key once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dopr_robot.datasets import Attributes, Store, sharing

pytestmark = pytest.mark.skipif(not sharing.FOLDER.is_dir(), reason="no /dev/shm")
READER = """
import sys
from dopr_robot.datasets import Store
held = Store.open(sys.argv[1]).hold("state")
maps = [line.split() for line in open("/proc/self/maps") if "dopr-" in line and line.split()[1] == "r--s"]
print(len(maps), maps[0][4] if maps else 0, float(held.sum()), held.flags.writeable, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path) -> Path:
    with Store.create(tmp_path / "store.zarr", Attributes(observations=("state",))) as made:
        made.append({"state": np.arange(3000.0).reshape(1000, 3), "action": np.zeros((1000, 2))}, seed=0)
    return tmp_path / "store.zarr"


def ours() -> set[Path]:
    return set(sharing.FOLDER.glob("dopr-*"))


def start(store: Path, rank: int, processes: int = 2) -> subprocess.Popen:
    environment = {**os.environ, "LOCAL_WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank), "MASTER_PORT": "1"}
    command = [sys.executable, "-P", "-c", READER, str(store)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_map_one_file_whose_name_is_gone_once_both_have_it(store):
    before, readers = ours(), [start(store, rank) for rank in range(2)]
    told = [reader.stdout.readline().split() for reader in readers]
    assert ours() == before
    for reader in readers:
        reader.communicate("\n")
    assert told[0] == told[1] and told[0][0] == "1" and told[0][1] != "0"
    assert float(told[0][2]) == np.arange(3000.0).sum() and told[0][3] == "False"


def test_a_launch_that_ends_early_leaves_no_file(store):
    before, first = ours(), start(store, 0)
    assert first.stdout.readline().split()[0] == "1"
    assert len(ours() - before) == 1
    first.communicate("\n")
    assert ours() == before


def test_a_read_that_fails_leaves_no_file(store):
    for chunk in (store / "data" / "state" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"broken")
    before, first = ours(), start(store, 0)
    first.communicate("\n")
    assert first.returncode == 1 and ours() == before


def test_without_room_each_process_has_its_own(store, monkeypatch):
    asked = []

    def full(*arguments):
        asked.append(arguments)
        raise OSError("no space left on device")

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "posix_fallocate", full)
    before = ours()
    held = Store.open(store).hold("state")
    assert held.sum() == np.arange(3000.0).sum() and not held.flags.writeable and ours() == before
    assert asked

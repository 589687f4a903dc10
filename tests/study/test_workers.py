"""A pool that is stopped says nothing but that."""

import subprocess
import sys

import pytest

STOPPED = """
import multiprocessing.util as util, os, signal, sys
from dopr_robot.study import workers

def leave(signum, frame):
    raise SystemExit(128 + signum)

started, spawn = [], util.spawnv_passfds

def spawn_and_stop(*args):
    # The child runs, and has not been told yet what it is for.
    started.append(spawn(*args))
    if len(started) == 2:
        os.killpg(0, signal.{0}) if {1} else os.kill(os.getpid(), signal.{0})
    return started[-1]

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    util.spawnv_passfds = spawn_and_stop
    list(workers._in_pool([None, None], 2))
"""


@pytest.mark.parametrize(("name", "code", "all_of_them"), [("SIGTERM", 143, False), ("SIGINT", 130, True)])
def test_a_stop_while_processes_are_started_leaves_no_traceback(tmp_path, name, code, all_of_them):
    (tmp_path / "stopped.py").write_text(STOPPED.format(name, all_of_them))
    command = [sys.executable, "-P", str(tmp_path / "stopped.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert (done.returncode, done.stderr) == (code, "")

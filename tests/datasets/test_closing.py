"""A program that read a store closes without a word, however busy zarr's thread is."""

import subprocess
import sys


def test_the_loop_is_waited_for():
    code = (
        "import time, dopr_robot.datasets.store\n"
        "from zarr.core import sync\n"
        "sync._get_loop().call_soon_threadsafe(time.sleep, 1.0)"  # zarr itself waits for 0.2 s
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

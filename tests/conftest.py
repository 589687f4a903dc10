import os
import re
import signal
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

# Before torch is imported anywhere: two xdist workers with a pool each would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

with suppress(ImportError):  # .venv-sim has none
    from hypothesis import HealthCheck, settings

    # Nothing that is tested depends on how much else the machine has to do.
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--fuzz-cases", type=int, default=150, help="cases of the fuzzer over damaged files, all readers together"
    )
    parser.addoption("--fuzz-seed", type=int, default=0, help="which cases these are")


def pytest_configure() -> None:
    # A shell without job control starts what it puts into the background with Ctrl-C ignored, and tests send one.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made and not drawn, which takes more than half the time of a small study or evaluation."""
    stand_ins = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<svg></svg>"}
    monkeypatch.setattr("dopr_robot.evaluation.reports.plots.render", lambda figure, form="png": stand_ins[form])


@pytest.fixture
def on_ray(tmp_path):
    """``on_ray(file)``: the tests of a file in a process of their own, since Ray ends the process whose daemons end.

    On a busy machine they do not always come up in the time that they give themselves: what ends so is begun again, twice at most. A test
    that fails is not.
    """

    def run(file: Path) -> None:
        report = tmp_path / "report.xml"
        words = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "timeout", f"--junitxml={report}", str(file)]
        for _ in range(3):
            report.unlink(missing_ok=True)
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode == 0 or (report.exists() and not _CLUSTER_IS_GONE.search(done.stdout)):
                break
        assert done.returncode == 0, done.stdout

    return run


# What Ray says of daemons that did not come up or were lost, and what we make of it.
_CLUSTER_IS_GONE = re.compile(
    r"ray\.exceptions\.\w*(System|Crashed|Unavailable|Timeout|Died)|timed out during startup|no cluster answers"
)


@pytest.fixture
def human_lift(tmp_path):
    """The three human demonstrations that robosuite's wheel of 1.4.1 carries; `make setup-sim` fetches it."""
    wheel = next((Path(sys.prefix) / "wheels").glob("robosuite-1.4.1*.whl"), None)
    if wheel is None:
        pytest.skip("robosuite 1.4.1's wheel is not in .venv-sim/wheels: make setup-sim")
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read("robosuite/models/assets/demonstrations/lift/demo.hdf5")
    (tmp_path / "demo.hdf5").write_bytes(content)
    return tmp_path / "demo.hdf5"

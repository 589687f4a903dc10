import contextlib
import os
import signal

# Before torch is imported anywhere: two xdist workers with a pool each would fight over the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest


def pytest_configure() -> None:
    # A shell without job control starts what it puts into the background with Ctrl-C ignored, and tests send one.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A CUDA build of torch brings triton, which crashes where it is loaded after a software renderer: both carry an LLVM.
    with contextlib.suppress(ImportError):
        import triton  # noqa: F401


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)

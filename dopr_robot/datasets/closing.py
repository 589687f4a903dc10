"""zarr's event loop, stopped before zarr closes it.

At the interpreter's exit zarr waits 0.2 s for its loop's thread and closes the loop whether it has stopped or not: on a busy machine that
ends in a traceback, "Cannot close a running event loop". What is registered later runs earlier, so the loop is at rest by then.
"""

import atexit

from zarr.core import sync

WAIT_S = 30.0


def stop_loop() -> None:
    """Stop zarr's loop, if it has one, and wait for its thread."""
    loop, thread = sync.loop[0], sync.iothread[0]
    if loop is not None and thread is not None and thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_S)


atexit.register(stop_loop)

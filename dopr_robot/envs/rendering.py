"""Pictures of MuJoCo scenes, with or without a screen."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.errors import UserError

_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
drawing = mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100)
print(mujoco.GLContext.__module__.rpartition(".")[2])
drawing.free()
context.free()
"""
"""It prints the name of the module that mujoco takes for what is asked for (``EGL``, ``on``, ``glx``), and makes a drawing's context, since
without one a window without a screen seems to work."""


@cache
def choose_backend() -> str:
    """The OpenGL that works here: what MUJOCO_GL says, else EGL, else OSMesa, else a window.

    Each is tried in a process of its own, since a failed one can take the process with it.

    Raises:
        UserError: none works; the message says what to install.
    """
    with suppress(ImportError):
        # A CUDA build of torch brings triton, which crashes where it is loaded after a software renderer: both carry an LLVM.
        import_module("triton._C.libtriton")
    asked = os.environ.get("MUJOCO_GL")
    for backend in [asked] if asked else ["egl", "osmesa", "glfw"]:
        with suppress(subprocess.TimeoutExpired):
            tried = subprocess.run(
                [sys.executable, "-P", "-c", _PROBE],
                env={**os.environ, "MUJOCO_GL": backend},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if tried.returncode == 0:
                return tried.stdout.strip()
    if asked:
        raise UserError(
            f"nothing can be drawn with MUJOCO_GL={asked} here: unset it (EGL, OSMesa and a window are tried then), "
            "or go without pictures (--video 0)"
        )
    raise UserError(
        "no OpenGL works here (EGL, OSMesa and a window were tried): "
        "apt-get install libegl1 libgl1-mesa-dri (or libosmesa6), or go without pictures (--video 0)"
    )


def load_mujoco() -> None:
    """Import MuJoCo, which loads the OpenGL that MUJOCO_GL names although nothing may be drawn. Raises UserError where that fails."""
    try:
        import_module("mujoco")
    except (AttributeError, ImportError, RuntimeError) as error:
        asked = os.environ.get("MUJOCO_GL")
        if not asked:
            raise
        raise UserError(
            f"mujoco can not be loaded with MUJOCO_GL={asked} ({str(error).splitlines()[0]}): unset it, or set egl, osmesa, glfw or disable"
        ) from error


def _use_backend(backend: str) -> None:
    """Let mujoco.Renderer make its contexts with ``backend``, although MUJOCO_GL was read when mujoco was imported."""
    try:
        contexts = import_module("mujoco.rendering.classic.gl_context")
    except ImportError:  # MuJoCo 3
        contexts = import_module("mujoco.gl_context")
    os.environ["MUJOCO_GL"] = backend  # for the worker processes that this one starts
    vars(contexts)["GLContext"] = import_module(f"mujoco.{backend}").GLContext


class SceneRenderer:
    """Renders one model. Shadows and multisampling are off: on a software renderer they cost six of seven frames.

    Args:
        model: an ``mujoco.MjModel``.
        width, height: pixels.
    """

    def __init__(self, model: Any, width: int, height: int) -> None:
        import mujoco

        _use_backend(choose_backend())

        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        self._model = model
        self._renderer = mujoco.Renderer(model, height, width)

    def frame(
        self, data: Any, decorate: Callable[[Any], None] | None = None, camera: str | None = None
    ) -> NDArray[np.uint8]:
        """The scene of ``data``, after ``decorate(scene)`` has added its drawings: ``[height, width, 3]``.

        Args:
            data: an ``mujoco.MjData``.
            decorate: see above.
            camera: a camera's name in the model; None: its first.

        Raises:
            UserError: no such camera.
        """
        names = [self._model.camera(index).name for index in range(self._model.ncam)]
        if camera is not None and camera not in names:
            raise UserError(f"camera {camera!r} is none of the model's: {', '.join(names)}")
        self._renderer.update_scene(data, camera if camera is not None else (0 if names else -1))
        if decorate is not None:
            decorate(self._renderer.scene)
        return self._renderer.render()

    def close(self) -> None:
        self._renderer.close()


def add_geom(scene: Any, kind: Any, size: Any, position: Any, colour: Any, rotation: Any = None) -> None:
    """Add one drawn shape to a scene: ``kind`` is an ``mujoco.mjtGeom``, ``colour`` is RGBA."""
    import mujoco

    if scene.ngeom >= scene.maxgeom:
        return
    matrix = np.eye(3) if rotation is None else np.asarray(rotation, np.float64)
    mujoco.mjv_initGeom(
        scene.geoms[scene.ngeom],
        kind,
        np.asarray(size, np.float64),
        np.asarray(position, np.float64),
        matrix.ravel(),
        np.asarray(colour, np.float32),
    )
    scene.ngeom += 1

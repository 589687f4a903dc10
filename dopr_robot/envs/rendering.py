"""Pictures of MuJoCo scenes, with or without a screen."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.errors import UserError

FREE = "free"
"""Name of the view from no camera of the model's: MuJoCo's free camera, as a package's own viewer sets it."""

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


_WITHOUT = "go without pictures (--video 0, and no cameras)"


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
            f"nothing can be drawn with MUJOCO_GL={asked} here: unset it (EGL, OSMesa and a window are tried then), or {_WITHOUT}"
        )
    raise UserError(
        "no OpenGL works here (EGL, OSMesa and a window were tried): "
        f"apt-get install libegl1 libgl1-mesa-dri (or libosmesa6), or {_WITHOUT}"
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
    """Draws one model in any size.

    On a software renderer shadows and multisampling cost six of seven frames, reflections half of what is left, and most of the rest goes
    into vertices of meshes that no pixel shows (the pedestal under a robot): all that is left out, and only the first three can be seen.

    Args:
        model: an ``mujoco.MjModel``.
        hidden: groups of geoms that are not drawn, such as the shapes that collide.
        free: settings of the camera that follows no camera of the model (``{"distance": 2.0, "azimuth": 90.0}``); None: MuJoCo's own.
        plain: without shadows, multisampling and reflections.

    Attributes:
        model: what it draws.
        cameras: names of the model's cameras, and FREE.

    Raises:
        UserError: no OpenGL works.
    """

    def __init__(
        self, model: Any, *, hidden: Sequence[int] = (), free: Mapping[str, Any] | None = None, plain: bool = True
    ) -> None:
        import mujoco

        _use_backend(choose_backend())
        if plain:
            model.vis.quality.offsamples = 0
            model.vis.quality.shadowsize = 0
        self.model, self._plain = model, plain
        self.cameras = [*camera_names(model), FREE]
        self._option = mujoco.MjvOption()
        for group in hidden:
            self._option.geomgroup[group] = 0
        self._free = free
        self._renderers: dict[tuple[int, int], Any] = {}
        self._meshes = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH)

    def frame(
        self,
        data: Any,
        size: tuple[int, int],
        camera: str | None = None,
        decorate: Callable[[Any], None] | None = None,
    ) -> NDArray[np.uint8]:
        """The scene of ``data``, after ``decorate(scene)`` has added its drawings: ``[height, width, 3]``.

        Args:
            data: an ``mujoco.MjData``.
            size: height and width.
            camera: a camera's name; None: the model's first, or FREE where it has none.
            decorate: see above.

        Raises:
            UserError: no such camera.
        """
        names = self.cameras
        camera = names[0] if camera is None else camera
        if camera not in names:
            raise UserError(f"camera {camera!r} is none of the model's: {', '.join(names)}")
        renderer = self._renderer(size)
        renderer.update_scene(data, self._free_camera() if camera == FREE else camera, self._option)
        if self._plain:
            self._leave_out(renderer.scene, data, size)
        if decorate is not None:
            decorate(renderer.scene)
        return renderer.render()

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _renderer(self, size: tuple[int, int]) -> Any:
        import mujoco

        if size not in self._renderers:
            height, width = size
            self.model.vis.global_.offwidth = max(self.model.vis.global_.offwidth, width)
            self.model.vis.global_.offheight = max(self.model.vis.global_.offheight, height)
            renderer = mujoco.Renderer(self.model, height, width)
            if self._plain:
                renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._renderers[size] = renderer
        return self._renderers[size]

    def _free_camera(self) -> Any:
        import mujoco

        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self.model, camera)
        for name, value in (self._free or {}).items():
            if isinstance(value, np.ndarray):
                getattr(camera, name)[:] = value
            else:
                setattr(camera, name, value)
        return camera

    def _leave_out(self, scene: Any, data: Any, size: tuple[int, int]) -> None:
        """Meshes that lie wholly outside the picture: nothing of them would be seen, and MuJoCo would draw them all the same."""
        import mujoco

        eyes = scene.camera[:2]
        if eyes[0].orthographic or not len(self._meshes):
            return
        eye = (np.array(eyes[0].pos) + np.array(eyes[1].pos)) / 2
        ahead, up = np.array(eyes[0].forward), np.array(eyes[0].up)
        near = float(eyes[0].frustum_near)
        high = max(abs(eyes[0].frustum_top), abs(eyes[0].frustum_bottom)) / near
        wide = high * size[1] / size[0]
        if half := getattr(eyes[0], "frustum_width", 0.0):
            wide = (abs(eyes[0].frustum_center) + half) / near
        to, radius = data.geom_xpos[self._meshes] - eye, self.model.geom_rbound[self._meshes]
        depth, across, above = to @ ahead, np.abs(to @ np.cross(ahead, up)), np.abs(to @ up)
        outside = (
            (depth + radius < near)
            | (across - wide * depth > radius * np.hypot(1, wide))
            | (above - high * depth > radius * np.hypot(1, high))
        )
        gone = set(self._meshes[outside].tolist())
        kind, nothing = int(mujoco.mjtObj.mjOBJ_GEOM), int(mujoco.mjtGeom.mjGEOM_NONE)
        for geom in scene.geoms[: scene.ngeom]:
            if geom.objid in gone and geom.objtype == kind:
                geom.type = nothing


def camera_names(model: Any) -> list[str]:
    """Of an ``mujoco.MjModel``, without cameras that have none."""
    return [name for name in (model.camera(index).name for index in range(model.ncam)) if name]


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

"""How many camera frames a second and core the simulators draw at 84 x 84, beside what their packages draw themselves.

Frames a second of processor time, all threads counted, so that another program on the machine does not show: *drawn*, of a scene that is
moved by a step between two frames, the drawing alone; and *observed*, of whole control steps with two cameras. The peers are
robosuite's own ``sim.render`` and its camera observations as robomimic's environment wrapper asks for them (the wrapper itself
where it can be imported: robomimic 0.3 wants mujoco_py for the name of an exception alone, which is given to it), and Meta-World's own
``render()``. Both take turns.

    MUJOCO_GL=egl python benchmarks/camera_frames.py --json frames.json
"""

import argparse
import json
import logging
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dopr_robot.envs import get_task, make
from dopr_robot.envs.adapters.adapter import Views
from dopr_robot.envs.adapters.metaworld import MetaWorld

SIDE = 84
CAMERAS = {"robosuite/Lift-v0": ["agentview", "robot0_eye_in_hand"], "metaworld/assembly-v3": ["corner2", "gripperPOV"]}


def cost(call: Callable[[], Any], move: Callable[[], Any], times: int) -> float:
    """Seconds of processor time of a call, without what moves the scene before it."""
    spent = 0.0
    for _ in range(times):
        move()
        start = time.process_time()
        call()
        spent += time.process_time() - start
    return spent / times


def robomimics(cameras: list[str]) -> Callable[[], Any]:
    """A control step of robomimic's own wrapper around robosuite's Lift."""
    fake = types.ModuleType("mujoco_py")
    vars(fake)["builder"] = types.SimpleNamespace(MujocoException=RuntimeError)
    sys.modules.setdefault("mujoco_py", fake)
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.envs.env_robosuite import EnvRobosuite

    names = [f"{camera}_image" for camera in cameras]
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["robot0_eef_pos"], "rgb": names}})
    env = EnvRobosuite(
        "Lift",
        use_image_obs=True,
        postprocess_visual_obs=False,
        robots="Panda",
        camera_names=cameras,
        camera_heights=SIDE,
        camera_widths=SIDE,
    )
    env.reset()
    action = np.zeros(7)
    context = env.env.sim._render_context_offscreen.gl_ctx

    def step() -> None:
        context.make_current()  # robosuite takes for granted that nobody else draws in its process
        env.step(action)

    return step


def packages(task: str, camera: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The package's own drawing of a camera, and a step of it."""
    if task.startswith("robosuite"):
        import robosuite

        env = robosuite.make(
            "Lift",
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=False,
            ignore_done=True,
        )
        env.reset()

        def render() -> None:
            env.sim._render_context_offscreen.gl_ctx.make_current()  # it takes for granted that nobody else draws in its process
            env.sim.render(camera_name=camera, width=SIDE, height=SIDE)

        return render, lambda: env.step(np.zeros(7))
    import metaworld

    own = metaworld.ALL_V3_ENVIRONMENTS["assembly-v3"](
        render_mode="rgb_array", camera_name=camera, width=SIDE, height=SIDE
    )
    MetaWorld(own, get_task(task), Views()).reset(seed=0)
    own.max_path_length = 10**9
    own.render()

    def draw() -> None:
        own.mujoco_renderer._get_viewer("rgb_array").make_context_current()
        own.render()

    return draw, lambda: own.step(np.zeros(4))


def drawn(task: str, camera: str, frames: int, turns: int) -> dict[str, Any]:
    """One camera, moved by the simulators' own steps."""
    env: Any = make(task, cameras=[camera], camera_size=SIDE)
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape, np.float32)
    theirs, their_step = packages(task, camera)
    ours: list[float] = []
    peer: list[float] = []
    for turn in range(turns + 1):  # the first warms up
        mine = cost(lambda: env.draw(camera, (SIDE, SIDE)), lambda: env.env.step(zero), frames)
        other = cost(theirs, their_step, frames)
        if turn:
            ours.append(1 / mine)
            peer.append(1 / other)
    env.close()
    return _row(f"{task} {camera}, drawn by the package", ours, peer)


def observed(frames: int, turns: int) -> dict[str, Any]:
    """Whole control steps of Lift with two cameras."""
    cameras = CAMERAS["robosuite/Lift-v0"]
    env: Any = make("robosuite/Lift-v0", cameras=cameras, camera_size=SIDE, max_steps=10**9)
    env.reset(seed=0)
    zero, theirs = np.zeros(7, np.float32), robomimics(cameras)
    ours: list[float] = []
    peer: list[float] = []
    for turn in range(turns + 1):
        mine, other = cost(lambda: env.step(zero), lambda: None, frames), cost(theirs, lambda: None, frames)
        if turn:
            ours.append(len(cameras) / mine)
            peer.append(len(cameras) / other)
    env.close()
    return _row("robosuite/Lift-v0 two cameras, observed through robomimic", ours, peer)


def _row(name: str, ours: list[float], peer: list[float]) -> dict[str, Any]:
    row = {"name": name, "ours": statistics.median(ours), "peer": statistics.median(peer)}
    row["ratio"] = row["ours"] / row["peer"]
    print(f"{name}: {row['ours']:.0f} frames/s and core, the peer {row['peer']:.0f} ({row['ratio']:.1f}x)", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(CAMERAS))
    parser.add_argument("--frames", type=int, default=40, help="a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rows = [drawn(task, camera, args.frames, args.turns) for task in args.tasks for camera in CAMERAS[task]]
    if "robosuite/Lift-v0" in args.tasks:
        rows.append(observed(args.frames, args.turns))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

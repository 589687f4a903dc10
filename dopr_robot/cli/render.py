"""A video of a policy's rollouts, or of a store's demonstrations.

A policy is rolled out from the initial states that `dopr eval` begins with. Demonstrations are shown by their recorded images
where the store has some, and else replayed: the task is reset to the episode's seed and its actions are executed again, with the noise
that was injected when they were collected.

  dopr render runs/pick_place --out policy.mp4 --episodes 4
  dopr render data/pick_place.zarr --out demonstrations.mp4
  dopr render runs/pick_place --out wrist.mp4 --camera wrist
"""

import argparse
import math
from pathlib import Path
from typing import Any

from dopr_robot.errors import UnknownNameError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN_OR_STORE", help="run folder, checkpoint folder or store")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.mp4", help="where the video goes")
    parser.add_argument("--episodes", type=int, default=4, metavar="K", help="how many are shown (default 4)")
    parser.add_argument("--camera", metavar="NAME", help="one of the task's cameras, or of the store's images")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="block of initial states of a policy (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    from dopr_robot.cli.info import is_store
    from dopr_robot.evaluation.video import write_grid

    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes} has to be at least 1")
    if args.out.suffix != ".mp4":
        raise UserError(f"--out {args.out} has to end in .mp4")
    clips, fps = _demonstrations(args) if is_store(args.source) else _rollouts(args)
    write_grid(args.out, clips, columns=math.ceil(len(clips) ** 0.5), fps=fps)
    print(args.out)
    return 0


def _rollouts(args: argparse.Namespace) -> tuple[list[Any], float]:
    from dopr_robot.evaluation import Evaluation
    from dopr_robot.evaluation.records import EpisodeRecord
    from dopr_robot.evaluation.showcase import Camera
    from dopr_robot.evaluation.video import stride_for
    from dopr_robot.policies import find_checkpoint, load_policy

    checkpoint = find_checkpoint(args.source).resolve()
    policy = load_policy(checkpoint)
    if policy.task is None:
        raise UserError(f"{args.source} does not say which task it was trained for")
    evaluation = Evaluation(policy, policy.task, episodes=args.episodes, seed=args.seed, checkpoint=checkpoint)
    hz = evaluation.spec.control_hz
    camera = Camera(stride_for(hz), {})
    records: list[EpisodeRecord] = []
    evaluation.rollout(camera, render_mode="rgb_array", **_view(evaluation.spec, args.camera)).run(
        evaluation.jobs, records.append, workers=1
    )
    records.sort(key=lambda record: record.episode)
    clips = [camera.clip(f"seed {record.seed}", record.episode, record.outcome, hz) for record in records]
    return clips, hz / stride_for(hz)


def _demonstrations(args: argparse.Namespace) -> tuple[list[Any], float]:
    from dopr_robot.datasets import Store
    from dopr_robot.evaluation.video import Clip, fit, stride_for

    store = Store.open(args.source)
    hz = store.attributes.control_hz or 10.0
    images = [name for name, key in store.keys.items() if len(key.shape) == 3 and key.shape[-1] == 3]
    if args.camera and images:
        if args.camera not in images:
            raise UnknownNameError(f"camera of {args.source}:", args.camera, images)
        images = [args.camera]
    clips = []
    for index in range(min(args.episodes, store.num_episodes)):
        success = int(store.success[index])
        if images:
            pictures = store.episode(index, images[:1])[images[0]]
            steps = list(range(0, len(pictures), stride_for(hz)))
            frames = [_pixels(pictures[step]) for step in steps]
        else:
            frames, steps, success = _replayed(store, index, stride_for(hz), args.camera)
        outcome = {1: "success", 0: "failure", -1: ""}[success]
        rate = store.attributes.control_hz or 0.0
        clips.append(Clip(f"episode {index}", [fit(frame) for frame in frames], outcome, steps, rate))
    return clips, hz / stride_for(hz)


def _pixels(frame: Any) -> Any:
    """An image as uint8; stores of Diffusion Policy hold 0..255 as float32."""
    import numpy as np

    return frame if frame.dtype == np.uint8 else np.clip(frame, 0, 255).astype(np.uint8)


def _view(spec: Any, camera: str | None) -> dict[str, Any]:
    """The task's keyword for a camera. Raises UserError where it has no such one."""
    if camera is None:
        return {}
    if not spec.cameras:
        raise UserError(f"{spec.id} has one view: go without --camera {camera}")
    if camera not in spec.cameras:
        raise UnknownNameError(f"camera of {spec.id}:", camera, spec.cameras)
    return {"camera": camera}


def _replayed(store: Any, index: int, stride: int, camera: str | None) -> tuple[list[Any], list[int], int]:
    from dopr_robot.datasets import Episode
    from dopr_robot.envs import get_task, make_vec
    from dopr_robot.evaluation.replay import collection, executed_actions

    seed, task = int(store.seeds[index]), store.attributes.task
    if task is None or seed < 0:
        raise UserError(f"{store.path}: no images, and no task and seed to replay episode {index} from")
    options = collection(store.attributes).get("options") or {}
    env = make_vec(task, 1, render_mode="rgb_array", **options, **_view(get_task(task), camera))
    try:
        env.reset(seed=[seed])  # type: ignore[arg-type]
        frames, steps, done, success = [env.render()[0]], [0], False, False  # type: ignore[index]
        space = env.single_action_space  # type: ignore[attr-defined]
        recorded = Episode(store.episode(index, ["action"]), seed)
        for number, action in enumerate(executed_actions(store.attributes, recorded), start=1):
            _, _, terminated, truncated, info = env.step(action.clip(space.low, space.high)[None])  # type: ignore[attr-defined]
            done, success = bool(terminated[0] or truncated[0]), bool(info["success"][0])
            if number % stride == 0 or done:
                frames.append(env.render()[0])  # type: ignore[index]
                steps.append(number)
            if done:
                break
    finally:
        env.close()
    return frames, steps, int(success)

"""Videos of a policy's rollouts, or of a store's demonstrations."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dopr_robot.collection.replay import executed_actions, recorded
from dopr_robot.datasets import Episode, Store, is_store
from dopr_robot.envs import Task
from dopr_robot.envs.rendering import choose_backend
from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.evaluation.reports.video import CELL_HEIGHT, Clip, fit, stride_for, write_grid


def render(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    episodes: int = 4,
    camera: str | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    size: int = CELL_HEIGHT,
) -> Path:
    """Write a video of a run's, or of a store's, first episodes side by side, as ``dopr render`` does.

    A policy is rolled out from the initial states that an evaluation begins with. Demonstrations are shown by their recorded images where
    the store has some, and else replayed.

    Args:
        source: a run, a checkpoint folder or a store.
        out: the mp4 file, or a .webp: an animated picture, as a page shows it.
        episodes: how many are shown.
        camera: one of the task's cameras, or of the store's images.
        seed: block of initial states of a policy.
        options: of the task, over those that the policy was trained for, or the demonstrations were collected with.
        size: height of an episode's picture, in pixels.

    Raises:
        UserError: nothing there, no such camera, or no way to show it.
    """
    out = Path(out)
    if episodes < 1:
        raise UserError(f"--episodes {episodes} has to be at least 1")
    if out.suffix not in (".mp4", ".webp"):
        raise UserError(f"--out {out} has to end in .mp4 or .webp")
    if not 16 <= size <= 2160:
        raise UserError(f"--size {size} has to be from 16 to 2160")
    if is_store(os.fspath(source)):
        clips, fps = _demonstrations(os.fspath(source), episodes, camera, options or {})
    else:
        clips, fps = _rollouts(Path(source), episodes, camera, seed, options or {})
    for clip in clips:
        clip.frames = [fit(frame, size) for frame in clip.frames]
    write_grid(out, clips, columns=math.ceil(len(clips) ** 0.5), fps=fps)
    return out


def _rollouts(
    source: Path, episodes: int, camera: str | None, seed: int, options: Mapping[str, Any]
) -> tuple[list[Clip], float]:
    # Demonstrations are shown without torch.
    from dopr_robot.evaluation.evaluate import chosen_task
    from dopr_robot.evaluation.reports.showcase import Camera
    from dopr_robot.evaluation.rollouts.plan import Evaluation
    from dopr_robot.evaluation.rollouts.records import EpisodeRecord
    from dopr_robot.policies import find_checkpoint, load_policy
    from dopr_robot.policies.checkpoint import read_spec

    checkpoint = find_checkpoint(source).resolve()
    task = chosen_task(None, read_spec(checkpoint), source, options)
    view = _view(task.spec, camera)
    if task.spec.opengl:
        choose_backend()
    policy = load_policy(checkpoint)
    evaluation = Evaluation(
        policy,
        task,
        episodes=episodes,
        seed=seed,
        checkpoint=checkpoint,
    )
    hz = evaluation.spec.control_hz
    filmed = Camera(stride_for(hz), {})
    records: list[EpisodeRecord] = []
    evaluation.rollout(filmed, render_mode="rgb_array", **view).run(evaluation.jobs, records.append, workers=1)
    records.sort(key=lambda record: record.episode)
    clips = [filmed.clip(f"seed {record.seed}", record.episode, record.outcome, hz) for record in records]
    return clips, hz / stride_for(hz)


def _demonstrations(
    source: str, episodes: int, camera: str | None, options: Mapping[str, Any]
) -> tuple[list[Clip], float]:
    store = Store.open(source)
    hz = store.attributes.control_hz or 10.0
    images = [name for name, key in store.keys.items() if len(key.shape) == 3 and key.shape[-1] == 3]
    if camera and images:
        if camera not in images:
            raise UnknownNameError(f"camera of {source}:", camera, images)
        images = [camera]
    clips = []
    for index in range(min(episodes, store.num_episodes)):
        success = int(store.success[index])
        if images:
            pictures = store.episode(index, images[:1])[images[0]]
            steps = list(range(0, len(pictures), stride_for(hz)))
            frames = [_pixels(pictures[step]) for step in steps]
        else:
            frames, steps, success = _replayed(store, index, stride_for(hz), camera, options)
        outcome = {1: "success", 0: "failure", -1: ""}[success]
        rate = store.attributes.control_hz or 0.0
        clips.append(Clip(f"episode {index}", [fit(frame) for frame in frames], outcome, steps, rate))
    return clips, hz / stride_for(hz)


def _pixels(frame: Any) -> Any:
    """An image as uint8; stores of Diffusion Policy hold 0..255 as float32."""
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


def _replayed(
    store: Any, index: int, stride: int, camera: str | None, options: Mapping[str, Any]
) -> tuple[list[Any], list[int], int]:
    seed = int(store.seeds[index])
    if store.attributes.task is None or seed < 0:
        raise UserError(f"{store.path}: no images, and no task and seed to replay episode {index} from")
    task = recorded(store.attributes).given(options)
    env = Task(task.id, task.varied).make_vec(1, render_mode="rgb_array", **_view(task.spec, camera))
    try:
        env.reset(seed=[seed])  # type: ignore[arg-type]
        frames, steps, done, success = [env.render()[0]], [0], False, False  # type: ignore[index]
        space = env.single_action_space  # type: ignore[attr-defined]
        shown = Episode(store.episode(index, ["action"]), seed)
        for number, action in enumerate(executed_actions(store.attributes, shown), start=1):
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

"""Pictures as observations: ``cameras=["agentview", ...]`` and ``camera_size=84`` of every task.

A picture is uint8 ``[H, W, 3]``, upright, under the name that the simulator gives its camera. The keywords are plain values: lists and
numbers.
"""

from collections.abc import Collection, Sequence
from typing import Any

from dopr_robot.envs.registration import TaskSpec
from dopr_robot.errors import UnknownNameError, UserError

CAMERA_SIZE = 84
"""Height and width of a picture, in pixels: what the literature of image-based control has (DrQ, robomimic)."""
LARGEST = 4096


def check_cameras(task: TaskSpec, cameras: Any, known: Collection[str] | None = None) -> tuple[str, ...]:
    """The names, where all are cameras of the task.

    Args:
        task: which.
        cameras: a list of names.
        known: the cameras that there are; None: those of the TaskSpec.

    Raises:
        UserError: no list of names, a name twice, or one that the task does not have, with the closest that it has.
    """
    if (
        isinstance(cameras, str)
        or not isinstance(cameras, Sequence)
        or not all(isinstance(each, str) for each in cameras)
    ):
        raise UserError(f'cameras={cameras!r} has to be a list of names, such as ["agentview"]')
    known = task.cameras if known is None else known
    for index, camera in enumerate(cameras):
        if not known:
            raise UserError(f"{task.id} has no cameras: leave {camera!r} out")
        if camera not in known:
            raise UnknownNameError(f"camera of {task.id}:", camera, known)
        if camera in cameras[:index]:
            raise UserError(f"cameras={list(cameras)} names {camera!r} twice")
    return tuple(cameras)


def check_size(camera_size: Any) -> tuple[int, int]:
    """Height and width of ``84`` or ``(84, 84)``. Raises UserError for anything else."""
    sides = (camera_size, camera_size) if isinstance(camera_size, int) else camera_size
    if isinstance(sides, Sequence) and len(sides) == 2:
        height, width = sides
        if all(type(side) is int and 1 <= side <= LARGEST for side in (height, width)):
            return height, width
    raise UserError(
        f"camera_size={camera_size!r} has to be a whole number of pixels from 1 to {LARGEST}, or a height and a width"
    )

"""What an observation has to look like to be a picture, and whose picture it is: one rule for stores, training and policies."""

from collections.abc import Iterable, Sequence

CHANNELS = (1, 3, 4)

_ELSEWHERE = {"img": "image", "pixels": "image"}
"""What a data set calls a camera, and what the task does: PushT's human demonstrations say ``img``."""


def is_image(shape: Sequence[int], dtype: object) -> bool:
    """Whether one step of this shape and dtype is a picture: uint8 ``[height, width, 1, 3 or 4]``. Everything else is numbers."""
    return str(dtype) == "uint8" and len(shape) == 3 and shape[-1] in CHANNELS


def camera_of(key: str, cameras: Iterable[str]) -> str | None:
    """The camera whose pictures a data set keeps under ``key``; None: no camera's.

    robomimic appends ``_image``, LeRobot puts ``observation.images.`` before, PushT's demonstrations say ``img``.

    >>> camera_of("agentview_image", ["agentview", "frontview"])
    'agentview'
    """
    last = key.rsplit(".", 1)[-1]
    names = (key, key.removesuffix("_image"), last, last.removesuffix("_image"), _ELSEWHERE.get(last, key))
    cameras = tuple(cameras)
    return next((name for name in names if name in cameras), None)

"""What an observation has to look like to be a picture: one rule for stores, training and policies."""

from collections.abc import Sequence

CHANNELS = (1, 3, 4)


def is_image(shape: Sequence[int], dtype: object) -> bool:
    """Whether one step of this shape and dtype is a picture: uint8 ``[height, width, 1, 3 or 4]``. Everything else is numbers."""
    return str(dtype) == "uint8" and len(shape) == 3 and shape[-1] in CHANNELS

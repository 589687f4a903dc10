"""The pictures of a LeRobot data set: in videos, found by their time as LeRobot finds them, or in columns of parquet."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.datasets.formats.format import inside
from dopr_robot.datasets.formats.lerobot_files import Feature, Row, Table, reading
from dopr_robot.errors import MissingExtraError, UserError

TOLERANCE = 1e-4
"""Seconds between a step and its picture; LeRobot's ``tolerance_s``."""


def av() -> Any:
    """PyAV. Raises MissingExtraError."""
    try:
        import av as found
    except ImportError:
        raise MissingExtraError("LeRobot's video", "lerobot") from None
    return found


class Camera:
    """The videos of one camera, episode after episode, each file decoded once from start to end.

    A step's picture is the one whose time in the video is nearest: a camera may run faster than the data, never slower, and a
    frame that was lost is missed where it is wanted and shifts nothing.
    """

    def __init__(self, root: Path, name: str, feature: Feature, fps: float) -> None:
        if feature.depth:
            raise UserError(f"{root}: {name} is a video of depth: only colour was expected")
        self.root, self.name, self.feature, self.fps = root, name, feature, fps
        self.file: Path | None = None
        self.container: Any = None
        self.frames: Iterator[Any] = iter(())
        self.before: Any = None
        self.after: Any = None

    def read(self, row: Row, times: NDArray[np.floating]) -> NDArray[np.uint8]:
        """``[T, H, W, 3]`` at ``times [T]``, s from the episode's first step."""
        file, start = row.videos[self.name]
        place = f"{self.root}: {file.relative_to(self.root)}"
        found: NDArray[np.uint8] | None = None
        with reading(place, "decoded", row.number):
            if not file.is_file():
                raise UserError(f"{place}: is missing (episode {row.number})")
            for step in np.argsort(times, kind="stable"):
                time = start + float(times[step])
                if file != self.file or (self.before is not None and time < self.before.time - TOLERANCE):
                    self._open(file, place, row.number)
                frame = self._nearest(time)
                if frame is None or not abs(frame.time - time) <= TOLERANCE:
                    raise UserError(self._unmatched(place, row.number, int(step), time, frame))
                if found is None:
                    found = np.empty((len(times), frame.height, frame.width, 3), np.uint8)
                found[step] = frame.to_ndarray(format="rgb24")
        assert found is not None
        return found

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
        self.container = self.file = None

    def _open(self, file: Path, place: str, episode: int) -> None:
        self.close()
        self.container, self.file = av().open(str(file)), file
        if not self.container.streams.video:
            raise UserError(f"{place}: has no video in it (episode {episode})")
        stream = self.container.streams.video[0]
        if stream.width * stream.height > self.feature.pixels:
            raise UserError(
                f"{place}: its pictures are {stream.height} x {stream.width} and meta/info.json declares "
                f"{list(self.feature.shape)} (episode {episode})"
            )
        # Frames that grow on the way are refused by the decoder; it counts what it pads them to.
        stream.codec_context.options = {"max_pixels": str(4 * (self.feature.pixels + 64 * 64))}
        self.frames = (frame for frame in self.container.decode(stream) if frame.time is not None)
        self.before, self.after = None, next(self.frames, None)

    def _nearest(self, time: float) -> Any:
        """The decoded frame nearest a time that is not before the last one asked for."""
        while self.after is not None and self.after.time <= time:
            self.before, self.after = self.after, next(self.frames, None)
        around = [frame for frame in (self.before, self.after) if frame is not None]
        return min(around, key=lambda frame: abs(frame.time - time), default=None)

    def _unmatched(self, place: str, episode: int, step: int, time: float, frame: Any) -> str:
        rate = self.container.streams.video[0].average_rate
        nearest = "there is none" if frame is None else f"the nearest is {abs(frame.time - time):.4g} s away"
        return (
            f"{place}: step {step} needs the picture at {time:.4f} s and {nearest} ({TOLERANCE:g} s is LeRobot's tolerance): the "
            f"video ({float(rate or 0):.4g} frames a second) and the data ({self.fps:.4g}) do not match (episode {episode})"
        )


def pictures(root: Path, table: Table, name: str, feature: Feature, start: int, row: Row) -> NDArray[Any]:
    """Images that lie in a column of parquet, as bytes or as a file's name, ``[T, H, W, C]``, of an episode that begins at ``start``."""
    from PIL import Image

    place, found = f"{table.place}: {name}", None
    with reading(place, "read as an image", row.number):
        for step, scalar in enumerate(table.table.column(name).slice(start, row.length)):
            cell = scalar.as_py()
            source = BytesIO(cell["bytes"]) if cell["bytes"] is not None else inside(root, cell["path"])
            with Image.open(source) as image:
                if image.width * image.height > feature.pixels:
                    raise UserError(
                        f"{place}: an image is {image.height} x {image.width} and meta/info.json declares "
                        f"{list(feature.shape)} (episode {row.number})"
                    )
                # A palette's numbers are no colours.
                value = np.asarray(image.convert("RGB") if image.mode in ("P", "PA", "CMYK", "YCbCr") else image)
            if found is None:
                found = np.empty((row.length, *value.shape), value.dtype)
            if value.shape != found.shape[1:]:
                raise UserError(f"{place}: its images differ in size (episode {row.number})")
            found[step] = value
    assert found is not None
    return found

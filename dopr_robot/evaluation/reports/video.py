"""Videos: a grid of episodes, and the stills of those that failed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
from gymnasium.vector import VectorEnv
from PIL import Image, ImageDraw, ImageFont

from dopr_robot.errors import DoprError, UserError
from dopr_robot.files import replacing

CELL_HEIGHT = 240
CAPTION = 20
BORDER = 4
COLOURS = {"running": (120, 120, 120), "success": (0, 140, 80), "other": (200, 40, 40)}
LONGEST_FPS = 15.0


@dataclass
class Clip:
    """Frames of one episode.

    Attributes:
        title: what it is ("best", "episode 12").
        frames: ``[height, width, 3]`` uint8, every ``stride`` steps from step 0, and the last one.
        outcome: how it ended; "success" is green, anything else red, "" stays grey.
        steps: the control step of each frame; none are shown where there are none.
        hz: control rate; 0: seconds are not shown.
    """

    title: str
    frames: list[np.ndarray] = field(default_factory=list)
    outcome: str = ""
    steps: Sequence[int] = ()
    hz: float = 0.0

    def moment(self, index: int) -> str:
        """What stands below a frame: ``step 120 · 6.0 s``."""
        if index >= len(self.steps):
            return ""
        seconds = f" · {self.steps[index] / self.hz:.1f} s" if self.hz else ""
        return f"step {self.steps[index]}{seconds}"


def rendered(env: VectorEnv, copies: Sequence[int]) -> Sequence[np.ndarray]:
    """An image of each of these copies. Raises UserError where the task draws none."""
    if hasattr(env, "render_copies"):
        images: Any = env.render_copies(copies)
    else:
        every: Any = env.render()
        images = [None] if every is None or len(every) != env.num_envs else [every[copy] for copy in copies]
    if any(image is None for image in images):
        raise UserError("the task does not render images: use --video 0")
    return cast(Sequence[np.ndarray], images)


def fit(image: np.ndarray, height: int = CELL_HEIGHT) -> np.ndarray:
    """An image scaled to ``height``, its sides even, as video wants them."""
    width = 2 * round(image.shape[1] * height / image.shape[0] / 2)
    if image.shape[:2] == (height, width):
        return np.asarray(image, np.uint8)
    return np.asarray(Image.fromarray(np.asarray(image, np.uint8)).resize((width, height), Image.Resampling.LANCZOS))


def stride_for(control_hz: float, longest_fps: float = LONGEST_FPS) -> int:
    """Steps between frames that keep a video in real time below ``longest_fps``."""
    return max(1, round(control_hz / longest_fps))


def write_grid(path: Path, clips: Sequence[Clip], columns: int, fps: float, hold_s: float = 1.0) -> None:
    """Write clips as one video, in rows of ``columns``; an ended one stays with its outcome's colour. Moved in whole.

    Raises:
        UserError: there is no frame.
    """
    clips = [clip for clip in clips if clip.frames]
    if not clips:
        raise UserError(f"no frames for {path}: no episode was rendered")
    columns = min(columns, len(clips))
    longest = max(len(clip.frames) for clip in clips) + round(hold_s * fps)

    def frames() -> Iterator[np.ndarray]:
        for time in range(longest):
            cells = [_cell(clip, time) for clip in clips]
            blank = np.full_like(cells[0], 255)
            cells += [blank] * (-len(cells) % columns)
            yield np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])

    (write_animation if path.suffix == ".webp" else write_video)(path, frames(), fps)


def write_animation(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames ``[height, width, 3]`` as an animated WebP, which a page shows like a picture; moved in whole."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    with replacing(path) as beside:
        first.save(
            beside, save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=60, method=4
        )


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames ``[height, width, 3]`` (even sides) as H.264; moved in whole.

    Raises DoprError where not all of them are in the file: ffmpeg says nothing of a full disk.
    """
    options: Any = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2, "quality": 7}
    writer: Any
    with replacing(path) as beside:
        count, reason = 0, "cut short"
        try:
            with imageio.get_writer(beside, fps=fps, **options) as writer:
                for frame in frames:
                    writer.append_data(frame)
                    count += 1
        except OSError as error:  # its text is a page of what ffmpeg was called with
            reason = error.strerror or "ffmpeg stopped"
            count = -1
        if not 0 <= count == _frames_in(beside):
            raise DoprError(f"{path}: the video can not be written ({reason}): is there room on the disk?")


def _frames_in(path: Path) -> int:
    """Frames of a video file; -1 where it is none."""
    try:
        return int(imageio_ffmpeg.count_frames_and_secs(str(path))[0])
    except (OSError, RuntimeError):
        return -1


def still_sheet(clips: Sequence[Clip], stills: int = 5) -> Image.Image | None:
    """A sheet with a row for every clip and ``stills`` moments of it, from the first to the last. None without clips."""
    clips = [clip for clip in clips if clip.frames]
    if not clips:
        return None
    rows = []
    for clip in clips:
        moments = np.linspace(0, len(clip.frames) - 1, stills).round().astype(int)
        row = [
            _cell(
                Clip(clip.title, [clip.frames[moment]], clip.outcome, clip.steps[moment : moment + 1], clip.hz),
                0,
                caption=i == 0,
            )
            for i, moment in enumerate(moments)
        ]
        rows.append(np.hstack(row))
    return Image.fromarray(np.vstack(rows))


def _cell(clip: Clip, time: int, caption: bool = True) -> np.ndarray:
    ended, index = time >= len(clip.frames) - 1, min(time, len(clip.frames) - 1)
    frame = clip.frames[index]
    state = "running" if not ended or not clip.outcome else "success" if clip.outcome == "success" else "other"
    height, width = frame.shape[:2]
    moment = clip.moment(index)
    foot = CAPTION if moment else BORDER
    canvas = Image.new("RGB", (width + 2 * BORDER, height + CAPTION + foot), COLOURS[state])
    canvas.paste(Image.fromarray(frame), (BORDER, CAPTION))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    if caption:
        text = f"{clip.title} · {clip.outcome}" if ended and clip.outcome else clip.title
        draw.text((BORDER + 2, 3), text, fill="white", font=font)
    draw.text((BORDER + 2, CAPTION + height + 3), moment, fill="white", font=font)
    return np.asarray(canvas)

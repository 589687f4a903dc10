"""Episodes shown: which ones, run again by their seeds with a camera."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from dopr_robot.evaluation.reports.video import Clip, fit, rendered, still_sheet, stride_for, write_grid
from dopr_robot.evaluation.rollouts.episode import Episode, Job
from dopr_robot.evaluation.rollouts.plan import Evaluation
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.files import replacing
from dopr_robot.progress import progress

logger = logging.getLogger(__name__)
STILL_ROWS = 6


def choose(records: Sequence[EpisodeRecord], kind: str, number: int) -> dict[int, str]:
    """Up to ``number`` episodes to show, ``{episode: "best" | "worst" | "random"}``, a third of each; none twice.

    Best first: success before the rest, an attain task's early success before a late one, then the larger return. The random ones
    are drawn with a fixed seed, so the same records give the same choice.
    """

    def rank(record: EpisodeRecord) -> tuple[Any, ...]:
        waited = (record.first_success_step or 0) if kind == "attain" else -record.length
        return (record.outcome != "success", record.outcome == "exception", waited, -record.return_, record.episode)

    ordered = sorted((record for record in records if record.length), key=rank)
    best, worst = (number + 2) // 3, (number + 1) // 3
    chosen = {record.episode: "best" for record in ordered[:best]}
    chosen |= {record.episode: "worst" for record in ordered[best:][::-1][:worst]}
    rest = sorted(record.episode for record in ordered if record.episode not in chosen)
    drawn = np.random.default_rng(0).permutation(rest)[: number - best - worst]
    return chosen | {int(episode): "random" for episode in sorted(drawn)}


class Camera:
    """An observer of a rollout that keeps images of every episode.

    Args:
        stride: steps between two images.
        lengths: steps of each episode, where known: the last step is kept whatever the stride.
    """

    def __init__(self, stride: int, lengths: Mapping[int, int]) -> None:
        self.stride = stride
        self.lengths = lengths
        self.frames: dict[int, list[np.ndarray]] = {}
        self.steps: dict[int, list[int]] = {}

    def clip(self, title: str, episode: int, outcome: str, hz: float) -> Clip:
        """What was kept of an episode, under a title."""
        return Clip(title, self.frames.get(episode, []), outcome, self.steps.get(episode, []), hz)

    def __call__(
        self,
        env: VectorEnv,
        copies: Mapping[int, Episode],
        observation: Mapping[str, np.ndarray],
        executed: np.ndarray | None,
        planned: np.ndarray | None,
    ) -> None:
        """Keep the images that are due; an episode's own count is still that of before the step."""
        now = {copy: 0 if executed is None else episode.steps + 1 for copy, episode in copies.items()}
        due = [
            copy
            for copy, episode in copies.items()
            if now[copy] % self.stride == 0 or now[copy] == self.lengths.get(episode.job.episode)
        ]
        if due:
            for copy, image in zip(due, rendered(env, due), strict=True):
                episode = copies[copy].job.episode
                self.frames.setdefault(episode, []).append(fit(image))
                self.steps.setdefault(episode, []).append(now[copy])


def film(evaluation: Evaluation, records: Sequence[EpisodeRecord], titles: Mapping[int, str]) -> list[Clip]:
    """Run episodes again and film them, in the order of ``titles``.

    Each has to end as its record says; where one does not, the machine or its libraries have changed since, and that is logged.
    """
    recorded = {record.episode: record for record in records if record.episode in titles}
    camera = Camera(
        stride_for(evaluation.spec.control_hz), {episode: record.length for episode, record in recorded.items()}
    )
    again: list[EpisodeRecord] = []
    jobs = [Job(record.episode, record.seed) for record in recorded.values()]
    with progress("film", len(jobs), "episodes") as meter:

        def keep(record: EpisodeRecord) -> None:
            again.append(record)
            meter.advance()

        evaluation.rollout(camera, render_mode="rgb_array").run(jobs, keep, workers=1)
    for record in again:
        if record != recorded[record.episode]:
            logger.warning(
                "episode %d ran differently when it was filmed: these records are of another machine", record.episode
            )
    return [
        camera.clip(f"{title} · episode {episode}", episode, recorded[episode].outcome, evaluation.spec.control_hz)
        for episode, title in titles.items()
    ]


def show(evaluation: Evaluation, records: Sequence[EpisodeRecord], number: int, video: Path, stills: Path) -> None:
    """Film ``number`` episodes into a grid, and make a sheet of stills of those among them that failed.

    Args:
        video, stills: where the grid (mp4) and the sheet (png) go. No sheet where nothing failed; neither where every episode broke off
            before its first step.
    """
    clips = [clip for clip in film(evaluation, records, choose(records, evaluation.spec.kind, number)) if clip.frames]
    if not clips:
        logger.warning("no video: every episode broke off before its first step")
        return
    hz = evaluation.spec.control_hz
    write_grid(video, clips, columns=math.ceil(len(clips) ** 0.5), fps=hz / stride_for(hz))
    sheet = still_sheet([clip for clip in clips if clip.outcome != "success"][:STILL_ROWS])
    if sheet is not None:
        with replacing(stills) as beside:
            sheet.save(beside)

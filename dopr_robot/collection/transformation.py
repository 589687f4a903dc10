"""Many demonstrations from few: segments of a demonstration, each carried over to where its object lies now, and replayed.

The idea is that of MimicGen (Mandlekar et al., 2023, arXiv 2310.17596): while it works on an object, a hand moves alike relative
to that object, wherever it lies. A task that allows it says in a :class:`~dopr_robot.envs.segments.SegmentedTask` which object each of
its segments is relative to, where hand and objects are, and which action brings the hand to a pose. :class:`SegmentExpert` is then an
expert like any other, made of few demonstrations: it follows, per copy,

    target_t = P_now P_source^-1 target_t^source

with P the object's pose, after a straight way from where the hand is to the segment's first target. Unlike the paper's, the object is
looked at in every step until the segment's gripper command first changes (from then on the hand may hold it), actions are worked out in
closed loop, the hand has to arrive before the gripper moves, and steps in which the source's hand rests are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from dopr_robot.envs import Arrays, Floats, Segment, SegmentedTask, poses
from dopr_robot.errors import UserError

REST_M, REST_RAD = 0.0005, 0.005
"""A hand rests until it has moved so far from where it last was said to be: a tenth of a slow step."""
GRASP_STEPS = 10
"""Steps after a change of the gripper's command in which the hand may rest: the fingers need their time."""
WITHIN_M, PATIENCE = 0.01, 20
"""The gripper's command changes once the hand is so near to its target, in metres, or after so many steps of waiting. Without, noise makes
the fingers close beside the object: 76 of 100 episodes of PickPlace succeeded, and 96 with it (three sources, the expert's noise)."""


@dataclass(frozen=True)
class Piece:
    """One segment of one source.

    Attributes:
        segment: which.
        steps: of the source that are replayed, ``[T]``.
        targets: of the hand, ``[T, 4, 4]``.
        gripper: the action's copied entries, ``[T, G]``.
        contact: step at which the gripper's command first changes; the last one, where it never does.
        reference: pose of the object at that step, ``[4, 4]``.
    """

    segment: Segment
    steps: NDArray[np.intp]
    targets: Floats
    gripper: Floats
    contact: int
    reference: Floats

    def relative(self, place: Floats) -> Floats:
        """The targets as an object at ``place [4, 4]`` sees them, ``[T, 4, 4]``: turned by its symmetry as little as may be."""
        count = self.segment.symmetry
        turns = Rotation.from_rotvec(np.outer(2 * np.pi * np.arange(count) / count, [0.0, 0.0, 1.0]))
        images = np.tile(self.reference, (count, 1, 1))
        images[:, :3, :3] = self.reference[:3, :3] @ turns.as_matrix()
        angles = Rotation.from_matrix(place[:3, :3] @ images[:, :3, :3].transpose(0, 2, 1)).magnitude()
        return np.linalg.inv(images[np.argmin(angles)]) @ self.targets


def cut(task: SegmentedTask, arrays: Arrays) -> list[Piece]:
    """A source's segments. Raises UserError where it has not all of them."""
    arrays = {key: np.asarray(arrays[key], np.float64) for key in task.keys}
    gripper, targets = arrays["action"][:, task.gripper], task.targets(arrays)
    places, moving = task.objects(arrays), _moving(targets, gripper)
    pieces = []
    for segment, steps in zip(task.segments, task.split(arrays), strict=True):
        kept = np.arange(len(targets))[steps]
        kept = kept[moving[kept]]
        if not len(kept):
            raise UserError(f"the hand never moves while it should work on {segment.object}")
        ahead = np.minimum(np.arange(len(kept)) + task.lead, len(kept) - 1)
        changes = np.flatnonzero((gripper[kept] != gripper[kept[0]]).any(1))
        contact = int(changes[0]) if len(changes) else len(kept) - 1
        reference = places[segment.object][kept[contact]]
        pieces.append(Piece(segment, kept, targets[kept[ahead]], gripper[kept], contact, reference))
    return pieces


class SegmentExpert:
    """The expert that a few demonstrations make: one of them, drawn by the episode's seed, transformed segment by segment.

    Args:
        env: a batch of copies.
        task: how their task is cut and acted in.
        sources: demonstrations, each ``{key: [T, ...]}`` with the keys that ``task`` names.

    Raises:
        UserError: a source has not all segments.
    """

    def __init__(self, env: Any, task: type[SegmentedTask], sources: Sequence[Arrays]) -> None:
        self.task, self.noise = task(env), task.noise
        self.sources = []
        for index, arrays in enumerate(sources):
            try:
                self.sources.append(cut(self.task, arrays))
            except UserError as error:
                raise UserError(f"source demonstration {index}: {error}") from None
        width = self.sources[0][0].gripper.shape[1]
        self._plans: list[_Plan | None] = [None] * env.num_envs
        self._gripper = np.zeros((env.num_envs, width))

    def begin(self, copy: int, seed: int) -> dict[str, Any]:
        """A copy's episode begins; which source it follows."""
        source = int(np.random.default_rng((seed, 2)).integers(len(self.sources)))
        self._plans[copy] = _Plan(self.task, self.sources[source])
        return {"source": source}

    def act(self) -> Floats:
        """Clean actions, ``[N, A]``."""
        arrays = self.task.observe()
        hands, objects = self.task.hand(arrays), self.task.objects(arrays)
        targets = hands.copy()
        for copy, plan in enumerate(self._plans):
            if plan is not None:
                places = {name: place[copy] for name, place in objects.items()}
                targets[copy], self._gripper[copy] = plan.follow(hands[copy], places)
        return self.task.action(targets, self._gripper)


class _Plan:
    """What is left to do in one episode."""

    def __init__(self, task: SegmentedTask, pieces: Sequence[Piece]) -> None:
        self.task, self.left = task, list(pieces)
        self.path: Floats = np.zeros((0, 4, 4))  # as the object sees it
        self.gripper: Floats = np.zeros((0, 0))
        self.step, self.contact, self.name = 0, 0, ""
        self.place: Floats = np.eye(4)
        self.waited = 0

    def follow(self, hand: Floats, places: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """Target and gripper of this step; the last ones go on at the end."""
        if self.step == len(self.path) and self.left:
            self._enter(self.left.pop(0), hand, places)
        if self.step <= self.contact:
            self.place = places[self.name]
        index = min(self.step, len(self.path) - 1)
        target = self.place @ self.path[index]
        grips = index and (self.gripper[index] != self.gripper[index - 1]).any()
        if grips and self.waited < PATIENCE and np.linalg.norm(target[:3, 3] - hand[:3, 3]) > WITHIN_M:
            self.waited += 1
            return target, self.gripper[index - 1]
        self.waited = 0
        self.step = min(self.step + 1, len(self.path))
        return target, self.gripper[index]

    def _enter(self, piece: Piece, hand: Floats, places: Mapping[str, Floats]) -> None:
        place = places[piece.segment.object]
        relative = piece.relative(place)
        way = straight_way(np.linalg.inv(place) @ hand, relative[0], self.task.reach, self.task.turn)
        before = self.gripper[-1] if len(self.gripper) else piece.gripper[0]
        self.path = np.concatenate([way, relative])
        self.gripper = np.concatenate([np.tile(before, (len(way), 1)), piece.gripper])
        self.step, self.contact, self.name = 0, len(way) + piece.contact, piece.segment.object


def straight_way(start: Floats, end: Floats, reach: float, turn: float) -> Floats:
    """Poses ``[n, 4, 4]`` strictly between two, at most ``reach`` metres and ``turn`` radians apart."""
    ends = Rotation.from_matrix(np.stack([start[:3, :3], end[:3, :3]]))
    distance, angle = np.linalg.norm(end[:3, 3] - start[:3, 3]), (ends[0].inv() * ends[1]).magnitude()
    parts = max(1, int(np.ceil(max(distance / reach, angle / turn))))
    shares = np.arange(1, parts + 1) / parts  # Slerp wants at least one
    positions = start[:3, 3] + shares[:, None] * (end - start)[:3, 3]
    return poses(positions, Slerp([0.0, 1.0], ends)(shares).as_matrix())[:-1]


def _moving(targets: Floats, gripper: Floats) -> NDArray[np.bool_]:
    """Steps that are worth replaying, ``[T]``: the hand has moved since the last of them, or the gripper is at work."""
    rotations = Rotation.from_matrix(targets[:, :3, :3])
    kept = np.zeros(len(targets), bool)
    last, changed = 0, -GRASP_STEPS
    for step in range(len(targets)):
        if step and (gripper[step] != gripper[step - 1]).any():
            changed = step
        distance = np.linalg.norm(targets[step, :3, 3] - targets[last, :3, 3])
        angle = (rotations[last].inv() * rotations[step]).magnitude()
        if step == 0 or step - changed < GRASP_STEPS or distance > REST_M or angle > REST_RAD:
            kept[step], last = True, step
    return kept

"""Scripted experts of robosuite's tasks, under OSC_POSE.

A way-point follows from what is observed now, and nothing is remembered: a thing that slipped or a push is answered as it is seen, and a
policy that sees the same can learn it. One copy is decided at a time, so that an episode does not depend on those beside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float64]

OBSERVED = ("eef_pos", "eef_quat", "gripper_qpos")
METRES, RADIANS = 0.05, 0.5
"""An action's unit, in OSC_POSE's defaults."""
GAIN = 1.5
"""The controller's spring is critically damped for a target that stands still; asked for half as much more, it overshoots by 1 %."""
UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True)
class Pose:
    """Position ``[3]`` in metres and rotation ``[3, 3]`` in the world; a hand's z axis points out of it, its fingers close along y."""

    position: Floats
    rotation: Floats

    def at(self, x: float, y: float, z: float) -> Floats:
        """A place ``[3]`` that is given in this pose's own axes."""
        return self.position + self.rotation @ np.array([x, y, z])


@dataclass(frozen=True)
class Hand(Pose):
    """What is seen of a hand, and what it is told.

    Attributes:
        opening: distance of the fingers, in metres; 0.08 at most.
        speed: largest share of an action's longest way and turn.
    """

    opening: float
    speed: float

    def towards(self, position: Floats, rotation: Floats, closed: bool) -> Floats:
        """The action ``[7]`` that brings the hand nearer to a pose."""
        way = _limited(GAIN * (position - self.position) / METRES, self.speed)
        turn = _limited(GAIN * Rotation.from_matrix(rotation @ self.rotation.T).as_rotvec() / RADIANS, self.speed)
        return np.concatenate([way, turn, [1.0 if closed else -1.0]])

    def turn_to(self, rotation: Floats) -> float:
        """The angle to a rotation, in radians."""
        return angle_of(rotation @ self.rotation.T)

    def stay(self, closed: bool) -> Floats:
        """The action ``[7]`` that leaves the hand where it is and opens or closes it."""
        return self.towards(self.position, self.rotation, closed)

    def rise(self, rotation: Floats, closed: bool) -> Floats:
        """The action ``[7]`` that goes straight up."""
        return self.towards(self.position + 0.1 * UP, rotation, closed)

    def back_off(self) -> Floats:
        """The action ``[7]`` that leaves what was let go, along the hand's own axis."""
        return self.towards(self.position - 0.1 * self.rotation[:, 2], self.rotation, False)

    def holds(self, grip: Floats, width: float) -> bool:
        """Whether the fingers are about something of this width, in metres."""
        return float(np.linalg.norm(grip - self.position)) < 0.03 and abs(self.opening - width) < 0.006

    def fetch(self, grip: Floats, rotation: Floats, width: float, above: float = 0.08, near: float = 0.008) -> Floats:
        """Above what is to be gripped, down a funnel along the hand's own axis, and close when within ``near`` metres."""
        axis, off = rotation[:, 2], grip - self.position
        deep = float(off @ axis)
        aside = float(np.linalg.norm(off - deep * axis))
        turn = self.turn_to(rotation)
        opened = self.opening > width + 0.008
        reached = near if opened else 0.02
        if aside < reached and abs(deep) < reached and turn < 0.15:
            return self.towards(grip, rotation, True)
        high = np.clip(2.0 * (aside - 0.006) + 0.3 * (turn - 0.1), 0.0, above) if opened else above
        return self.towards(grip - high * axis, rotation, False)

    def fetch_over(self, grip: Floats, rotation: Floats, width: float, above: float, near: float = 0.012) -> Floats:
        """:meth:`fetch` of what stands behind a wall: up, ``above`` metres over it, and down."""
        aside = float(np.linalg.norm((grip - self.position)[:2]))
        if aside > 0.1 and self.position[2] < grip[2] + above - 0.04:
            return self.rise(rotation, False)
        return self.fetch(grip, rotation, width, above, near)

    def carry(self, move: Floats, rotation: Floats, above: float, near: float = 0.015, lever: float = 0.0) -> Floats:
        """Move what is held by ``move [3]``: up to ``above`` metres over the goal, over, and down a funnel of radius ``near``.

        With a ``lever`` in metres, what is left to turn counts as aside too, and is not turned before it is up.
        """
        aside = float(np.linalg.norm(move[:2])) + lever * max(0.0, self.turn_to(rotation) - 0.15)
        high = move[2] + np.clip(4.0 * (aside - near), 0.0, above)
        over = move.copy() if high < 0.03 else move * np.clip(1.0 - (high - 0.03) / above, 0.0, 1.0)
        over[2] = high
        return self.towards(self.position + over, self.rotation if lever and high > 0.06 else rotation, True)


def angle_of(turn: Floats) -> float:
    """Of a rotation ``[3, 3]``, in radians."""
    return float(np.linalg.norm(Rotation.from_matrix(turn).as_rotvec()))


def turned(yaw: float) -> Floats:
    """A turn about the vertical, ``[3, 3]``."""
    return np.array([[np.cos(yaw), -np.sin(yaw), 0.0], [np.sin(yaw), np.cos(yaw), 0.0], [0.0, 0.0, 1.0]])


def downward(yaw: float) -> Floats:
    """A hand that points down, its x axis at ``yaw``, ``[3, 3]``."""
    return turned(yaw) @ np.diag([1.0, -1.0, -1.0])


def yaw_of(rotation: Floats) -> float:
    """Where the x axis points, in radians."""
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))


def nearest_turn(yaw: float, now: float, turns: int) -> float:
    """Of the yaws that look like ``yaw`` to a thing of so many equal sides, the one nearest to ``now``."""
    side = 2 * np.pi / turns
    return now + (yaw - now + side / 2) % side - side / 2


def _wrapped(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _limited(vector: Floats, longest: float) -> Floats:
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-9))


class RobosuiteExpert:
    """What acts for every copy of a task, from its observation.

    Attributes:
        facing: where each arm's base looks, in radians from the world's x axis; an action is given in the axes of the base.
    """

    noise = np.array([0.1] * 6 + [0.0])
    speed = 1.0
    facing: tuple[float, ...] = (0.0,)

    def __init__(self, env: Any) -> None:
        self.env = env

    def act(self) -> Floats:
        """Clean actions, ``[N, 7 arms]``."""
        keys = ["object", *(f"robot{arm}_{key}" for arm in range(len(self.facing)) for key in OBSERVED)]
        seen = (self.env.observation[key].astype(np.float64) for key in keys)
        return np.stack([self._act(*each) for each in zip(*seen, strict=True)])

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        """The action ``[7 arms]`` in the world's axes for the observation ``object`` and the hands."""
        raise NotImplementedError

    def _act(self, thing: Floats, *seen: Floats) -> Floats:
        if not seen[1].any():  # a copy that was never reset
            return np.zeros(7 * len(self.facing))
        hands = []
        for position, quaternion, fingers in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
            at = pose(np.concatenate([position, quaternion]))
            hands.append(Hand(at.position, at.rotation, float(fingers[0] - fingers[1]), self.speed))
        told = self.decide(thing, *hands).reshape(-1, 7)
        for action, yaw in zip(told, self.facing, strict=True):
            if yaw:
                action[:6] = (action[:6].reshape(2, 3) @ turned(yaw)).ravel()
        return told.ravel()


def pose(numbers: Floats) -> Pose:
    """From position and quaternion ``[7]``, in robosuite's order x, y, z, w."""
    return Pose(numbers[:3], Rotation.from_quat(numbers[3:]).as_matrix())


class LiftExpert(RobosuiteExpert):
    """Down on the cube, close, and up."""

    speed = 0.5
    """As fast as a human's hand on the short way."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        (hand,) = hands
        cube = pose(thing[:7])
        upright = downward(nearest_turn(yaw_of(cube.rotation), yaw_of(hand.rotation), 4))
        if hand.holds(cube.position, 0.042):
            return hand.towards(hand.position + 0.05 * UP, upright, True)
        return hand.fetch(cube.position, upright, 0.042)


class CanExpert(RobosuiteExpert):
    """Grip the can, over the walls into its quarter of the bin, let go."""

    goal = np.array([0.155, 0.34, 0.93])
    """Of the can's centre when it is let go: between the walls of the second bin's last quarter, in the corner nearest to the arm."""
    radius, width = 0.02, 0.05
    grip = 0.015
    """Above the can's centre: deeper, a hand beside a wall would rest on it."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        (hand,) = hands
        can, upright = pose(thing[7:14]), downward(0.0)
        if np.abs(self.goal - can.position)[:2].max() < self.radius and can.position[2] < self.goal[2] + 0.015:
            return hand.towards(hand.position, upright, False)
        grip = can.at(0.0, 0.0, self.grip)
        if hand.holds(grip, self.width):
            return hand.carry(self.goal - can.position, upright, 0.1)
        return hand.fetch(grip, upright, self.width)


class SquareExpert(RobosuiteExpert):
    """Grip the nut by its handle, turn a side to the peg's, lower it over the peg and let go."""

    peg = np.array([0.23, 0.1, 0.92])
    """Where the nut is let go, 3 cm below the peg's top."""
    handle, width = 0.06, 0.032
    wrist = 1.9
    """How far the hand may be turned to either side, in radians."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        (hand,) = hands
        nut = pose(thing[7:14])
        grip, now = nut.at(self.handle, 0.0, 0.0), yaw_of(hand.rotation)
        upright = downward(nearest_turn(yaw_of(nut.rotation), now, 2))
        off = self.peg - nut.position
        if np.abs(off[:2]).max() < 0.01 and off[2] > -0.008:
            return hand.stay(False)
        if hand.holds(grip, self.width):
            level = turned(yaw_of(nut.rotation) + self._turn(yaw_of(nut.rotation), now))
            return hand.carry(off, level @ nut.rotation.T @ hand.rotation, 0.08, near=0.006)
        return hand.fetch(grip, upright, self.width)

    def _turn(self, nut: float, hand: float) -> float:
        """The shortest turn, in radians, to a side of the peg's; not with the handle outward, where the arm does not reach, and not
        beyond the wrist's range."""
        turns = [_wrapped(side - nut) for side in (0.5 * np.pi, np.pi, 1.5 * np.pi)]
        return min((turn for turn in turns if abs(hand + turn) < self.wrist), key=abs, default=turns[1])

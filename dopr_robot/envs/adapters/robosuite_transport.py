"""The scripted expert of robosuite's Transport: two arms that hand a hammer over, under OSC_POSE."""

from dataclasses import dataclass

import numpy as np

from dopr_robot.envs.adapters.robosuite_experts import (
    UP,
    Floats,
    Hand,
    Pose,
    RobosuiteExpert,
    downward,
    nearest_turn,
    pose,
    yaw_of,
)

HELD, LID, TRASH = 0.03, 0.02, 0.04
"""Widths of the hammer's handle, of the lid's and of the trash, in metres."""
END = 0.058
"""How far from the middle of the hammer's handle each arm grips it."""
HEAD = 0.035
"""How much longer than its handle the hammer is, in metres."""
AWAY = 0.1
"""How far from its grip, in metres, a hand that let the hammer go is clear of it: nearer, its fingers would catch the head."""
FACING = (np.pi / 2, -np.pi / 2)


@dataclass(frozen=True)
class Scene:
    """What is seen of the things, and which hand holds the hammer, told from the fingers.

    Attributes:
        target, bin: bases of the hammer's bin and of the trash's, ``[3]``.
        binned: whether the trash is in its bin.
        grips: where each hand grips the hammer, ``[3]``.
        heading: where its handle points, from the first arm to the second, in radians.
        given, taken: whether the first and the second hand hold it.
        free: whether the first hand is away from it.
    """

    hammer: Pose
    trash: Pose
    lid: Pose
    target: Floats
    bin: Floats
    binned: bool
    grips: tuple[Floats, Floats]
    heading: float
    given: bool
    taken: bool
    free: bool

    @classmethod
    def seen(cls, thing: Floats, first: Hand, second: Hand) -> "Scene":
        """From the observation ``object`` ``[41]``."""
        hammer, trash, lid = (pose(thing[at : at + 7]) for at in (0, 7, 14))
        axis = hammer.rotation[:, 2] * (1.0 if hammer.rotation[1, 2] > 0.0 else -1.0)
        grips = hammer.position - END * axis, hammer.position + END * axis
        return cls(
            hammer=hammer,
            trash=trash,
            lid=lid,
            target=thing[21:24],
            bin=thing[24:27],
            binned=bool(thing[28] > 0.5),
            grips=grips,
            heading=float(np.arctan2(axis[1], axis[0])),
            given=first.holds(grips[0], HELD),
            taken=second.holds(grips[1], HELD),
            free=float(np.linalg.norm(first.position - grips[0])) > AWAY,
        )


class TransportExpert(RobosuiteExpert):
    """The first arm takes off the lid and holds the hammer out; the second bins the trash, takes the hammer and puts it into its bin.

    Both work at once.
    """

    facing = FACING
    noise = np.array(([0.1] * 6 + [0.0]) * 2)
    table = np.array([-0.2, -0.42, 0.83])
    """Where the lid's handle is when the lid is put down."""
    clear = 0.36
    """How far from the middle, along y, a hand goes from side to side: nearer to its base the elbow is bent to its end."""
    start = np.array([0.2, -0.45])
    """The middle of the hammer's first bin, which stands there within 5 mm."""
    lean = 0.3
    """By how many radians a hand points back to its base where it works near it: straight down the forearm and the hand would be one line
    there, the wrist's singularity (joint 6 at pi), and the elbow bent to its end."""
    meeting, tilt = np.array([0.0, 0.0, 1.05]), 0.3
    """Where the first hand holds the hammer out, and by how many radians it then points outward: straight down neither arm would reach."""
    rest = (np.array([0.0, -0.38, 1.25]), np.array([0.0, 0.3, 1.2]))
    near = 0.05
    """How far from a bin's middle something may be let go."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        first, second = hands
        scene = Scene.seen(thing, first, second)
        return np.concatenate([self._first(first, scene), self._second(second, scene)])

    def _first(self, hand: Hand, scene: Scene) -> Floats:
        inward = self._inward(self.facing[0])
        if scene.taken or scene.hammer.position[1] > 0.2:
            if scene.given or hand.opening < 0.05:
                return hand.stay(False)
            if not scene.free:
                return hand.back_off()  # its fingers are on both sides of the handle
            return hand.towards(self.rest[0], inward, False)
        if scene.given:
            if hand.position[1] < -0.25:  # in its bin, or where the wrist would be singular on the way if it turned
                kept = self._inward(yaw_of(hand.rotation))
                if scene.hammer.position[2] < 1.02:
                    return self._lift(hand, scene.hammer, kept)
                return hand.towards(self.meeting, kept, True)
            return hand.towards(self.meeting, tilted(downward(self.facing[0]), self.tilt), True)
        if scene.lid.position[2] > self.table[2] + 0.03:
            return self._uncover(hand, scene.lid, inward)
        way = scene.grips[0] - hand.position
        if abs(way[0]) > 0.1:
            over = self._around(way, hand.position) if hand.position[2] > 1.0 else np.zeros(3)
            return hand.towards(np.array([*(hand.position + over)[:2], 1.06]), inward, False)
        across = self._inward(nearest_turn(scene.heading, self.facing[0], 2))
        return hand.fetch_over(scene.grips[0] + 0.004 * UP, across, HELD, 0.22)

    def _lift(self, hand: Hand, hammer: Pose, kept: Floats) -> Floats:
        """Up, in the middle of the bin: a head that catches on a wall turns the hammer in the hand."""
        aside = self.start - hammer.at(0.0, 0.0, HEAD / 2)[:2]
        return hand.towards(hand.position + np.array([*aside, 0.1]), kept, True)

    def _uncover(self, hand: Hand, lid: Pose, inward: Floats) -> Floats:
        off = self.table - lid.position
        if not hand.holds(lid.position, LID):
            return hand.fetch(lid.position, inward, LID)
        if np.linalg.norm(off[:2]) < 0.03 and off[2] > -0.015:
            return hand.stay(False)
        return hand.carry(self._around(off, lid.position), inward, 0.2)

    def _around(self, way: Floats, start: Floats) -> Floats:
        """A way ``[3]`` from side to side, led around the base."""
        return np.array([way[0], np.sign(start[1]) * self.clear - start[1], way[2]]) if abs(way[0]) > 0.1 else way

    def _second(self, hand: Hand, scene: Scene) -> Floats:
        upright = downward(self.facing[1])
        if scene.taken:
            off = scene.target + 0.13 * UP - scene.hammer.position
            if not scene.free:
                return hand.stay(True)
            if np.linalg.norm(off[:2]) < self.near and off[2] > -0.03:
                return hand.stay(False)
            return hand.carry(self._around(off, hand.position), upright, 0.16, near=0.03)
        off = scene.bin + 0.12 * UP - scene.trash.position
        falls = np.abs(off[:2]).max() < 0.11 and off[2] > -0.02
        if not scene.binned and not falls:
            return self._bin(hand, scene.trash, off)
        if scene.given and np.linalg.norm(scene.hammer.position - self._held_out()) < 0.05:
            across = downward(nearest_turn(scene.heading, self.facing[1], 2))
            return hand.fetch(scene.grips[1], across, HELD, 0.12, near=0.016)
        if hand.opening < 0.05:
            return hand.stay(False)
        if hand.position[2] < 1.0:
            return hand.rise(upright, False)
        return hand.towards(self.rest[1], upright, False)

    def _bin(self, hand: Hand, trash: Pose, off: Floats) -> Floats:
        if not hand.holds(trash.position, TRASH):
            across = self._inward(nearest_turn(yaw_of(trash.rotation), self.facing[1], 4))
            return hand.fetch_over(trash.position, across, TRASH, 0.2)
        if np.linalg.norm(off[:2]) < self.near:
            return hand.stay(False)
        return hand.carry(self._around(off, hand.position), self._inward(self.facing[1]), 0.1, near=0.03)

    def _held_out(self) -> Floats:
        """Where the hammer's middle is when it is held out: gripped by a hand that pointed inward, its far end rises."""
        pitch = self.lean + self.tilt
        return self.meeting + END * np.array([0.0, np.cos(pitch), np.sin(pitch)])

    def _inward(self, yaw: float) -> Floats:
        """A hand that leans back to its base, its x axis at ``yaw``, ``[3, 3]``."""
        return tilted(downward(yaw), -self.lean)


def tilted(rotation: Floats, angle: float) -> Floats:
    """A hand turned about its own y axis, so that it points outward by so many radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return rotation @ np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])

"""The scripted expert of robosuite's Transport, two arms that hand a hammer over, under OSC_POSE."""

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


class TransportExpert(RobosuiteExpert):
    """The first arm takes off the lid and holds the hammer out; the second bins the trash, takes the hammer and puts it into its bin.

    Both work at once; who holds the hammer is told from the fingers.
    """

    facing = (np.pi / 2, -np.pi / 2)
    noise = np.array(([0.1] * 6 + [0.0]) * 2)
    lid, aside = 0.02, np.array([-0.2, -0.42, 0.83])
    """The lid's handle: its width, and where it is put on the table."""
    trash = 0.04
    handle, end = 0.03, 0.058
    """The hammer's handle: its width, and how far from its middle each arm grips it."""
    meeting, tilt = np.array([0.0, 0.0, 1.05]), 0.6
    """Where the first hand holds the hammer out, pointing outward by ``tilt``: straight down neither arm would reach."""
    clear = -0.36
    """Along y, how near to its base the first hand goes from side to side."""
    rest = (np.array([0.0, -0.38, 1.25]), np.array([0.0, 0.3, 1.2]))
    near = 0.05
    """How far from a bin's middle something may be let go."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        payload, trash, lid = (pose(thing[first : first + 7]) for first in (0, 7, 14))
        axis = payload.rotation[:, 2] * (1.0 if payload.rotation[1, 2] > 0.0 else -1.0)
        grips = payload.position - self.end * axis, payload.position + self.end * axis
        first, second = hands
        taken = second.holds(grips[1], self.handle)
        given = first.holds(grips[0], self.handle)
        return np.concatenate(
            [
                self._first(first, lid, payload, grips[0], np.arctan2(axis[1], axis[0]), given, taken),
                self._second(second, trash, thing, payload, grips[1], np.arctan2(axis[1], axis[0]), given, taken),
            ]
        )

    def _first(self, hand: Hand, lid: Pose, payload: Pose, grip: Floats, heading: float, given: bool, taken: bool) -> Floats:
        upright = downward(self.facing[0])
        if taken or payload.position[1] > 0.2:
            if given or hand.opening < 0.05:
                return hand.towards(hand.position, hand.rotation, False)
            return hand.towards(self.rest[0], upright, False)
        if given:
            out = tilted(upright, self.tilt)
            if payload.position[2] < 0.99 and payload.position[1] < -0.2:
                return hand.towards(hand.position + 0.1 * UP, hand.rotation, True)
            return hand.towards(self.meeting, out, True)
        if lid.position[2] > 0.86:
            off = self.aside - lid.position
            if hand.holds(lid.position, self.lid):
                if np.linalg.norm(off[:2]) < 0.03 and off[2] > -0.015:
                    return hand.towards(hand.position, upright, False)
                return hand.carry(self._around(off, lid.position), upright, 0.2)
            return hand.fetch(lid.position, upright, self.lid)
        way = grip - hand.position
        if abs(way[0]) > 0.1:
            over = self._around(way, hand.position) if hand.position[2] > 1.0 else np.zeros(3)
            over[2] = 1.06 - hand.position[2]
            return hand.towards(hand.position + over, upright, False)
        across = downward(nearest_turn(heading, self.facing[0], 2))
        return fetch_over(hand, grip + 0.004 * UP, across, self.handle, 0.22)

    def _around(self, way: Floats, start: Floats) -> Floats:
        """A way ``[3]`` in front of the first arm's base, where the elbow would be bent to its end, leads around it."""
        return np.array([way[0], self.clear - start[1], way[2]]) if abs(way[0]) > 0.1 else way

    def _second(
        self, hand: Hand, trash: Pose, thing: Floats, payload: Pose, grip: Floats, heading: float, given: bool, taken: bool
    ) -> Floats:
        upright = downward(self.facing[1])
        target, bin_ = thing[21:24], thing[24:27]
        if taken:
            if given:
                return hand.towards(hand.position, hand.rotation, True)
            off = target + 0.13 * UP - payload.position
            if np.linalg.norm(off[:2]) < self.near and off[2] > -0.03:
                return hand.towards(hand.position, hand.rotation, False)
            return hand.carry(off, upright, 0.16, near=0.03)
        if thing[28] < 0.5 and np.linalg.norm((bin_ - trash.position)[:2]) > 0.14:
            off = bin_ + 0.12 * UP - trash.position
            across = downward(nearest_turn(yaw_of(trash.rotation), self.facing[1], 4))
            if hand.holds(trash.position, self.trash):
                if np.linalg.norm(off[:2]) < self.near:
                    return hand.towards(hand.position, hand.rotation, False)
                return hand.carry(off, hand.rotation, 0.1, near=0.03)
            return fetch_over(hand, trash.position, across, self.trash, 0.2)
        if given and np.linalg.norm(payload.position - self._held()) < 0.05:
            across = downward(nearest_turn(heading, self.facing[1], 2))
            return hand.fetch(grip, across, self.handle, 0.12, near=0.016)
        if hand.opening < 0.05:
            return hand.towards(hand.position, hand.rotation, False)
        if hand.position[2] < 1.0:
            return hand.towards(hand.position + 0.1 * UP, upright, False)
        return hand.towards(self.rest[1], upright, False)

    def _held(self) -> Floats:
        """Where the hammer's middle is when it is held out."""
        return self.meeting + self.end * np.array([0.0, np.cos(self.tilt), np.sin(self.tilt)])


def tilted(rotation: Floats, angle: float) -> Floats:
    """A hand turned about its own y axis, so that it points outward by so many radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return rotation @ np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])


def fetch_over(hand: Hand, grip: Floats, rotation: Floats, width: float, above: float) -> Floats:
    """:meth:`Hand.fetch` of what stands behind a wall: up, over and down into it."""
    aside = float(np.linalg.norm((grip - hand.position)[:2]))
    if aside > 0.1 and hand.position[2] < grip[2] + above - 0.04:
        return hand.towards(hand.position + 0.1 * UP, rotation, False)
    return hand.fetch(grip, rotation, width, above, near=0.012)

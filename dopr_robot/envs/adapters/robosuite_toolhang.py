"""The scripted expert of robosuite's ToolHang, under OSC_POSE."""

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
    turned,
    yaw_of,
)


class ToolHangExpert(RobosuiteExpert):
    """Grip the frame, stand it up with its arm towards the robot, lower it into the stand; then hang the tool over the arm's hook.

    The frame's pose is that of its corner: z along the rod, up once it stands; x away from the arm's end. The tool's hole lies at -x.
    """

    noise = np.array([0.05] * 6 + [0.0])
    mount = np.array([0.0, 0.045, 0.155])
    """The hole's mouth, from the stand's base."""
    grip, width = -0.034, 0.025
    """The frame's grip: along the rod from the corner, and its width."""
    tip, arm = 0.2207, 0.0875
    """From the corner to the rod's tip, and to the hook."""
    hole, thick = 0.0937, 0.03
    """From the tool's middle to its hole, and the width of its grip."""

    sloped = 0.35
    """How much lower than its hole the tool's handle is held, in radians."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        (hand,) = hands
        stand, frame, tool = (pose(thing[first : first + 7]) for first in (7, 21, 35))
        if thing[42] < 0.5:
            return self._assemble(hand, stand, frame)
        return self._hang(hand, frame, tool)

    def _assemble(self, hand: Hand, stand: Pose, frame: Pose) -> Floats:
        grip = frame.at(0.0, 0.0, self.grip)
        if not hand.holds(grip, self.width):
            rotation = np.stack([-frame.rotation[:, 2], -frame.rotation[:, 0], frame.rotation[:, 1]], 1)
            return hand.fetch(grip, rotation, self.width)
        upright = turned(np.pi)
        turn = upright @ frame.rotation.T
        rotation = turn @ hand.rotation
        mouth = stand.position + self.mount
        tip = frame.at(0.0, 0.0, -self.tip)
        leaning = float(np.arccos(np.clip(frame.rotation[2, 2], -1.0, 1.0)))
        goal = mouth + (self.tip + 0.06) * UP  # of the corner, over the hole
        aside = float(np.linalg.norm((frame.position - mouth)[:2]))
        bottom = float(tip[2] - mouth[2])
        if bottom < 0.0 and aside < 0.012:  # in the hole
            down = np.array([*(mouth - frame.position)[:2], -0.03])
            return hand.towards(hand.position + down, rotation, True)
        if leaning > 0.1:
            lift = max(0.0, 1.12 - frame.position[2])
            self.said = "stand up"
            if hand.position[2] < 0.98:
                return hand.towards(hand.position + 0.1 * UP, hand.rotation, True)
            return self._about(hand, grip, np.array([-0.08, -0.08, 1.14]), rotation)
        self.said = "over"
        high = (self.tip + np.clip(4.0 * (max(aside, 0.03 * leaning) - 0.002), -0.02, 0.06)) * UP
        return self._move(hand, mouth + high - frame.position, rotation)

    def _about(self, hand: Hand, grip: Floats, goal: Floats, rotation: Floats) -> Floats:
        return hand.towards(hand.position + goal - grip, rotation, True)

    def _move(self, hand: Hand, move: Floats, rotation: Floats) -> Floats:
        return hand.towards(hand.position + move, rotation, True)

    def _hang(self, hand: Hand, frame: Pose, tool: Pose) -> Floats:
        away = frame.at(0.0, 0.0, self.grip) - hand.position
        deep = float(away @ hand.rotation[:, 2])
        down = hand.rotation[2, 2] < -0.8
        if not down:
            if hand.position[2] > 1.17:
                self.said = "down"
                return hand.towards(np.array([-0.02, 0.0, 1.2]), downward(0.0), False)
            if deep < 0.09 or hand.opening < 0.07:
                self.said = "back"
                back = 0.05 * hand.rotation[:, 2] if hand.opening > 0.07 else np.zeros(3)
                return hand.towards(hand.position - back, hand.rotation, False)
            self.said = "up"
            return hand.towards(hand.position + 0.1 * UP, hand.rotation, False)
        off = frame.at(-self.arm, 0.0, 0.003) - tool.at(-self.hole, 0.0, 0.0)
        held = hand.holds(tool.position, self.thick)
        if not held and np.linalg.norm(off) < 0.025:  # it hangs, or is about to
            self.said = "away"
            return hand.towards(hand.position - (0.1 if hand.opening > 0.05 else 0.0) * hand.rotation[:, 2], hand.rotation, False)
        if not held:
            across = downward(yaw_of(tool.rotation))
            self.said = "fetch"
            far = float(np.linalg.norm((tool.position - hand.position)[:2]))
            if far > 0.1 and hand.position[2] < 1.1:
                return hand.towards(hand.position + 0.1 * UP, hand.rotation, False)
            return hand.fetch(tool.position + 0.003 * UP, across, self.thick, 0.28 if far > 0.05 else 0.08)
        self.said = "carry"
        cos, sin = np.cos(self.sloped), np.sin(self.sloped)
        # The hole is higher than the handle, which is beyond the arm's end.
        wanted = frame.rotation @ np.array([[-cos, 0.0, -sin], [0.0, -1.0, 0.0], [-sin, 0.0, cos]])
        turn = wanted @ tool.rotation.T
        left = float(np.arccos(np.clip((np.trace(turn) - 1.0) / 2.0, -1.0, 1.0)))
        if np.linalg.norm(off[:2]) < 0.008 and off[2] > -0.008:
            self.said = "drop"
            return hand.towards(hand.position, hand.rotation, False)
        aside = float(np.linalg.norm(off[:2])) + 0.05 * max(left - 0.15, 0.0)
        high = off[2] + np.clip(4.0 * (aside - 0.003), 0.0, 0.1)
        over = off.copy() if high < 0.03 else off * np.clip(1.0 - (high - 0.03) / 0.1, 0.0, 1.0)
        over[2] = high
        return hand.towards(hand.position + over, (turn if high < 0.06 else np.eye(3)) @ hand.rotation, True)

"""The scripted expert of robosuite's ToolHang, under OSC_POSE."""

import numpy as np

from dopr_robot.envs.adapters.robosuite_experts import (
    UP,
    Floats,
    Hand,
    Pose,
    RobosuiteExpert,
    downward,
    pose,
    turned,
    yaw_of,
)

FRAME, TOOL = 0.025, 0.03
"""Widths of the two grips, in metres."""


class ToolHangExpert(RobosuiteExpert):
    """Stand the frame up, its arm away from the robot, and lower it into the stand; then lower the tool's hole over the arm's hook.

    The frame's pose is that of its corner: z along the rod, up once it stands, and the arm's end at -x. The tool's hole lies at -x.

    Lying, the frame has its y axis down, and so the hand that stands it up points back along y at last. With the arm towards the robot, the
    tool would have to be hung from where the elbow is bent to its end.
    """

    noise = np.array([0.05] * 6 + [0.0])
    """Half of the other tasks': the hole leaves 1.2 mm on either side of the rod."""
    mouth = np.array([0.0, 0.045, 0.155])
    """The hole's, from the stand's base."""
    grip, tip, arm = -0.034, -0.2207, -0.0875
    """From the frame's corner along the rod to the middle of the grip and to the tip, along the arm to the hook."""
    hole = -0.0937
    """From the tool's middle to its hole."""
    slope = 0.35
    """How much lower than its hole the tool's handle is held, in radians: the ring is inside of the hook as the handle drops."""
    within = 0.005
    """How far below the mouth the tip is once the rod is in the hole."""
    standing = np.array([-0.08, -0.08, 1.14])
    """Where the frame's grip is while it is stood up, beside the stand."""
    drooping = 0.9
    """Sine of how far the handle hangs down when it is left alone."""
    over = np.array([-0.02, 0.0, 1.2])
    """Where the hand turns down again: joint 6 would come to its end on the shortest turn from the stand to the tool."""

    def decide(self, thing: Floats, *hands: Hand) -> Floats:
        (hand,) = hands
        stand, frame, tool = (pose(thing[at : at + 7]) for at in (7, 21, 35))
        if thing[42] < 0.5:
            return self._assemble(hand, stand, frame)
        if hand.rotation[2, 2] > -0.8:
            return self._leave(hand, frame)
        return self._hang(hand, frame, tool)

    def _assemble(self, hand: Hand, stand: Pose, frame: Pose) -> Floats:
        grip = frame.at(0.0, 0.0, self.grip)
        if not hand.holds(grip, FRAME):
            across = np.stack([-frame.rotation[:, 2], -frame.rotation[:, 0], frame.rotation[:, 1]], axis=1)
            return hand.fetch(grip, across, FRAME)
        turn = turned(np.pi) @ frame.rotation.T
        upright = turn @ hand.rotation
        mouth = stand.position + self.mouth
        # A frame that hangs aslant has its tip elsewhere than below its corner.
        off, lean = mouth - frame.at(0.0, 0.0, self.tip), mouth - frame.position
        aside = float(np.linalg.norm(off[:2]))
        if aside < 0.012 and off[2] > self.within:
            return hand.towards(hand.position + np.array([lean[0], lean[1], -0.03]), upright, True)
        if frame.rotation[2, 2] > 0.995:
            high = np.clip(10.0 * (aside - 0.002), -0.03, 0.06)
            return hand.towards(hand.position + off + high * UP, upright, True)
        if hand.position[2] < 0.98:
            return hand.rise(hand.rotation, True)
        return hand.towards(hand.position + self.standing - grip, upright, True)

    def _leave(self, hand: Hand, frame: Pose) -> Floats:
        deep = float((frame.at(0.0, 0.0, self.grip) - hand.position) @ hand.rotation[:, 2])
        if hand.position[2] > self.over[2] - 0.03:
            return hand.towards(self.over, downward(0.0), False)
        if hand.opening < 0.07:
            return hand.stay(False)
        return hand.back_off() if deep < 0.09 else hand.rise(hand.rotation, False)

    def _hang(self, hand: Hand, frame: Pose, tool: Pose) -> Floats:
        off = frame.at(self.arm, 0.0, 0.003) - tool.at(self.hole, 0.0, 0.0)
        held = hand.holds(tool.position, TOOL)
        if not held and np.linalg.norm(off) < 0.025:
            return self._let_hang(hand, tool)
        if not held:
            near = float(np.linalg.norm((tool.position - hand.position)[:2])) < 0.05
            return hand.fetch_over(
                tool.position + 0.003 * UP, downward(yaw_of(tool.rotation)), TOOL, 0.08 if near else 0.28, 0.008
            )
        if np.linalg.norm(off[:2]) < 0.008 and off[2] > -0.008:
            return hand.stay(False)
        cos, sin = np.cos(self.slope), np.sin(self.slope)
        turn = frame.rotation @ np.array([[-cos, 0.0, -sin], [0.0, -1.0, 0.0], [-sin, 0.0, cos]]) @ tool.rotation.T
        return hand.carry(off, turn @ hand.rotation, 0.1, near=0.003, lever=0.05)

    def _let_hang(self, hand: Hand, tool: Pose) -> Floats:
        """Leave the tool, and push it down with the palm where it sticks aslant."""
        above = float((hand.position - tool.position) @ hand.rotation[:, 2])
        if hand.opening < 0.05 or above < -0.15:
            return hand.stay(False)
        if tool.rotation[2, 0] > -self.drooping:
            return hand.towards(hand.position + 0.03 * hand.rotation[:, 2], hand.rotation, False)
        return hand.back_off()

"""What tasks of the arm share: joints, gripper, and an expert's way-points."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.arm import HOME, Arm
from dopr_robot.envs.assets import load_model
from dopr_robot.envs.batched import BatchedMujocoEnv
from dopr_robot.envs.rendering import add_geom

OPEN, RELEASED = 0.08, 0.06
"""The gripper's full opening, and the opening from which it has let go of what it held, in metres."""
REST = 0.02
"""Height of a cube's centre when it lies on the table, in metres; half its edge."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class ArmVectorEnv(BatchedMujocoEnv):
    """A batch of arms at tables. The first 9 coordinates are the arm's joints and the two fingers.

    The action is seven joint angles to go to, and the distance of the fingers; position actuators at 400 Hz follow them.
    """

    pushed = "hand"
    scene: str
    """Name of the MJCF, which includes ``arm.xml`` first."""

    def make_model(self, **options: Any) -> mujoco.MjModel:
        model = load_model(self.scene, **options)
        self.arm = Arm(model)
        return model

    @property
    def joints(self) -> Floats:
        """Joint angles, rad, ``[N, 7]``."""
        return self.qpos[:, :7]

    @property
    def opening(self) -> Floats:
        """Distance of the fingers, m, ``[N]``."""
        return self.qpos[:, 7] + self.qpos[:, 8]

    def control(self, action: Floats) -> Floats:
        finger = action[:, 7:] / 2
        return np.concatenate([action[:, :7], finger, finger], axis=1)

    def neutral(self) -> Floats:
        return np.concatenate([self.joints, self.opening[:, None]], axis=1)


def home(rng: np.random.Generator) -> Floats:
    """A start of the arm near its home posture with open fingers, ``[9]``."""
    joints = HOME + rng.normal(0.0, 0.02, 7)
    return np.concatenate([joints, [OPEN / 2, OPEN / 2]])


def pose(position: Floats, yaw: float) -> Floats:
    """Position ``[3]`` and a turn about the vertical, as seven coordinates of a free body."""
    return np.concatenate([position, [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]])


def draw_goal(scene: Any, goal: Floats, radius: float) -> None:
    """A green disc on the table under a goal ``[3]``."""
    place = np.append(goal[:2], 0.0005)
    add_geom(scene, mujoco.mjtGeom.mjGEOM_CYLINDER, (radius, 0.0006, 0), place, (0.10, 0.55, 0.33, 1.0))
    inner = place + np.array([0.0, 0.0, 0.0006])
    add_geom(scene, mujoco.mjtGeom.mjGEOM_CYLINDER, (radius - 0.007, 0.0006, 0), inner, (0.72, 0.90, 0.78, 1.0))


def quarter_turn(rotation: Floats) -> Floats:
    """Yaw ``[N]`` in +-45 degrees of what looks the same after a quarter turn, from rotations ``[N, 3, 3]``."""
    yaw = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4


class ArmExpert:
    """Way-points that follow from the state alone, reached by inverse kinematics.

    Because nothing is remembered, a dropped cube or a push is answered as it is seen, and a policy that sees the same state can
    learn it.
    """

    noise = np.array([0.015] * 7 + [0.002])
    """Standard deviation of what is injected while demonstrations are collected, in the action's units."""

    reach, turn = 0.025, 0.15
    """Longest way, in metres and radians, that a target may lie ahead."""
    aim = 0.012
    """The fingers close once the grasp point is this near to what they should grip, in metres."""
    clearance = 0.09
    """Height of the way-points above cube and table, in metres."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def towards(self, position: Floats, yaw: Floats, opening: Floats) -> Floats:
        """Actions ``[N, 8]`` that bring the grasp point nearer to ``position [N, 3]`` and the fingers to ``opening [N]``."""
        joints = self.env.arm.step_towards(self.env.joints, position, yaw, self.reach, self.turn)
        return np.concatenate([joints, opening[:, None]], axis=1)

    def around(self, grasp: Floats, cube: Floats) -> Bools:
        """The open fingers are where they can close."""
        to_cube = cube - grasp
        return (np.linalg.norm(to_cube[:, :2], axis=1) < self.aim) & (np.abs(to_cube[:, 2]) < self.aim)

    def held(self, grasp: Floats, cube: Floats) -> Bools:
        """The fingers hold the cube."""
        to_cube = cube - grasp
        aside = np.linalg.norm(to_cube[:, :2], axis=1)
        return (aside < 0.025) & (np.abs(to_cube[:, 2]) < 0.025) & (self.env.opening < 0.047)

    def approach(self, grasp: Floats, cube: Floats) -> Floats:
        """Above the cube, then down along a funnel."""
        aside = np.linalg.norm((cube - grasp)[:, :2], axis=1)
        way = cube.copy()
        way[:, 2] += np.clip(2.0 * (aside - 0.006), 0.0, self.clearance)
        return way

    def carry(self, grasp: Floats, cube: Floats, goal: Floats) -> Floats:
        """Up and over to the goal, then down along a funnel."""
        left = np.linalg.norm((goal - cube)[:, :2], axis=1)
        way = grasp + (goal - cube)
        way[:, 2] += np.clip(1.5 * (left - 0.014), 0.0, self.clearance)
        return way

    def leave(self, grasp: Floats) -> Floats:
        """Straight up, once the fingers have let go."""
        way = grasp.copy()
        way[:, 2] += np.where(self.env.opening > RELEASED, 0.05, 0.0)
        return way

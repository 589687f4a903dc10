"""PickPlace: take a cube from a random place to a random goal with a 7-joint arm."""

from importlib.resources import files
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.arm import HOME, Arm
from dopr_robot.envs.batched import BatchedMujocoEnv, Initial, Verdict
from dopr_robot.envs.rendering import add_geom
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import PICK_PLACE

TOLERANCE = 0.025
"""The cube is at the goal within this distance, in metres."""
REST = 0.02
"""Height of the cube's centre when it lies on the table, in metres."""
OPEN, RELEASED = 0.08, 0.06
"""The gripper's full opening, and the opening from which it has let go of the cube, in metres."""
CENTRE, SPREAD = np.array([0.48, 0.0]), np.array([0.09, 0.14])
"""Cube and goal lie in CENTRE +- SPREAD on the table, in metres."""
APART = 0.10
"""Least distance of cube and goal at the start, in metres."""
YAW = np.deg2rad(30)

Floats = NDArray[np.float64]


class PickPlaceVectorEnv(BatchedMujocoEnv):
    """A batch of arms, each at a table with a cube and a goal of its own.

    The action is seven joint angles to go to, and the distance of the fingers; position actuators at 400 Hz follow them.
    """

    task = PICK_PLACE

    def make_model(self, **options: Any) -> mujoco.MjModel:
        if options:
            raise TypeError(f"{self.task.id} has no option {next(iter(options))!r}")
        model = mujoco.MjModel.from_xml_string(
            files("dopr_robot.envs").joinpath("assets", "pick_place.xml").read_text()
        )
        self.arm = Arm(model)
        return model

    def initial(self, rng: np.random.Generator) -> Initial:
        cube, goal = rng.uniform(-1, 1, (2, 2)) * SPREAD + CENTRE
        while np.linalg.norm(cube - goal) < APART:
            goal = rng.uniform(-1, 1, 2) * SPREAD + CENTRE
        yaw = rng.uniform(-YAW, YAW)
        pose = np.concatenate([cube, [REST, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]])
        joints = HOME + rng.normal(0.0, 0.02, 7)
        qpos = np.concatenate([joints, [OPEN / 2, OPEN / 2], pose])
        return Initial(qpos, np.zeros(15), {"goal": np.append(goal, REST)})

    @property
    def joints(self) -> Floats:
        """Joint angles, rad, ``[N, 7]``."""
        return self.qpos[:, :7]

    @property
    def opening(self) -> Floats:
        """Distance of the fingers, m, ``[N]``."""
        return self.qpos[:, 7] + self.qpos[:, 8]

    @property
    def cube(self) -> Floats:
        """Centre of the cube, m, ``[N, 3]``."""
        return self.qpos[:, 9:12]

    @property
    def cube_rotation(self) -> Floats:
        """Of the cube, ``[N, 3, 3]``."""
        return rotation_matrices(self.qpos[:, 12:16])

    def observe(self) -> dict[str, NDArray[Any]]:
        grasp, cube, goal = self.arm.forward(self.joints)[0], self.cube, self.variables["goal"]
        axes = self.cube_rotation[:, :, :2].transpose(0, 2, 1).reshape(self.num_envs, 6)
        parts = [self.joints, self.opening[:, None], grasp, cube, axes, goal, cube - grasp, goal - cube]
        return {"state": np.concatenate(parts, axis=1)}

    def control(self, action: Floats) -> Floats:
        finger = action[:, 7:] / 2
        return np.concatenate([action[:, :7], finger, finger], axis=1)

    def judge(self) -> Verdict:
        near = self._distance() < TOLERANCE
        lying = (np.abs(self.cube[:, 2] - REST) < 0.005) & (np.linalg.norm(self.qvel[:, 9:12], axis=1) < 0.05)
        success = near & lying & (self.opening > RELEASED)
        return Verdict(success, np.zeros(self.num_envs, bool), [""] * self.num_envs)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {"distance": self._distance()}

    def decorate(self, scene: Any, copy: int) -> None:
        place = np.append(self.variables["goal"][copy, :2], 0.0005)
        add_geom(scene, mujoco.mjtGeom.mjGEOM_CYLINDER, (TOLERANCE + 0.012, 0.0006, 0), place, (0.10, 0.55, 0.33, 1.0))
        inner = place + np.array([0.0, 0.0, 0.0006])
        add_geom(scene, mujoco.mjtGeom.mjGEOM_CYLINDER, (TOLERANCE + 0.005, 0.0006, 0), inner, (0.72, 0.90, 0.78, 1.0))

    def _distance(self) -> Floats:
        return np.linalg.norm(self.cube - self.variables["goal"], axis=1)


class PickPlaceEnv(MujocoEnv):
    """One arm."""

    batched = PickPlaceVectorEnv


class InverseKinematicsExpert:
    """Way-points that follow from the state alone, reached by inverse kinematics.

    Above the cube, down along a funnel, close; up and over to the goal along another funnel, down, open. Because nothing is
    remembered, a dropped cube or a push is answered as it is seen, and a policy that sees the same state can learn it.
    """

    noise = np.array([0.015] * 7 + [0.002])
    """Standard deviation of what is injected while demonstrations are collected, in the action's units."""

    reach, turn = 0.025, 0.15
    """Longest way, in metres and radians, that a target may lie ahead."""
    clearance = 0.09
    """Height of the way-points above cube and table, in metres."""

    def __init__(self, env: PickPlaceVectorEnv) -> None:
        self.env = env

    def act(self) -> Floats:
        """Clean actions, ``[N, 8]``."""
        env = self.env
        grasp, goal, cube = env.arm.forward(env.joints)[0], env.variables["goal"], env.cube
        to_cube, to_goal = cube - grasp, goal - cube
        aside = np.linalg.norm(to_cube[:, :2], axis=1)
        left = np.linalg.norm(to_goal[:, :2], axis=1)

        delivered = (left < 0.018) & (cube[:, 2] < REST + 0.01)
        around = (aside < 0.012) & (np.abs(to_cube[:, 2]) < 0.012)
        held = (aside < 0.025) & (np.abs(to_cube[:, 2]) < 0.025) & (env.opening < 0.047)

        approach = cube.copy()
        approach[:, 2] += np.clip(2.0 * (aside - 0.006), 0.0, self.clearance)
        carry = grasp + to_goal
        carry[:, 2] += np.clip(1.5 * (left - 0.014), 0.0, self.clearance)
        leave = grasp.copy()
        leave[:, 2] += np.where(env.opening > RELEASED, 0.05, 0.0)

        position = np.where(delivered[:, None], leave, np.where(held[:, None], carry, approach))
        opening = np.where(delivered, OPEN, np.where(held | around, 0.0, OPEN))
        rotation = env.cube_rotation
        yaw = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
        yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube looks the same after a quarter turn
        joints = env.arm.step_towards(env.joints, position, yaw, self.reach, self.turn)
        return np.concatenate([joints, opening[:, None]], axis=1)

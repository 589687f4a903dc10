"""PickPlace: take a cube from a random place to a random goal with a 7-joint arm."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.arm_task import OPEN, RELEASED, REST, ArmExpert, ArmVectorEnv, draw_goal, home, pose, quarter_turn
from dopr_robot.envs.batched import Initial, Verdict
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.segments import Arrays, Segment, SegmentedTask, poses
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import PICK_PLACE
from dopr_robot.errors import UserError

TOLERANCE = 0.025
"""The cube is at the goal within this distance, in metres."""
CENTRE, SPREAD = np.array([0.48, 0.0]), np.array([0.09, 0.14])
"""Cube and goal lie in CENTRE +- SPREAD on the table, in metres."""
APART = 0.10
"""Least distance of cube and goal at the start, in metres."""
YAW = np.deg2rad(30)

Floats = NDArray[np.float64]


class PickPlaceVectorEnv(ArmVectorEnv):
    """A batch of arms, each at a table with a cube and a goal of its own."""

    task = PICK_PLACE
    scene = "pick_place"

    def initial(self, rng: np.random.Generator) -> Initial:
        cube, goal = rng.uniform(-1, 1, (2, 2)) * SPREAD + CENTRE
        while np.linalg.norm(cube - goal) < APART:
            goal = rng.uniform(-1, 1, 2) * SPREAD + CENTRE
        yaw = rng.uniform(-YAW, YAW)
        qpos = np.concatenate([home(rng), pose(np.append(cube, REST), yaw)])
        return Initial(qpos, np.zeros(15), {"goal": np.append(goal, REST)})

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

    def judge(self) -> Verdict:
        near = self._distance() < TOLERANCE
        lying = (np.abs(self.cube[:, 2] - REST) < 0.005) & (np.linalg.norm(self.qvel[:, 9:12], axis=1) < 0.05)
        success = near & lying & (self.opening > RELEASED)
        return Verdict(success, np.zeros(self.num_envs, bool), [""] * self.num_envs)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {"distance": self._distance()}

    def decorate(self, scene: Any, copy: int) -> None:
        draw_goal(scene, self.variables["goal"][copy], TOLERANCE + 0.012)

    def _distance(self) -> Floats:
        return np.linalg.norm(self.cube - self.variables["goal"], axis=1)


class PickPlaceEnv(MujocoEnv):
    """One arm."""

    batched = PickPlaceVectorEnv


class PickPlaceExpert(ArmExpert):
    """Above the cube, down along a funnel, close; up and over to the goal along another funnel, down, open."""

    def act(self) -> Floats:
        """Clean actions, ``[N, 8]``."""
        env = self.env
        grasp, goal, cube = env.arm.forward(env.joints)[0], env.variables["goal"], env.cube
        left = np.linalg.norm((goal - cube)[:, :2], axis=1)
        delivered, held = (left < 0.018) & (cube[:, 2] < REST + 0.01), self.held(grasp, cube)
        way = np.where(held[:, None], self.carry(grasp, cube, goal), self.approach(grasp, cube))
        position = np.where(delivered[:, None], self.leave(grasp), way)
        opening = np.where(delivered, OPEN, np.where(held | self.around(grasp, cube), 0.0, OPEN))
        return self.towards(position, quarter_turn(env.cube_rotation), opening)


class PickPlaceSegments(SegmentedTask):
    """The cube is gripped and lifted as the cube lies, and put down as the goal lies."""

    keys: ClassVar = {"state": (29,), "action": (8,)}
    segments = (Segment("cube", symmetry=4), Segment("goal"))
    noise = ArmExpert.noise
    gripper = slice(7, 8)
    reach, turn = 0.02, 0.1

    lifted, near = 0.03, 0.06
    """The first segment ends when the cube is so high, the second begins when it is so near to the goal's vertical, in metres."""

    def observe(self) -> Arrays:
        return self.env.observe()

    def hand(self, arrays: Arrays) -> Floats:
        return poses(*self.env.arm.forward(arrays["state"][:, :7])[:2])

    def objects(self, arrays: Arrays) -> dict[str, Floats]:
        state = arrays["state"]
        x, y = state[:, 14:17], state[:, 17:20]
        return {
            "cube": poses(state[:, 11:14], np.stack([x, y, np.cross(x, y)], axis=2)),
            "goal": poses(state[:, 20:23], np.eye(3)),
        }

    def targets(self, arrays: Arrays) -> Floats:
        """An action is where the joints are to go, so the pose is there that it asked for."""
        return poses(*self.env.arm.forward(arrays["action"][:, :7])[:2])

    def split(self, arrays: Arrays) -> tuple[slice, ...]:
        cube, goal = arrays["state"][:, 11:14], arrays["state"][:, 20:23]
        high = cube[:, 2] > REST + self.lifted
        there = np.logical_or.accumulate(high) & (np.linalg.norm((goal - cube)[:, :2], axis=1) < self.near)
        if not there.any():
            raise UserError(f"the cube is never lifted by {self.lifted} m and brought to the goal")
        return slice(0, int(np.argmax(high)) + 1), slice(int(np.argmax(there)), None)

    def action(self, target: Floats, gripper: Floats) -> Floats:
        yaw = np.arctan2(target[:, 1, 0], target[:, 0, 0])
        joints = self.env.arm.step_towards(self.env.joints, target[:, :3, 3], yaw, ArmExpert.reach, ArmExpert.turn)
        return np.concatenate([joints, gripper], axis=1)

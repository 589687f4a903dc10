"""Stack: build a tower of n cubes on a goal; n is the task's length."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.arm_task import OPEN, RELEASED, REST, ArmExpert, ArmVectorEnv, draw_goal, home, pose, quarter_turn
from dopr_robot.envs.batched import Initial, Verdict
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import STACK
from dopr_robot.errors import UserError

MOST = 4
"""Cubes that an observation has room for."""
TOLERANCE = 0.02
"""A cube is in the tower within this distance of the goal's vertical, in metres."""
LOW, HIGH = np.array([0.36, -0.22]), np.array([0.60, 0.22])
"""Cubes lie between these places on the table, in metres."""
GOAL_LOW, GOAL_HIGH = np.array([0.42, -0.06]), np.array([0.54, 0.06])
APART, FROM_GOAL = 0.09, 0.135
"""Least distance of two cubes, and of a cube and the tower: the hand has to get in between. In metres."""
YAW = np.deg2rad(20)

Floats = NDArray[np.float64]


class StackVectorEnv(ArmVectorEnv):
    """A batch of arms, each at a table with n cubes and a goal of its own.

    Args:
        cubes: how many, 1 to 4. The observation is the same for all of them, so that one policy can be asked for towers of any height:
            what belongs to cubes that are not there is zero.
        **kwargs: see :class:`~dopr_robot.envs.batched.BatchedMujocoEnv`.
    """

    task = STACK
    scene = "stack"

    def make_model(self, **options: Any) -> mujoco.MjModel:
        cubes = options.get("cubes", 2)
        if not isinstance(cubes, int | np.integer) or not 1 <= cubes <= MOST:
            raise UserError(f"cubes={cubes!r} has to be a whole number from 1 to {MOST}")
        self.cubes = int(cubes)
        body = '<body name="cube{0}" pos="0.5 0 0.02"><freejoint/><geom name="cube{0}" class="cube" material="cube{0}"/></body>'
        return super().make_model(cubes="".join(body.format(index) for index in range(self.cubes)))

    def initial(self, rng: np.random.Generator) -> Initial:
        goal = rng.uniform(GOAL_LOW, GOAL_HIGH)
        places: list[Floats] = []
        while len(places) < MOST:  # all of them, so that the first cubes lie alike for every n
            place = rng.uniform(LOW, HIGH)
            if np.linalg.norm(place - goal) > FROM_GOAL and all(np.linalg.norm(place - p) > APART for p in places):
                places.append(place)
            elif rng.random() < 0.02:  # a corner into which no further cube fits
                places.clear()
        yaws = rng.uniform(-YAW, YAW, MOST)
        cubes = [pose(np.append(place, REST), yaw) for place, yaw in zip(places, yaws, strict=True)]
        qpos = np.concatenate([home(rng), *cubes[: self.cubes]])
        return Initial(qpos, np.zeros(9 + 6 * self.cubes), {"goal": np.append(goal, REST)})

    @property
    def cube_positions(self) -> Floats:
        """Centres of the cubes, m, ``[N, n, 3]``."""
        return self.qpos[:, 9:].reshape(self.num_envs, self.cubes, 7)[:, :, :3]

    @property
    def cube_rotations(self) -> Floats:
        """Of the cubes, ``[N, n, 3, 3]``."""
        quaternions = self.qpos[:, 9:].reshape(-1, 7)[:, 3:]
        return rotation_matrices(quaternions).reshape(self.num_envs, self.cubes, 3, 3)

    @property
    def places(self) -> Floats:
        """Where the cubes' centres belong, m, ``[N, n, 3]``."""
        heights = np.zeros((self.cubes, 3))
        heights[:, 2] = 2 * REST * np.arange(self.cubes)
        return self.variables["goal"][:, None] + heights

    def observe(self) -> dict[str, NDArray[Any]]:
        grasp, cubes, goal = self.arm.forward(self.joints)[0], self.cube_positions, self.variables["goal"]
        axes = self.cube_rotations[..., :2].transpose(0, 1, 3, 2).reshape(self.num_envs, self.cubes, 6)
        there = np.ones((self.num_envs, self.cubes, 1))
        each = np.concatenate([there, cubes, axes, cubes - grasp[:, None], self.places - cubes], axis=2)
        padded = np.zeros((self.num_envs, MOST, each.shape[2]))
        padded[:, : self.cubes] = each
        parts = [self.joints, self.opening[:, None], grasp, goal, padded.reshape(self.num_envs, -1)]
        return {"state": np.concatenate(parts, axis=1)}

    def in_place(self) -> NDArray[np.bool_]:
        """Which cubes lie in the tower with all those below them, ``[N, n]``."""
        off = self.cube_positions - self.places
        velocity = self.qvel[:, 9:].reshape(self.num_envs, self.cubes, 6)[:, :, :3]
        near = np.linalg.norm(off[:, :, :2], axis=2) < TOLERANCE
        lying = (np.abs(off[:, :, 2]) < 0.005) & (np.linalg.norm(velocity, axis=2) < 0.05)
        return np.logical_and.accumulate(near & lying, axis=1)

    def judge(self) -> Verdict:
        success = self.in_place().all(1) & (self.opening > RELEASED)
        return Verdict(success, np.zeros(self.num_envs, bool), [""] * self.num_envs)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {"height": self.in_place().sum(1) * (self.opening > RELEASED)}

    def decorate(self, scene: Any, copy: int) -> None:
        draw_goal(scene, self.variables["goal"][copy], 0.037)


class StackEnv(MujocoEnv):
    """One arm."""

    batched = StackVectorEnv


class StackExpert(ArmExpert):
    """Cube by cube: the lowest one that is not in the tower is fetched, lifted above the tower, and put down on it."""

    noise = np.array([0.006] * 7 + [0.002])
    """Smaller than PickPlace's: a hand that shakes while it lets go takes the tower with it."""

    def act(self) -> Floats:
        """Clean actions, ``[N, 8]``."""
        env = self.env
        everyone = np.arange(env.num_envs)
        grasp, cubes, places = env.arm.forward(env.joints)[0], env.cube_positions, env.places
        off = cubes - places
        # A cube is put down with care; one that lies well enough is left alone.
        carried = np.stack([self.held(grasp, cubes[:, index]) for index in range(env.cubes)], axis=1)
        within = np.where(carried, 0.008, 0.017)
        settled = (np.linalg.norm(off[:, :, :2], axis=2) < within) & (np.abs(off[:, :, 2]) < 0.006)
        standing = np.logical_and.accumulate(settled, axis=1).sum(1)  # cubes in the tower
        current = np.minimum(standing, env.cubes - 1)
        cube, place = cubes[everyone, current], places[everyone, current]
        held = carried[everyone, current] & (standing < env.cubes)
        around = self.around(grasp, cube)

        # Lift straight up to the height of the tower, and only then go over.
        carry = self.carry(grasp, cube, place)
        left = np.linalg.norm((place - cube)[:, :2], axis=1)
        low = (left > 0.03) & (cube[:, 2] < place[:, 2] + 0.03)
        carry[:, :2] = np.where(low[:, None], grasp[:, :2], carry[:, :2])
        carry[:, 2] = np.where(low, place[:, 2] + self.clearance, carry[:, 2])

        # At the tower with nothing to put down: let go, rise above it, then leave.
        top = env.variables["goal"][:, 2] + 2 * REST * (standing - 1)
        aside = np.linalg.norm((grasp - env.variables["goal"])[:, :2], axis=1)
        nearer = aside < np.linalg.norm((grasp - cube)[:, :2], axis=1)
        leaving = (
            (standing > 0) & ~held & (aside < 0.05) & (nearer | (standing == env.cubes)) & (grasp[:, 2] < top + 0.05)
        )
        position = np.where(held[:, None], carry, self.approach(grasp, cube))
        position = np.where(leaving[:, None], self.leave(grasp), position)
        opening = np.where(leaving, OPEN, np.where(held | around, 0.0, OPEN))
        yaw = quarter_turn(env.cube_rotations[everyone, np.where(leaving, np.maximum(standing - 1, 0), current)])
        # A cube that leans on the tower is gripped by the two sides that the tower leaves free.
        beside = (place - cube)[:, :2]
        blocked = np.abs(np.cos(yaw) * beside[:, 1] - np.sin(yaw) * beside[:, 0])
        free = np.abs(np.cos(yaw) * beside[:, 0] + np.sin(yaw) * beside[:, 1])
        crowded = (np.linalg.norm(beside, axis=1) < 0.09) & (standing > 0) & ~held & ~leaving & (blocked > free)
        yaw = np.where(crowded, yaw - np.sign(yaw + 1e-9) * np.pi / 2, yaw)
        return self.towards(position, yaw, opening)

"""PegInsert: take a square peg and put it into a hole that is hardly wider."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.arm_task import OPEN, RELEASED, ArmExpert, ArmVectorEnv, home, pose, quarter_turn
from dopr_robot.envs.batched import Initial, Verdict
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import PEG_INSERT
from dopr_robot.errors import UserError

WIDTH, HALF_LENGTH = 0.022, 0.05
"""Of the peg, in metres."""
BLOCK, DEPTH = 0.05, 0.05
"""Half the block's edge, and the depth of its hole, in metres."""
GRIP = 0.026
"""The peg is gripped this far above its centre, in metres."""
LEAST, MOST = 0.001, 0.01
CENTRE, SPREAD = np.array([0.48, 0.0]), np.array([0.09, 0.14])
"""Peg and block stand in CENTRE +- SPREAD on the table, in metres."""
APART = 0.15
YAW = np.deg2rad(20)

Floats = NDArray[np.float64]


class PegInsertVectorEnv(ArmVectorEnv):
    """A batch of arms, each at a table with a standing peg and a heavy block with a square hole.

    Args:
        clearance: width of the hole less that of the peg, in metres, 0.001 to 0.01; what precision the task asks for.
        **kwargs: see :class:`~dopr_robot.envs.batched.BatchedMujocoEnv`.
    """

    task = PEG_INSERT
    scene = "peg_insert"

    def make_model(self, **options: Any) -> mujoco.MjModel:
        clearance = options.get("clearance", 0.002)
        if not isinstance(clearance, int | float) or not LEAST <= clearance <= MOST:
            raise UserError(f"clearance={clearance!r} has to be from {LEAST} to {MOST} metres")
        self.clearance = float(clearance)
        half = (WIDTH + self.clearance) / 2
        wall = (BLOCK - half) / 2
        numbers = {"half": half, "wall": wall, "centre": half + wall, "rim": half + 0.002}
        return super().make_model(**{key: f"{value:.6f}" for key, value in numbers.items()})

    def initial(self, rng: np.random.Generator) -> Initial:
        peg, block = rng.uniform(-1, 1, (2, 2)) * SPREAD + CENTRE
        while np.linalg.norm(peg - block) < APART:
            block = rng.uniform(-1, 1, 2) * SPREAD + CENTRE
        turns = rng.uniform(-YAW, YAW, 2)
        poses = pose(np.append(peg, HALF_LENGTH), turns[0]), pose(np.append(block, DEPTH / 2), turns[1])
        return Initial(np.concatenate([home(rng), *poses]), np.zeros(21))

    @property
    def peg(self) -> Floats:
        """Centre of the peg, m, ``[N, 3]``."""
        return self.qpos[:, 9:12]

    @property
    def peg_rotation(self) -> Floats:
        """Of the peg, ``[N, 3, 3]``."""
        return rotation_matrices(self.qpos[:, 12:16])

    @property
    def block(self) -> Floats:
        """Centre of the block, m, ``[N, 3]``."""
        return self.qpos[:, 16:19]

    @property
    def block_rotation(self) -> Floats:
        """Of the block, ``[N, 3, 3]``."""
        return rotation_matrices(self.qpos[:, 19:23])

    @property
    def tip(self) -> Floats:
        """Lower end of the peg as the block sees it: along its edges from the hole's middle, and above the hole's bottom; m, ``[N, 3]``."""
        tip = self.peg - HALF_LENGTH * self.peg_rotation[:, :, 2]
        seen = np.einsum("nji,nj->ni", self.block_rotation, tip - self.block)
        return seen + np.array([0.0, 0.0, DEPTH / 2])

    def observe(self) -> dict[str, NDArray[Any]]:
        grasp, peg, block = self.arm.forward(self.joints)[0], self.peg, self.block
        axes = [
            r[:, :, :2].transpose(0, 2, 1).reshape(self.num_envs, 6) for r in (self.peg_rotation, self.block_rotation)
        ]
        parts = [self.joints, self.opening[:, None], grasp, peg, axes[0], block, axes[1], peg - grasp, self.tip]
        return {"state": np.concatenate(parts, axis=1)}

    def judge(self) -> Verdict:
        inside = (np.abs(self.tip[:, :2]) < WIDTH / 2).all(1) & (self.tip[:, 2] < 0.01)
        success = inside & (self.opening > RELEASED) & (self.peg_rotation[:, 2, 2] > 0.95)
        return Verdict(success, np.zeros(self.num_envs, bool), [""] * self.num_envs)

    def measure(self) -> dict[str, NDArray[Any]]:
        within = (np.abs(self.tip[:, :2]) < WIDTH / 2).all(1)
        return {"depth": np.where(within, np.clip(DEPTH - self.tip[:, 2], 0.0, DEPTH), 0.0)}


class PegInsertEnv(MujocoEnv):
    """One arm."""

    batched = PegInsertVectorEnv


class PegInsertExpert(ArmExpert):
    """Grip the peg near its top, lift it over the block, turn and centre it on the hole, and only then push down and let go."""

    noise = np.array([0.0012] * 7 + [0.002])
    """Smaller than the other tasks' by as much as the hole is narrower than their goals."""
    aim = 0.006
    descent = 0.005
    """How far below the tip its target lies on the way into the hole, in metres: a longer way brings it sideways too."""

    def act(self) -> Floats:
        """Clean actions, ``[N, 8]``."""
        env = self.env
        grasp, grip = env.arm.forward(env.joints)[0], env.peg + GRIP * env.peg_rotation[:, :, 2]
        tip = env.tip
        off = np.linalg.norm(tip[:, :2], axis=1)
        inside = (off < WIDTH / 2) & (tip[:, 2] < DEPTH - 0.004)
        done = (off < WIDTH / 2) & (tip[:, 2] < 0.006)
        held, around = self.held(grasp, grip), self.around(grasp, grip)

        # Sideways to the hole; down once the tip is centred and turned within the clearance, or in already.
        gain = np.where(off > 0.004, 1.0, 1.8)[:, None]  # the last millimetre, which a proportional servo would leave
        sideways = -gain * np.einsum("nij,nj->ni", env.block_rotation, tip * np.array([1.0, 1.0, 0.0]))
        peg_yaw, hole_yaw = quarter_turn(env.peg_rotation), quarter_turn(env.block_rotation)
        turn = (hole_yaw - peg_yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
        aligned = (np.abs(tip[:, :2]) < 0.4 * env.clearance).all(1) & (np.abs(turn) < 0.02)
        over = DEPTH + np.where(off > 0.03, 0.03, 0.006)
        down = np.where(inside | aligned, -self.descent, np.clip(over - tip[:, 2], -0.02, 0.02))
        low = (off > 0.05) & (tip[:, 2] < DEPTH + 0.015)
        carry = grasp + np.where(low[:, None], 0.0, sideways)
        carry[:, 2] += np.where(low, 0.04, down)

        yaw = np.where(held, yaw_of(env.arm.forward(env.joints)[1]) + np.where(low, 0.0, turn), peg_yaw)
        position = np.where(held[:, None], carry, self.approach(grasp, grip))
        position = np.where(done[:, None], self.leave(grasp), position)
        opening = np.where(done, OPEN, np.where(held | around, 0.0, OPEN))
        return self.towards(position, yaw, opening)


def yaw_of(rotation: Floats) -> Floats:
    """Turn about the vertical, rad, ``[N]``."""
    return np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])

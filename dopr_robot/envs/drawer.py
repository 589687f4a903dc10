"""Drawer: open it, put the cube in, and close it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.arm_task import OPEN, RELEASED, REST, ArmExpert, ArmVectorEnv, home, pose, quarter_turn
from dopr_robot.envs.batched import Initial, Verdict
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import DRAWER

CABINET = np.array([0.70, 0.0, 0.0])
KNOB = np.array([-0.135, 0.0, 0.036])
"""From the drawer's middle, in metres."""
OPENED, CLOSED = 0.12, 0.008
"""The drawer is open from the one way out on, and closed up to the other, in metres."""
INSIDE = np.array([0.075, 0.078])
"""Half the drawer's inner length and width, in metres."""
BOTTOM = 0.009 + REST
"""Height of the centre of a cube that lies in the drawer, in metres."""
SIDE_LOW, SIDE_HIGH = np.array([0.34, 0.15]), np.array([0.50, 0.26])
"""The cube lies between these places on the table, to one side or the other, in metres."""
YAW = np.deg2rad(20)

Floats = NDArray[np.float64]


class DrawerVectorEnv(ArmVectorEnv):
    """A batch of arms, each at a table with a cabinet whose drawer comes out towards it, and a cube."""

    task = DRAWER
    scene = "drawer"

    def initial(self, rng: np.random.Generator) -> Initial:
        cube = rng.uniform(SIDE_LOW, SIDE_HIGH) * np.array([1.0, rng.choice([-1.0, 1.0])])
        yaw = rng.uniform(-YAW, YAW)
        qpos = np.concatenate([home(rng), pose(np.append(cube, REST), yaw), [0.0]])
        return Initial(qpos, np.zeros(16), dict.fromkeys(self.task.stages, False))

    @property
    def cube(self) -> Floats:
        """Centre of the cube, m, ``[N, 3]``."""
        return self.qpos[:, 9:12]

    @property
    def cube_rotation(self) -> Floats:
        """Of the cube, ``[N, 3, 3]``."""
        return rotation_matrices(self.qpos[:, 12:16])

    @property
    def out(self) -> Floats:
        """How far the drawer is open, m, ``[N]``."""
        return self.qpos[:, 16]

    @property
    def middle(self) -> Floats:
        """Middle of the drawer, m, ``[N, 3]``."""
        return CABINET - self.out[:, None] * np.array([1.0, 0.0, 0.0])

    def observe(self) -> dict[str, NDArray[Any]]:
        grasp, cube, middle = self.arm.forward(self.joints)[0], self.cube, self.middle
        axes = self.cube_rotation[:, :, :2].transpose(0, 2, 1).reshape(self.num_envs, 6)
        parts = [self.joints, self.opening[:, None], grasp, cube, axes, self.out[:, None]]
        return {"state": np.concatenate([*parts, middle + KNOB - grasp, cube - grasp, middle - cube], axis=1)}

    def inside(self) -> NDArray[np.bool_]:
        """Whether the cube lies in the drawer, ``[N]``."""
        off = np.abs(self.cube - self.middle)
        return (off[:, :2] < INSIDE).all(1) & (self.cube[:, 2] < BOTTOM + 0.008)

    def remember(self, copies: NDArray[np.bool_]) -> None:
        opened, placed, closed = (self.variables[name] for name in self.task.stages)
        opened |= copies & (self.out > OPENED)
        placed |= copies & opened & self.inside() & ~self._gripped()
        closed |= copies & placed & self.inside() & (self.out < CLOSED)

    def judge(self) -> Verdict:
        still = np.abs(self.qvel[:, 15]) < 0.05
        success = self.variables["placed"] & self.inside() & (self.out < CLOSED) & still
        return Verdict(success, np.zeros(self.num_envs, bool), [""] * self.num_envs)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {name: self.variables[name].copy() for name in self.task.stages}

    def _gripped(self) -> NDArray[np.bool_]:
        near = np.linalg.norm(self.cube - self.arm.forward(self.joints)[0], axis=1) < 0.03
        return near & (self.opening < RELEASED)


class DrawerEnv(MujocoEnv):
    """One arm."""

    batched = DrawerVectorEnv


class DrawerExpert(ArmExpert):
    """Pull the knob; fetch the cube and drop it into the drawer; push the drawer from the front."""

    noise = np.array([0.006] * 7 + [0.002])
    high = 0.15
    """Height at which the hand goes over what stands on the table, in metres."""
    drop = 0.075
    """Height of the cube's centre when it is let go, in metres."""
    before = 0.06
    """The closed hand comes down this far in front of the knob, in metres."""

    def act(self) -> Floats:
        """Clean actions, ``[N, 8]``."""
        env = self.env
        grasp, cube, knob = env.arm.forward(env.joints)[0], env.cube, env.middle + KNOB
        held = self.held(grasp, cube)
        off = np.abs(cube - env.middle)
        over = (off[:, :2] < INSIDE - 0.02).all(1)
        dropped = (off[:, :2] < INSIDE).all(1) & ~held & (cube[:, 2] < self.drop)
        letting_go = over & held & (cube[:, 2] < self.drop + 0.012)

        pull, pull_opening = self._pull(grasp, knob)
        push = self._push(grasp, knob)
        fetch, fetch_opening = self._fetch(grasp, cube, held, letting_go)
        pulling = ~dropped & ~held & ((env.out < OPENED + 0.012) | self._at_knob(grasp, knob))

        position = np.where(dropped[:, None], push, np.where(pulling[:, None], pull, fetch))
        opening = np.where(
            dropped, np.where(grasp[:, 2] > 0.10, 0.0, env.opening), np.where(pulling, pull_opening, fetch_opening)
        )
        # A hand that has just let go stays open until it is out of the drawer.
        opening = np.where(dropped & (np.abs((grasp - env.middle)[:, 0]) < 0.09) & (grasp[:, 2] < 0.10), OPEN, opening)
        square = np.zeros(env.num_envs)
        yaw = np.where(
            pulling | (dropped & (grasp[:, 2] > 0.10)) | held & over, square, quarter_turn(env.cube_rotation)
        )
        yaw = np.where(dropped & (grasp[:, 2] <= 0.10) & (grasp[:, 0] < env.middle[:, 0] - 0.09), square, yaw)
        return self.towards(position, yaw, opening)

    def _at_knob(self, grasp: Floats, knob: Floats) -> NDArray[np.bool_]:
        near = np.linalg.norm((grasp - knob)[:, :2], axis=1) < 0.03
        return near & (grasp[:, 2] < knob[:, 2] + 0.05) & (self.env.out < 0.158)

    def _pull(self, grasp: Floats, knob: Floats) -> tuple[Floats, Floats]:
        """Fingers around the knob, then towards the arm; open far enough, they let go and rise."""
        env = self.env
        around, gripped = self.around(grasp, knob), np.linalg.norm(knob - grasp, axis=1) < 0.025
        gripped &= env.opening < 0.024
        way = np.where(gripped[:, None], grasp + np.array([-0.03, 0.0, 0.0]), self.approach(grasp, knob))
        enough = env.out > OPENED + 0.012
        way = np.where(enough[:, None], self.leave(grasp), way)
        return way, np.where(enough, OPEN, np.where(gripped | around, 0.0, OPEN))

    def _fetch(
        self, grasp: Floats, cube: Floats, held: NDArray[np.bool_], letting_go: NDArray[np.bool_]
    ) -> tuple[Floats, Floats]:
        """The cube, high over everything, into the drawer's middle."""
        env = self.env
        target = env.middle + np.array([0.0, 0.0, self.drop])
        left = np.linalg.norm((target - cube)[:, :2], axis=1)
        carry = self.carry(grasp, cube, target)
        low = (left > 0.04) & (cube[:, 2] < self.drop + 0.04)
        carry[:, :2] = np.where(low[:, None], grasp[:, :2] + 0.2 * (carry - grasp)[:, :2], carry[:, :2])
        approach = self.approach(grasp, cube)
        aside = np.linalg.norm((cube - grasp)[:, :2], axis=1)
        approach[:, 2] = np.where(aside > 0.08, np.maximum(approach[:, 2], self.high), approach[:, 2])
        position = np.where(held[:, None], carry, approach)
        return position, np.where(letting_go, OPEN, np.where(held | self.around(grasp, cube), 0.0, OPEN))

    def _push(self, grasp: Floats, knob: Floats) -> Floats:
        """Up, over to the front, down, and forward."""
        ahead = knob[:, 0] - grasp[:, 0]
        front = knob - np.array([self.before, 0.0, 0.0])
        aside = np.linalg.norm((front - grasp)[:, :2], axis=1)
        in_front = (ahead > 0.010) & (np.abs(grasp[:, 1]) < 0.03)
        down = front.copy()
        down[:, 2] = np.where(in_front & (aside < 0.03), knob[:, 2], self.high)
        rise = grasp + np.array([0.0, 0.0, 0.05])
        over = np.where((~in_front & (grasp[:, 2] < self.high - 0.02))[:, None], rise, down)
        forward = knob + np.array([0.03, 0.0, 0.0])
        forward[:, 2] = knob[:, 2]
        low = in_front & (grasp[:, 2] < knob[:, 2] + np.where(aside < 0.05, 0.012, 0.03))
        return np.where(low[:, None], forward, over)

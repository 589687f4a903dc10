"""CartPoleSwingUp: swing a hanging pole up by moving the cart under it, and hold it there."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_discrete_are

from dopr_robot.envs.assets import load_model
from dopr_robot.envs.batched import BatchedMujocoEnv, Initial, Verdict
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import CART_POLE_SWING_UP

UPRIGHT = np.deg2rad(12)
NEAR = 0.5
"""The cart is near the middle within this distance, in metres."""
HOLD = 20
"""Control steps for which the pole has to stand."""

Floats = NDArray[np.float64]


class CartPoleSwingUpVectorEnv(BatchedMujocoEnv):
    """A batch of carts with a pole each. The action is the force on the cart, in newtons."""

    task = CART_POLE_SWING_UP
    pushed = "pole"

    def make_model(self, **options: Any) -> mujoco.MjModel:
        return load_model("cart_pole")

    def initial(self, rng: np.random.Generator) -> Initial:
        qpos = np.array([rng.uniform(-0.5, 0.5), np.pi + rng.uniform(-0.5, 0.5)])
        return Initial(qpos, rng.normal(0.0, 0.1, 2), {"standing": 0})

    def observe(self) -> dict[str, NDArray[Any]]:
        place, angle = self.qpos[:, :1], self.qpos[:, 1:]
        return {"state": np.concatenate([place, np.cos(angle), np.sin(angle), self.qvel], axis=1)}

    def control(self, action: Floats) -> Floats:
        return action

    def upright(self) -> NDArray[np.bool_]:
        """The pole stands and the cart is near the middle, ``[N]``."""
        return (np.cos(self.qpos[:, 1]) > np.cos(UPRIGHT)) & (np.abs(self.qpos[:, 0]) < NEAR)

    def remember(self, copies: NDArray[np.bool_]) -> None:
        standing = self.variables["standing"]
        standing[copies] = np.where(self.upright()[copies], standing[copies] + 1, 0)

    def judge(self) -> Verdict:
        return Verdict(self.variables["standing"] >= HOLD, np.zeros(self.num_envs, bool), [""] * self.num_envs)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {"height": np.cos(self.qpos[:, 1])}


class CartPoleSwingUpEnv(MujocoEnv):
    """One cart."""

    batched = CartPoleSwingUpVectorEnv


class ModelPredictiveController:
    """Iterative LQR over a receding horizon (Tassa, Mansard and Todorov, 2014), for all copies at once and without memory.

    Each plan starts from the rollout of a simple policy, energy shaping until the pole is up (Astrom and Furuta, 2000) and LQR from there,
    and is improved from that. The dynamics are the cart and pole's equations of motion over one control step.
    """

    noise = np.array([1.0])
    horizon, iterations = 30, 1
    weights = np.array([1.0, 6.0, 0.1, 0.1])
    """Of place, 2 (1 - cos(angle)), speed and turning speed, on every step; ten times that at the horizon."""
    effort = 0.01
    steps = np.array([1.0, 0.5, 0.2, 0.05])
    """Lengths that the line search tries."""

    def __init__(self, env: CartPoleSwingUpVectorEnv) -> None:
        self.env = env
        model = env.model
        self.dt = 1.0 / env.task.control_hz
        self.limit = float(model.actuator_ctrlrange[0, 1])
        pole = model.body("pole").id
        self.mass = float(model.body_mass[pole])
        self.total = self.mass + float(model.body("cart").mass[0])
        self.length = float(model.body_ipos[pole, 2])
        axis = np.zeros(9)
        mujoco.mju_quat2Mat(axis, model.body_iquat[pole])
        about = float(model.body_inertia[pole] @ axis.reshape(3, 3)[1] ** 2)
        self.inertia = about + self.mass * self.length**2
        self.damping = np.array(model.dof_damping)
        a, b = (jacobian[0, 0] for jacobian in self._derivatives(np.zeros((1, 1, 4)), np.zeros((1, 1))))
        cost_to_go = solve_discrete_are(a, b[:, None], np.diag(self.weights), np.array([[self.effort]]))
        self.gain = b @ cost_to_go @ a / (self.effort + b @ cost_to_go @ b)

    def act(self) -> Floats:
        """Clean actions, ``[N, 1]``."""
        start = np.concatenate([self.env.qpos, self.env.qvel], axis=1)
        states, forces = [start], []
        for _ in range(self.horizon):
            forces.append(self._simple(states[-1]))
            states.append(self._next(states[-1], forces[-1]))
        return self._improve(np.stack(states, axis=1), np.stack(forces, axis=1))[:, :1]

    def _simple(self, state: Floats) -> Floats:
        """Forces ``[N]`` of the policy that plans start from."""
        place, angle, speed, turning = state.T
        folded = (angle + np.pi) % (2 * np.pi) - np.pi
        energy = 0.5 * self.inertia * turning**2 + self.mass * 9.81 * self.length * (np.cos(angle) - 1)
        pump = 25.0 * energy * np.sign(turning * np.cos(angle) + 1e-9) - 4.0 * place - 2.0 * speed
        up = (np.cos(angle) > 0.9) & (np.abs(turning) < 3.0)
        hold = -(np.stack([place, folded, speed, turning], axis=1) * self.gain).sum(1)
        return np.clip(np.where(up, hold, pump * self.total), -self.limit, self.limit)

    def _acceleration(self, angle: Floats, turning: Floats, speed: Floats, force: Floats) -> tuple[Floats, Floats]:
        """Of cart and pole, from the two equations of motion."""
        sine, cosine, lever = np.sin(angle), np.cos(angle), self.mass * self.length
        push = force - self.damping[0] * speed + lever * sine * turning**2
        lift = lever * 9.81 * sine - self.damping[1] * turning
        determinant = self.total * self.inertia - (lever * cosine) ** 2
        return (
            (self.inertia * push - lever * cosine * lift) / determinant,
            (self.total * lift - lever * cosine * push) / determinant,
        )

    def _next(self, state: Floats, force: Floats) -> Floats:
        """One control step in two half steps: states ``[..., 4]`` under forces ``[...]``."""
        for _ in range(2):
            cart, pole = self._acceleration(state[..., 1], state[..., 3], state[..., 2], force)
            velocity = state[..., 2:] + 0.5 * self.dt * np.stack([cart, pole], axis=-1)
            state = np.concatenate([state[..., :2] + 0.5 * self.dt * velocity, velocity], axis=-1)
        return state

    def _cost(self, states: Floats, forces: Floats) -> Floats:
        """``[..., T + 1, 4]`` and ``[..., T]`` to ``[...]``."""
        place, speed, turning = states[..., 0], states[..., 2], states[..., 3]
        parts = np.stack([place**2, 2 * (1 - np.cos(states[..., 1])), speed**2, turning**2], axis=-1) * self.weights
        each = parts.sum(-1)
        return each.sum(-1) + 9 * each[..., -1] + self.effort * (forces**2).sum(-1)

    def _improve(self, states: Floats, plan: Floats) -> Floats:
        """Forces ``[N, T]`` that cost no more than ``plan``, which leads through ``states [N, T + 1, 4]``."""
        cost, everyone = self._cost(states, plan), np.arange(len(plan))
        for _ in range(self.iterations):
            feedforward, gain = self._backward(states, plan)
            trial = np.repeat(states[:, :1], len(self.steps), axis=1)  # [N, K, 4]
            trials, forces = [trial], []
            for step in range(self.horizon):
                back = ((trial - states[:, None, step]) * gain[:, None, step]).sum(-1)
                force = plan[:, step, None] + self.steps * feedforward[:, step, None] + back
                forces.append(np.clip(force, -self.limit, self.limit))
                trial = self._next(trial, forces[-1])
                trials.append(trial)
            tried, applied = np.stack(trials, axis=2), np.stack(forces, axis=2)
            costs = self._cost(tried, applied)
            best = np.argmin(costs, axis=1)
            better = costs[everyone, best] < cost
            states = np.where(better[:, None, None], tried[everyone, best], states)
            plan = np.where(better[:, None], applied[everyone, best], plan)
            cost = np.where(better, costs[everyone, best], cost)
        return plan

    def _backward(self, states: Floats, plan: Floats) -> tuple[Floats, Floats]:
        """Feedforward ``[N, T]`` and gains ``[N, T, 4]``, with Gauss-Newton Hessians, so that they are never indefinite."""
        a, b = self._derivatives(states[:, :-1], plan)
        gradient, curvature = self._cost_derivatives(states)
        value, hessian = 10 * gradient[:, -1], 10 * curvature[:, -1]
        feedforward, gain = np.zeros(plan.shape), np.zeros((*plan.shape, 4))
        for step in reversed(range(self.horizon)):
            forward, push = a[:, step], b[:, step]
            q_x = gradient[:, step] + np.einsum("nij,ni->nj", forward, value)
            q_u = 2 * self.effort * plan[:, step] + (push * value).sum(1)
            weighted = np.einsum("nij,nj->ni", hessian, push)
            q_uu = 2 * self.effort + (push * weighted).sum(1) + 1e-6
            q_ux = np.einsum("nij,ni->nj", forward, weighted)
            q_xx = curvature[:, step] + np.einsum("nki,nkl,nlj->nij", forward, hessian, forward)
            feedforward[:, step], gain[:, step] = -q_u / q_uu, -q_ux / q_uu[:, None]
            value = q_x + gain[:, step] * q_u[:, None]
            hessian = q_xx + np.einsum("ni,nj->nij", gain[:, step], q_ux)
            hessian = 0.5 * (hessian + hessian.transpose(0, 2, 1))
        return feedforward, gain

    def _derivatives(self, states: Floats, plan: Floats) -> tuple[Floats, Floats]:
        """Of :meth:`_next`, by central differences: ``[N, T, 4, 4]`` and ``[N, T, 4]``."""
        h = 1e-5
        columns = [(self._next(states + h * e, plan) - self._next(states - h * e, plan)) / (2 * h) for e in np.eye(4)]
        push = (self._next(states, plan + h) - self._next(states, plan - h)) / (2 * h)
        return np.stack(columns, axis=-1), push

    def _cost_derivatives(self, states: Floats) -> tuple[Floats, Floats]:
        residual = np.stack([states[..., 0], 2 * np.sin(states[..., 1] / 2), states[..., 2], states[..., 3]], axis=-1)
        slope = np.ones(states.shape)
        slope[..., 1] = np.cos(states[..., 1] / 2)
        gradient = 2 * self.weights * residual * slope
        curvature = np.zeros((*states.shape, 4))
        curvature[..., range(4), range(4)] = 2 * self.weights * slope**2
        return gradient, curvature

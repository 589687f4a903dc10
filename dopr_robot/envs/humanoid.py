"""HumanoidBalance: a humanoid stands on one leg while it is pushed, for as long as possible."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, root

from dopr_robot.envs.assets import load_model
from dopr_robot.envs.batched import BatchedMujocoEnv, Initial, Verdict
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import HUMANOID_BALANCE

POSTURE = {
    "left_knee": 0.15,
    "right_hip_y": -0.9,
    "right_knee": 1.5,
    "left_shoulder_x": 0.35,
    "right_shoulder_x": -0.35,
    "left_elbow": -0.4,
    "right_elbow": -0.4,
}
"""Joint angles of the stance beside those that :func:`stance` finds, rad."""
LOWEST = 0.75
"""Failed once the pelvis is lower than this, in metres."""
TILT = np.deg2rad(45)
LIFTED = 0.03
"""Failed once the raised sole is lower than this, in metres."""

Floats = NDArray[np.float64]


class HumanoidBalanceVectorEnv(BatchedMujocoEnv):
    """A batch of humanoids on their left legs. The action is the joints' torques, as shares of the motors' strength.

    Without pushes a fixed feedback would stand for ever; ``disturbance`` is therefore 15 N on the torso unless told otherwise.
    """

    task = HUMANOID_BALANCE
    pushed = "torso"
    default_disturbance = 15.0

    def make_model(self, **options: Any) -> mujoco.MjModel:
        model = load_model("humanoid")
        self.stance, self.holding = stance(model)
        return model

    def initial(self, rng: np.random.Generator) -> Initial:
        qpos, qvel = self.stance.copy(), rng.normal(0.0, 0.03, self.model.nv)
        qpos[7:] += rng.normal(0.0, 0.01, self.model.nq - 7)
        return Initial(qpos, qvel)

    def observe(self) -> dict[str, NDArray[Any]]:
        axes = rotation_matrices(self.qpos[:, 3:7])[:, :, :2].transpose(0, 2, 1).reshape(self.num_envs, 6)
        lean = self.sensor("centre_of_mass") - self.sensor("stance")
        return {"state": np.concatenate([self.qpos[:, :3], axes, self.qpos[:, 7:], self.qvel, lean], axis=1)}

    def control(self, action: Floats) -> Floats:
        return action

    def neutral(self) -> Floats:
        return np.tile(self.holding, (self.num_envs, 1))

    def judge(self) -> Verdict:
        fallen = self.qpos[:, 2] < LOWEST
        tilted = rotation_matrices(self.qpos[:, 3:7])[:, 2, 2] < np.cos(TILT)
        stepped = self.sensor("raised")[:, 2] < LIFTED
        cause = [
            "the pelvis sank" if low else "leaned too far" if askew else "put the other foot down" if down else ""
            for low, askew, down in zip(fallen, tilted, stepped, strict=True)
        ]
        return Verdict(np.zeros(self.num_envs, bool), fallen | tilted | stepped, cause)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {"lean": np.linalg.norm((self.sensor("centre_of_mass") - self.sensor("stance"))[:, :2], axis=1)}


class HumanoidBalanceEnv(MujocoEnv):
    """One humanoid."""

    batched = HumanoidBalanceVectorEnv


def stance(model: Any) -> tuple[Floats, Floats]:
    """Coordinates ``[nq]`` in which the humanoid stands on its left foot, and the actions ``[nu]`` that hold it there.

    The ankle's two angles put the centre of mass over the middle of the sole while the trunk stays upright; the height is the one at
    which the floor carries the weight; the actions are inverse dynamics.
    """
    data = mujoco.MjData(model)
    address = {model.joint(index).name: int(model.jnt_qposadr[index]) for index in range(model.njnt)}

    def place(angles: Any) -> Floats:
        roll, pitch = angles
        qpos = model.qpos0.copy()
        for joint, angle in POSTURE.items():
            qpos[address[joint]] = angle
        qpos[address["left_ankle_x"]], qpos[address["left_hip_x"]] = roll, -roll
        qpos[address["left_ankle_y"]], qpos[address["left_hip_y"]] = pitch, -pitch - POSTURE["left_knee"]
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        # Turn the whole body so that the sole is level, and set it down at the origin.
        foot, turned = np.zeros(4), np.zeros(4)
        mujoco.mju_mat2Quat(foot, data.site("left_sole").xmat)
        mujoco.mju_negQuat(turned, foot)
        qpos[3:7] = turned
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        qpos[:3] -= data.site("left_sole").xpos
        data.qpos[:] = qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        return qpos

    def off(angles: Any) -> Floats:
        place(angles)
        return data.subtree_com[1][:2].copy()

    found = root(off, np.zeros(2))
    qpos = place(found.x)
    standing = qpos.copy()

    def unsupported(sunk: float) -> float:
        mujoco.mj_resetData(model, data)
        data.qpos[:] = standing
        data.qpos[2] -= sunk
        mujoco.mj_forward(model, data)
        data.qacc[:] = 0
        mujoco.mj_inverse(model, data)
        return float(data.qfrc_inverse[2])

    standing[2] -= brentq(unsupported, 0.0, 0.01)
    unsupported(0.0)
    gear = np.array(data.actuator_moment).reshape(-1) if data.actuator_moment.ndim == 1 else None
    moment = np.zeros((model.nu, model.nv))
    if gear is None:
        moment[:] = data.actuator_moment
    else:
        mujoco.mju_sparse2dense(moment, gear, data.moment_rownnz, data.moment_rowadr, data.moment_colind)
    holding = np.linalg.lstsq(moment.T, data.qfrc_inverse, rcond=None)[0]
    return standing, holding


def cost_to_go(a: Floats, b: Floats, cost: Floats, effort: Floats, doublings: int = 12) -> Floats:
    """What a state costs over the next ``2**doublings`` control steps under optimal feedback: the Riccati recursion, by doubling (Chu et
    al., 2004, "Structure-preserving algorithms for periodic discrete-time algebraic Riccati equations").

    Over a horizon, since contact leaves a motion that no feedback reaches and that neither grows nor decays: the equation of the infinite
    horizon has hardly a solution then, and whether scipy's ``solve_discrete_are`` finds one depends on the processor.
    """
    g, h, eye = b @ np.linalg.solve(effort, b.T), cost, np.eye(len(a))
    for _ in range(doublings):
        inside = np.linalg.solve(eye + g @ h, np.concatenate([a, g], 1))
        onwards, through = inside[:, : len(a)], inside[:, len(a) :]
        added = a.T @ h @ onwards
        a, g, h = a @ onwards, g + a @ through @ a.T, h + (added + added.T) / 2
    return h


class LinearQuadraticRegulator:
    """Optimal feedback about the stance, for the dynamics that MuJoCo linearises itself.

    Derivatives of one timestep (``mjd_transitionFD``) are chained over a control step; the cost is that of MuJoCo's own LQR tutorial: the
    centre of mass over the foot first, then the joints that balance, then the rest.
    """

    noise = np.full(20, 0.01)
    balance, stance_joints, other_joints, effort = 1000.0, 3.0, 0.3, 30.0

    def __init__(self, env: HumanoidBalanceVectorEnv) -> None:
        self.env = env
        model, nv = env.model, env.model.nv
        data = mujoco.MjData(model)
        data.qpos[:], data.ctrl[:] = env.stance, env.holding
        mujoco.mj_forward(model, data)
        once, push = np.zeros((2 * nv, 2 * nv)), np.zeros((2 * nv, model.nu))
        mujoco.mjd_transitionFD(model, data, 1e-6, True, once, push, None, None)
        a, b = np.eye(2 * nv), np.zeros((2 * nv, model.nu))
        for _ in range(env.substeps):
            a, b = once @ a, once @ b + push

        mass, foot = np.zeros((3, nv)), np.zeros((3, nv))
        mujoco.mj_jacSubtreeCom(model, data, mass, model.body("pelvis").id)
        mujoco.mj_jacSite(model, data, foot, None, model.site("left_sole").id)
        lean = mass - foot
        weight = np.zeros(nv)
        for joint in range(1, model.njnt):
            name = model.joint(joint).name
            close = name.startswith("abdomen") or (
                name.startswith("left") and name.split("_")[1] in ("hip", "knee", "ankle")
            )
            weight[model.jnt_dofadr[joint]] = self.stance_joints if close else self.other_joints
        cost = np.zeros((2 * nv, 2 * nv))
        cost[:nv, :nv] = self.balance * lean.T @ lean + np.diag(weight)
        cost += 1e-6 * np.eye(2 * nv)
        effort = self.effort * np.eye(model.nu)
        to_go = cost_to_go(a, b, cost, effort)
        self.gain = np.linalg.solve(effort + b.T @ to_go @ b, b.T @ to_go @ a)

    def act(self) -> Floats:
        """Clean actions, ``[N, 20]``."""
        env = self.env
        off = np.zeros((env.num_envs, 2 * env.model.nv))
        for copy in range(env.num_envs):
            mujoco.mj_differentiatePos(env.model, off[copy, : env.model.nv], 1.0, env.stance, env.qpos[copy])
        off[:, env.model.nv :] = env.qvel
        # One copy at a time: a matrix product's last bit depends on how many rows it has.
        feedback = np.stack([self.gain @ row for row in off])
        return np.clip(env.holding - feedback, -1.0, 1.0)

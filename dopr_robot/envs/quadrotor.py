"""QuadrotorTrack: follow a random smooth path with an unstable quadrotor for as long as possible."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from dopr_robot.envs.assets import load_model
from dopr_robot.envs.batched import BatchedMujocoEnv, Initial, Verdict
from dopr_robot.envs.rendering import add_geom
from dopr_robot.envs.rotations import rotation_matrices
from dopr_robot.envs.single import MujocoEnv
from dopr_robot.envs.specs import QUADROTOR_TRACK

GRAVITY = 9.81
RADIUS = 0.4
"""Failed once this far from the path, in metres."""
GROUND = 0.15
"""Failed below this height, in metres: the rotors would touch."""
LOOK_AHEAD = (0.0, 0.2, 0.4, 0.6, 0.8)
"""Seconds ahead at which the observation shows the path."""
RATE_GAIN = 25.0
"""Of the flight controller's rate loop, 1/s: 20 to 30 is what small racing frames reach."""
DRAG = 0.10
"""Linear drag, N s/m."""
WAVES = 2
RAMP_S = 2.0

Floats = NDArray[np.float64]


class QuadrotorTrackVectorEnv(BatchedMujocoEnv):
    """A batch of quadrotors, each on a path of its own.

    The action is what racing pilots and learned controllers command: collective thrust over weight, and body rates (roll, pitch,
    yaw; rad/s) that a rate loop holds. The vehicle is unstable: nothing but the policy levels it or keeps its place.
    """

    task = QUADROTOR_TRACK
    pushed = "quadrotor"

    def make_model(self, **options: Any) -> mujoco.MjModel:
        model = load_model("quadrotor")
        # The rate loop's torque, inertia * gain * (commanded - actual rate): the first part is the control, the second is damping,
        # which the implicit integrator takes at the timestep that is about to come.
        inertia = model.body("quadrotor").inertia
        model.dof_damping[:3] = DRAG
        model.dof_damping[3:6] = RATE_GAIN * inertia
        self._torque = RATE_GAIN * inertia
        self._weight = GRAVITY * float(model.body("quadrotor").mass[0])
        return model

    def initial(self, rng: np.random.Generator) -> Initial:
        variables = {
            "amplitude": rng.uniform(0.3, 1.0, (WAVES, 3)) * np.array([0.9, 0.9, 0.35]),
            "frequency": rng.uniform(0.06, 0.2, (WAVES, 3)),
            "phase": rng.uniform(-np.pi, np.pi, (WAVES, 3)),
        }
        start, _, _ = path_at({key: value[None] for key, value in variables.items()}, np.zeros(1))
        quaternion = np.array([1.0, 0.0, 0.0, 0.0]) + np.append(0.0, rng.normal(0.0, 0.04, 3))
        qpos = np.concatenate([start[0] + rng.uniform(-0.08, 0.08, 3), quaternion / np.linalg.norm(quaternion)])
        return Initial(qpos, rng.normal(0.0, 0.05, 6), variables)

    @property
    def time(self) -> Floats:
        """Seconds since the start of the episode, ``[N]``."""
        return self.elapsed / self.task.control_hz

    @property
    def rotation(self) -> Floats:
        """Body to world, ``[N, 3, 3]``."""
        return rotation_matrices(self.qpos[:, 3:7])

    def observe(self) -> dict[str, NDArray[Any]]:
        position, velocity = self.qpos[:, :3], self.qvel[:, :3]
        ahead = [path_at(self.variables, self.time + seconds)[0] - position for seconds in LOOK_AHEAD]
        speed = path_at(self.variables, self.time)[1]
        axes = self.rotation[:, :, :2].transpose(0, 2, 1).reshape(self.num_envs, 6)
        return {"state": np.concatenate([*ahead, speed, velocity, axes, self.qvel[:, 3:6]], axis=1)}

    def control(self, action: Floats) -> Floats:
        return np.concatenate([action[:, :1] * self._weight, action[:, 1:] * self._torque], axis=1)

    def neutral(self) -> Floats:
        return np.tile([1.0, 0.0, 0.0, 0.0], (self.num_envs, 1))

    def judge(self) -> Verdict:
        position = self.qpos[:, :3]
        distance = np.linalg.norm(position - path_at(self.variables, self.time)[0], axis=1)
        off, crashed = distance > RADIUS, position[:, 2] < GROUND
        cause = [
            f"more than {RADIUS} m off the path" if lost else "hit the ground" if hit else ""
            for lost, hit in zip(off, crashed, strict=True)
        ]
        return Verdict(np.zeros(self.num_envs, bool), off | crashed, cause)

    def measure(self) -> dict[str, NDArray[Any]]:
        return {"distance": np.linalg.norm(self.qpos[:, :3] - path_at(self.variables, self.time)[0], axis=1)}

    def decorate(self, scene: Any, copy: int) -> None:
        own = {key: value[copy : copy + 1] for key, value in self.variables.items()}
        now = self.time[copy]
        for seconds in np.arange(-1.5, 2.01, 0.125):
            if now + seconds >= 0:
                point = path_at(own, np.array([now + seconds]))[0][0]
                colour = (0.10, 0.60, 0.35, 0.9) if seconds >= 0 else (0.45, 0.50, 0.52, 0.5)
                add_geom(scene, mujoco.mjtGeom.mjGEOM_SPHERE, (0.022, 0, 0), point, colour)
        target = path_at(own, np.array([now]))[0][0]
        add_geom(scene, mujoco.mjtGeom.mjGEOM_SPHERE, (0.05, 0, 0), target, (0.10, 0.60, 0.35, 1.0))


class QuadrotorTrackEnv(MujocoEnv):
    """One quadrotor."""

    batched = QuadrotorTrackVectorEnv


class GeometricController:
    """Tracking control on SE(3) (Lee, Leok and McClamroch, 2010), with body rates in place of torques.

    The wanted acceleration gives thrust and the direction of the body's z axis; the attitude's error gives the rates. It has no
    memory.
    """

    noise = np.array([0.06, 0.5, 0.5, 0.2])
    """Standard deviation of what is injected while demonstrations are collected, in the action's units."""

    position_gain, velocity_gain, attitude_gain = 6.0, 4.5, 9.0

    def __init__(self, env: QuadrotorTrackVectorEnv) -> None:
        self.env = env

    def act(self) -> Floats:
        """Clean actions, ``[N, 4]``."""
        env = self.env
        position, velocity, acceleration = path_at(env.variables, env.time)
        wanted = acceleration + self.position_gain * (position - env.qpos[:, :3])
        wanted += self.velocity_gain * (velocity - env.qvel[:, :3])
        wanted[:, 2] += GRAVITY
        rotation = env.rotation
        thrust = np.einsum("ni,ni->n", wanted, rotation[:, :, 2]) / GRAVITY
        down = np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-6)
        axis_z = wanted / down
        axis_y = np.cross(axis_z, [1.0, 0.0, 0.0])
        axis_y /= np.linalg.norm(axis_y, axis=1, keepdims=True)
        target = np.stack([np.cross(axis_y, axis_z), axis_y, axis_z], axis=2)
        skew = np.einsum("nji,njk->nik", target, rotation)
        skew = skew - skew.transpose(0, 2, 1)
        error = 0.5 * np.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], axis=1)
        rates = -self.attitude_gain * error
        action = np.concatenate([thrust[:, None], rates], axis=1)
        return np.clip(action, env.task.action.low, env.task.action.high)


def path_at(path: dict[str, NDArray[Any]], time: Floats) -> tuple[Floats, Floats, Floats]:
    """Position, velocity and acceleration of each copy's path at its time ``[N]``: three times ``[N, 3]``.

    A sum of sines in each axis around a point 1.5 m high. The clock of the path starts from rest and runs at full speed after two
    seconds.
    """
    t = np.maximum(time, 0.0)[:, None, None]
    clock = np.where(t < RAMP_S, t**2 / (2 * RAMP_S), t - RAMP_S / 2)
    rate = np.minimum(t / RAMP_S, 1.0)
    quickening = np.where(t < RAMP_S, 1.0 / RAMP_S, 0.0)
    omega = 2 * np.pi * path["frequency"]
    angle = omega * clock + path["phase"]
    sine, cosine = path["amplitude"] * np.sin(angle), path["amplitude"] * np.cos(angle)
    position = sine.sum(1) + np.array([0.0, 0.0, 1.5])
    velocity = (cosine * omega * rate).sum(1)
    acceleration = (cosine * omega * quickening - sine * (omega * rate) ** 2).sum(1)
    return position, velocity, acceleration

"""robosuite's control step, with the same result to the bit in a fraction of the time.

In the 25 physics steps of a control step robosuite looks names up, asks for its action's bounds and reads every sensor each time: MuJoCo
has a sixth of the time. The first physics step, which sets the goals, stays the package's. In those after it the goals stand, and a
gripper's command with them, so what is left is the arms' operational space control on the state as it is now: the package's own compiled
functions on the same numbers. Sensors are not read in between: what robosuite computes from its cache (an object's place relative to the
hand, from where the object was when it was read last) is one control step behind, as in robomimic's files.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def quick_step(env: Any) -> Callable[[NDArray[Any]], float]:
    """Steps robosuite's environment with an action and gives the reward; what its sensors say has to be asked for after it.

    An environment whose arms are controlled otherwise than robosuite 1.5's default does it (OSC_POSE without interpolation, on a base that
    does not move) is stepped by its own ``step``.
    """
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    arms = _arms(env, model, data)
    if arms is None:
        return lambda action: float(env.step(action)[1])
    substeps = int(env.control_timestep / env.model_timestep)

    def step(action: NDArray[Any]) -> float:
        env.timestep += 1
        mujoco.mj_step1(model, data)
        env._pre_action(action, True)
        mujoco.mj_step2(model, data)
        for arm in arms:
            arm.begin()
        for _ in range(substeps - 1):
            mujoco.mj_step1(model, data)
            for arm in arms:
                arm.control()
            mujoco.mj_step2(model, data)
        env.cur_time += env.control_timestep
        return float(env._post_action(action)[0])

    return step


def _arms(env: Any, model: Any, data: Any) -> "list[_Arm] | None":
    """The arms of an environment, where they and it are as this module knows them."""
    import robosuite
    from robosuite.controllers.composite.composite_controller import CompositeController
    from robosuite.controllers.parts.arm.osc import OperationalSpaceController
    from robosuite.controllers.parts.gripper.simple_grip import SimpleGripController
    from robosuite.environments.base import MujocoEnv
    from robosuite.environments.robot_env import RobotEnv
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    own = type(env).step is MujocoEnv.step and type(env)._pre_action is RobotEnv._pre_action and env.lite_physics
    if not own or not robosuite.__version__.startswith("1.5."):
        return None
    arms = []
    for robot in env.robots:
        if type(robot) is not FixedBaseRobot or type(robot.composite_controller) is not CompositeController:
            return None
        for name, controller in robot.composite_controller.part_controllers.items():
            if not robot._enabled_parts.get(name, False):
                continue
            if type(controller) is SimpleGripController and controller.interpolator is None:
                continue
            if type(controller) is not OperationalSpaceController or controller.num_ref_sites != 1:
                return None
            arm = _Arm(controller, robot._ref_actuators_indexes_dict[name], model, data)
            moves = model.body_weldid[model.site_bodyid[arm.base]] != 0
            if moves or controller.interpolator_pos is not None or controller.interpolator_ori is not None:
                return None
            arms.append(arm)
    return arms


class _Arm:
    """An arm under ``OperationalSpaceController.run_controller``, line by line."""

    def __init__(self, controller: Any, actuators: Any, model: Any, data: Any) -> None:
        self.controller, self.actuators, self.model, self.data = controller, actuators, model, data
        self.site = model.site(controller.ref_name).id
        self.base = model.site(f"{controller.naming_prefix}{controller.part_name}_center").id
        self.low, self.high = model.actuator_ctrlrange[actuators, 0], model.actuator_ctrlrange[actuators, 1]
        self.jacobians = np.zeros((2, 3, model.nv))
        self.full = np.zeros((6, len(controller.qvel_index)))
        self.mass = np.zeros((model.nv, model.nv))

    def begin(self) -> None:
        """Take note of the goals, which stand for a control step."""
        own = self.controller
        if own.input_ref_frame == "base":
            self.goal = own.origin_pos + np.dot(own.origin_ori, own.goal_pos), np.dot(own.origin_ori, own.goal_ori)
        else:
            self.goal = own.goal_pos, own.goal_ori

    def control(self) -> None:
        """Set the actuators from the state between ``mj_step1`` and ``mj_step2``."""
        import mujoco
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        own, data, (position, orientation) = self.controller, self.data, self.goal
        mujoco.mj_jacSite(self.model, data, *self.jacobians, self.site)
        joints, velocities = own.qvel_index, data.qvel
        linear, angular = self.jacobians
        self.full[:3], self.full[3:] = linear[:, joints], angular[:, joints]
        mujoco.mj_fullM(self.model, self.mass, data.qM)
        mass = self.mass[joints, :][:, joints]

        error = position - data.site_xpos[self.site]
        turn = orientation_error(orientation, data.site_xmat[self.site].reshape(3, 3))
        force = error * own.kp[:3] + -np.dot(linear, velocities) * own.kd[:3]
        torque = turn * own.kp[3:6] + -np.dot(angular, velocities) * own.kd[3:6]
        whole, of_position, of_orientation, nullspace = opspace_matrices(mass, self.full, self.full[:3], self.full[3:])
        if own.uncoupling:
            wrench = np.concatenate([np.dot(of_position, force), np.dot(of_orientation, torque)])
        else:
            wrench = np.dot(whole, np.concatenate([force, torque]))
        torques = np.dot(self.full.T, wrench) + data.qfrc_bias[joints]
        torques += nullspace_torques(mass, nullspace, own.initial_joint, data.qpos[own.qpos_index], velocities[joints])
        data.ctrl[self.actuators] = np.clip(torques, self.low, self.high)

"""robosuite's control step, the same to the bit in about six tenths of the time.

In each of the 25 physics steps of a control step the package asks for its action's bounds three times, finds its frames by name, and
computes six Jacobians of two sites: MuJoCo has a fifth of the time. What is left out here can not change anything:

- The first physics step, in which the goals are set, is the package's own. After it the goals stand, and so does a gripper's command, which
  is a function of its goal alone.
- An arm's base does not move (what moves is left to the package): its frame stays that of the first physics step, and its velocity is zero.
- A hand's two Jacobians come from one call; its velocities are their products with the joints', as in the package.

All else is called as often as there, its sensors too: each decides by the number of calls when it reads, and what it reads is the next
reading's input (an object's place relative to the hand).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def step(env: Any, action: NDArray[Any]) -> float:
    """Step robosuite's environment and give the reward; what its sensors say has to be asked for after it.

    Arms that are controlled otherwise than by OSC_POSE or OSC_POSITION without interpolation, on a base that does not move, are stepped by
    the package's own ``step``.
    """
    import mujoco

    parts = arms(env)
    if parts is None:
        return float(env.step(action)[1])
    model, data = env.sim.model._model, env.sim.data._data
    env.timestep += 1
    mujoco.mj_step1(model, data)
    env._pre_action(action, True)
    mujoco.mj_step2(model, data)
    env._update_observables()
    controls = [_control(*part, model, data) for part in parts]
    for _ in range(1, int(env.control_timestep / env.model_timestep)):
        mujoco.mj_step1(model, data)
        for control in controls:
            control()
        mujoco.mj_step2(model, data)
        env._update_observables()
    env.cur_time += env.control_timestep
    return float(env._post_action(action)[0])


def arms(env: Any) -> list[tuple[Any, Any]] | None:
    """The arms' controllers with their actuators, where they and the environment are as this module knows them."""
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
    model, found = env.sim.model._model, []
    for robot in env.robots:
        if type(robot) is not FixedBaseRobot or type(robot.composite_controller) is not CompositeController:
            return None
        for name, part in robot.part_controllers.items():
            if not robot._enabled_parts.get(name, False):
                continue
            if type(part) is SimpleGripController and part.interpolator is None:
                continue
            if type(part) is not OperationalSpaceController or part.interpolator_pos or part.interpolator_ori:
                return None
            base = model.site(f"{part.naming_prefix}{part.part_name}_center")
            if part.num_ref_sites != 1 or model.body_weldid[model.site_bodyid[base.id]]:
                return None
            found.append((part, robot._ref_actuators_indexes_dict[name]))
    return found


def _control(own: Any, actuators: Any, model: Any, data: Any) -> Callable[[], None]:
    """Sets an arm's actuators from the state between ``mj_step1`` and ``mj_step2``: ``OperationalSpaceController.run_controller``, line by
    line, for the goals that stand."""
    import mujoco
    from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

    position, orientation = own.goal_pos, own.goal_ori
    if own.input_ref_frame == "base":
        position, orientation = own.origin_pos + np.dot(own.origin_ori, position), np.dot(own.origin_ori, orientation)
    site, joints = model.site(own.ref_name).id, own.qvel_index
    low, high = model.actuator_ctrlrange[actuators].T
    linear, angular = np.zeros((2, 3, model.nv))
    jacobian, inertia = np.zeros((6, len(joints))), np.zeros((model.nv, model.nv))

    def control() -> None:
        mujoco.mj_jacSite(model, data, linear, angular, site)
        jacobian[:3], jacobian[3:] = linear[:, joints], angular[:, joints]
        mujoco.mj_fullM(model, inertia, data.qM)
        mass = inertia[joints, :][:, joints]
        turn = orientation_error(orientation, data.site_xmat[site].reshape(3, 3))
        force = (position - data.site_xpos[site]) * own.kp[:3] - np.dot(linear, data.qvel) * own.kd[:3]
        torque = turn * own.kp[3:] - np.dot(angular, data.qvel) * own.kd[3:]
        whole, of_position, of_orientation, nullspace = opspace_matrices(mass, jacobian, jacobian[:3], jacobian[3:])
        if own.uncoupling:
            wrench = np.concatenate([np.dot(of_position, force), np.dot(of_orientation, torque)])
        else:
            wrench = np.dot(whole, np.concatenate([force, torque]))
        torques = np.dot(jacobian.T, wrench) + data.qfrc_bias[joints]
        torques += nullspace_torques(mass, nullspace, own.initial_joint, data.qpos[own.qpos_index], data.qvel[joints])
        data.ctrl[actuators] = np.clip(torques, low, high)

    return control

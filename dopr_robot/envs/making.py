"""Environments of a task: one, or many as one."""

import logging
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from dopr_robot.envs.contract import admit
from dopr_robot.envs.faults import START_S, ask
from dopr_robot.envs.loading import load
from dopr_robot.envs.registration import get_task
from dopr_robot.envs.workers import WorkerVectorEnv
from dopr_robot.errors import UserError

LOG = logging.getLogger(__name__)


def make(name: str, **kwargs: Any) -> gymnasium.Env:
    """One environment of a task, with Dict observations and ``success`` in every info.

    Raises:
        UnknownNameError, MissingExtraError: no such task, or its package is not installed.
        UserError: it does not keep to the contract, see :func:`dopr_robot.envs.contract.admit`.
        SimulatorError: it can not be made.
    """
    spec = get_task(name)
    spec.check_installed()
    return admit(ask(load(spec.entry_point), seconds=START_S, **{**spec.arguments, **kwargs}), spec)


def make_vec(
    name: str, num_envs: int, *, autoreset_mode: AutoresetMode = AutoresetMode.DISABLED, **kwargs: Any
) -> VectorEnv:
    """``num_envs`` copies of a task as one vector environment.

    With the default mode a finished copy waits for ``reset(seed=[...], options={"reset_mask": bool[num_envs]})``.

    Raises:
        UserError: as :func:`make`.
        SimulatorError: from then on, for a simulator's faults, wherever it runs.
    """
    if num_envs < 1:
        raise UserError(f"num_envs={num_envs} has to be at least 1")
    spec = get_task(name)
    spec.check_installed()
    LOG.debug("%d copies of %s: %s", num_envs, spec.id, kwargs)
    if spec.vector_entry_point is not None:
        batched = load(spec.vector_entry_point)
        return admit(ask(batched, num_envs=num_envs, autoreset_mode=autoreset_mode, seconds=START_S, **kwargs), spec)
    arguments: dict[str, Any] = {"workers": 0} if spec.in_process else {}
    arguments |= {**spec.arguments, **kwargs}
    return admit(WorkerVectorEnv(spec, num_envs, autoreset_mode=autoreset_mode, **arguments), spec)

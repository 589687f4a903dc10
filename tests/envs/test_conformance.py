"""What holds for every registered task whose package is installed; a new task is tested by being registered."""

from dataclasses import replace

import numpy as np
import pytest

from dopr_robot.envs import TASKS, conformance, get_task, list_tasks, load_expert

ELSEWHERE = ("aloha", "gymnasium-robotics", "metaworld", "robosuite")
"""Extras that are installed in the simulators' environment."""
STEPS = {"aloha": 30, "metaworld": 100, "robosuite": 100}
"""Random actions, where few more take long (gym-aloha draws four pictures a step) or many tasks are of one class."""
USUAL_STEPS = 300
"""Of all others: what `dopr tasks NAME --check` asks 1,000 of, over 83 tasks."""


def tasks(specs):
    return [pytest.param(s.id, marks=[pytest.mark.sim] if s.extra in ELSEWHERE else [], id=s.id) for s in specs]


def mujoco_warnings(env):
    """How often MuJoCo has warned in an environment, wherever its package keeps the data; PushT has none."""
    inner = env.unwrapped
    if hasattr(inner, "vector"):  # ours
        datas = inner.vector._datas
    elif hasattr(inner, "data"):  # Gymnasium, Gymnasium-Robotics, Meta-World
        datas = [inner.data]
    elif hasattr(inner, "_env"):  # gym-aloha
        datas = [inner._env.physics.data]
    elif hasattr(inner, "env"):  # robosuite
        datas = [inner.env.sim.data]
    else:
        assert get_task(env.task.id).package == "gym_pusht"
        datas = []
    return sum(int(number) for data in datas for number in np.atleast_1d(data.warning.number))


def warned(env):
    count = mujoco_warnings(env)
    return [f"MuJoCo warned {count} times"] if count else []


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("task", tasks(list_tasks()))
def test_a_task_keeps_its_word(task, monkeypatch):
    spec = get_task(task)
    if spec != FAMILIES[spec.entry_point]:
        # One task a family has processes for its copies, here and below; to start one takes longer than what it is asked.
        spec = replace(spec, in_process=True)
        monkeypatch.setitem(TASKS._entries, spec.id, spec)
    assert list(conformance.spaces(spec)) == []
    assert list(conformance.seed(spec)) == []
    assert list(conformance.episodes(spec, STEPS.get(spec.extra or "", USUAL_STEPS), warned)) == []


FAMILIES = {
    spec.entry_point: spec for spec in sorted(list_tasks(), key=lambda spec: len(spec.action.low), reverse=True)
}


@pytest.mark.parametrize("task", tasks(FAMILIES.values()))
def test_copies_are_what_the_single_environment_is(task):
    """One task a family, since copies may be processes."""
    spec = get_task(task)
    assert list(conformance.limit(spec)) == []
    assert list(conformance.copies(spec, {"robosuite": 3, "aloha": 2}.get(spec.extra, 10))) == []


@pytest.mark.parametrize("task", tasks(spec for spec in list_tasks() if spec.has_expert))
def test_an_expert_is_found(task):
    assert load_expert(get_task(task)).noise.shape == (len(get_task(task).action.low),)


@pytest.mark.parametrize("task", tasks(spec for spec in FAMILIES.values() if spec.has_expert))
def test_an_expert_acts(task):
    assert list(conformance.expert(get_task(task))) == []

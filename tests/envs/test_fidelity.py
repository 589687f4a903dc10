"""An adapted task is the package's own environment: the same observations, rewards and successes, step by step, for 50 steps.

The other side is made the way the package's own documentation makes it, and begins an episode afresh; ours has had one before.
"""

import pickle

import gymnasium
import numpy as np
import pytest

from dopr_robot.envs import list_tasks, make

STEPS = 50
SIMULATORS = pytest.mark.sim


def of_extra(extra, *marks):
    return [
        pytest.param(spec, marks=marks, id=spec.id)
        for spec in list_tasks()
        if spec.extra == extra and spec.source != "ours"
    ]


def used(spec):
    """Ours, after some steps of another episode."""
    env = make(spec.id)
    env.reset(seed=3)
    env.action_space.seed(3)
    for _ in range(3):
        env.step(env.action_space.sample())
    return env


def vectors(observation, spec):
    """What a Gymnasium package observes, under our names."""
    if not isinstance(observation, dict):
        return {"state": observation}
    arrays = {"state": observation.get("observation", observation.get("agent_pos"))} | observation
    return {key: arrays[key] for key, shape in spec.observations.items() if len(shape) == 1}


def succeeded(spec, terminated, info):
    if spec.kind == "sustain":
        return not terminated
    if spec.stages:
        return len(info["episode_task_completions"]) == len(spec.stages)
    return bool(info.get("success", info.get("is_success")))


KITCHEN = {"tasks_to_complete": ["microwave", "kettle", "light switch", "slide cabinet"]}
SMALL = {"obs_type": "pixels_agent_pos", "observation_width": 8, "observation_height": 8}


def episodes(extra, *marks, steps=STEPS, **options):
    """Parameters of the test below."""
    return [
        pytest.param(*each.values, steps, options, marks=each.marks, id=f"{each.id}-{steps}")
        for each in of_extra(extra, *marks)
    ]


@pytest.mark.parametrize(
    ("spec", "steps", "options"),
    [
        *episodes(None),
        *episodes("pusht"),
        *episodes("gymnasium-robotics", SIMULATORS),
        *episodes("aloha", SIMULATORS, steps=5, **SMALL),  # draws four pictures a step, whatever is asked for
        *episodes("aloha", SIMULATORS, pytest.mark.slow, **SMALL),
    ],
)
def test_gymnasiums_packages(spec, steps, options):
    ours = used(spec)  # loads the package, which registers its ids
    theirs = gymnasium.make(spec.id, **options, **(KITCHEN if spec.stages else {}))
    seed = 5
    rng = np.random.default_rng(0)
    mine, yours = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
    for step in range(steps):
        for key, values in vectors(yours, spec).items():
            np.testing.assert_array_equal(mine[key], values.astype(np.float32), err_msg=f"{key}, step {step}")
        action = rng.uniform(spec.action.low, spec.action.high).astype(np.float32)
        mine, reward, ended, _, info = ours.step(action)
        yours, same_reward, terminated, _, about = theirs.step(action.astype(theirs.action_space.dtype))
        assert reward == pytest.approx(float(same_reward), abs=1e-8)
        assert info["success"] == succeeded(spec, terminated, about)
        if ended:
            seed += 1
            mine, yours = ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("spec", of_extra("metaworld", SIMULATORS))
def test_metaworld(spec, monkeypatch):
    """Beside an environment to which the same task was given as the package's benchmarks give it."""
    import metaworld
    from metaworld.envs import sawyer_assembly_peg_v3
    from metaworld.types import Task
    from metaworld.utils import reward_utils

    ours = used(spec)
    mine = ours.reset(seed=5)[0]["state"]
    name = spec.arguments["name"]
    theirs = metaworld.ALL_V3_ENVIRONMENTS[name]()
    drawn = {"rand_vec": ours.unwrapped._last_rand_vec, "env_cls": type(theirs), "partially_observable": False}
    theirs.set_task(Task(name, pickle.dumps(drawn)))
    yours = theirs.reset()[0]
    tolerance = reward_utils.tolerance.__wrapped__
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        np.testing.assert_array_equal(mine, yours.astype(np.float32), err_msg=f"step {step}")
        assert mine[36:].any(), "the goal is hidden"
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        observation, reward, _, _, info = ours.step(action)
        with monkeypatch.context() as package:
            for module in (reward_utils, sawyer_assembly_peg_v3):
                package.setattr(module, "tolerance", tolerance)
            yours, same_reward, _, _, about = theirs.step(action)
        mine = observation["state"]
        assert (reward, info["success"]) == (same_reward, bool(about["success"]))


@SIMULATORS
def test_metaworlds_tolerance():
    """What its rewards are made of, in every form that they ask for; what it refuses is refused."""
    from metaworld.utils import reward_utils

    make("metaworld/reach-v3").close()
    quick, whole = reward_utils.tolerance, reward_utils.tolerance.__wrapped__
    rng = np.random.default_rng(0)
    for draw in range(400):
        lower, span, margin = rng.uniform(0, 0.1), rng.choice([0.0, 0.05]), rng.choice([0.0, 0.01, 0.4])
        for x in (lower, lower + span, rng.uniform(-1, 1), float(rng.uniform(-0.1, 0.2)), rng.uniform(-1, 1, 3)):
            for sigmoid in ("long_tail", "gaussian", "hyperbolic", "tanh_squared"):
                form = {"bounds": (lower, lower + span), "margin": margin, "sigmoid": sigmoid}
                mine, same = quick(x, **form), whole(x, **form)
                assert type(mine) is type(same) and np.array_equal(mine, same), (draw, x, form)
    for wrong in ({"bounds": (1.0, 0.0)}, {"margin": -1.0}, {"margin": 1.0, "sigmoid": "none"}):
        with pytest.raises(ValueError):
            quick(0.5, **wrong)


@SIMULATORS
def test_metaworld_draws_what_its_benchmark_draws():
    """Objects and goals of our seeds lie where the tasks of MT1 lie, which vary in the same numbers."""
    import metaworld

    def drawn(vectors):
        stacked = np.stack(list(vectors))
        return stacked.min(0), stacked.max(0)

    ours = make("metaworld/push-wall-v3")
    low, high = drawn(ours.reset(seed=seed)[0] and ours.unwrapped._last_rand_vec for seed in range(50))
    tasks = metaworld.MT1("push-wall-v3", seed=0).train_tasks
    same_low, same_high = drawn(pickle.loads(task.data)["rand_vec"] for task in tasks)
    np.testing.assert_allclose(low, same_low, atol=0.02)
    np.testing.assert_allclose(high, same_high, atol=0.02)


READINGS = 30
"""Steps of robosuite's tasks: its sensors, which our observation asks once more a step, read one physics step earlier every time, so that
these take them through all 25 of a control step."""


@pytest.mark.parametrize("spec", of_extra("robosuite", SIMULATORS))
def test_robosuite(spec, monkeypatch):
    """Beside an environment that has been put into our state as robosuite's playback does it; its sums differ in their last digits."""
    ours = used(spec)
    ours.reset(seed=5)
    import mujoco
    import robosuite

    own = ours.unwrapped.env
    blind = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
    theirs = robosuite.make(spec.arguments["package_name"], robots=["Panda"] * len(own.robots), **blind)
    theirs.reset_from_xml_string(own.sim.model.get_xml())
    theirs.sim.set_state(own.sim.get_state())
    theirs.sim.forward()
    for robot, other in zip(own.robots, theirs.robots, strict=True):
        parts = robot.composite_controller.part_controllers
        for name, part in other.composite_controller.part_controllers.items():
            part.update(force=True)
            part.update_initial_joints(parts[name].initial_joint)
        other.composite_controller.reset()
    rng = np.random.default_rng(0)
    for step in range(READINGS):
        action = rng.uniform(spec.action.low, spec.action.high).astype(np.float32)
        mine, reward, _, _, info = ours.step(action)
        _, same_reward, _, _ = theirs.step(action)
        mujoco.mj_fwdPosition(theirs.sim.model._model, theirs.sim.data._data)
        yours = theirs._get_observations(force_update=True)  # what it returns is of the step's beginning
        assert (reward, info["success"]) == (same_reward, bool(theirs._check_success()))
        for key in spec.observations:
            values = yours["object-state" if key == "object" else key]
            np.testing.assert_allclose(mine[key], values, atol=1e-4, err_msg=f"{key}, step {step}")
    theirs.close()
    steps_as_the_package_does(ours, monkeypatch)


@SIMULATORS
@pytest.mark.parametrize(
    "name",
    [
        "Door",
        "Wipe",  # its reward reads the forces on the hand
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("Stack", "NutAssemblyRound", "PickPlace")),
        *(pytest.param(f"TwoArm{name}", marks=pytest.mark.slow) for name in ("Lift", "Handover")),
    ],
)
def test_robosuites_other_environments(name, monkeypatch):
    """Those that only a robomimic file names."""
    options = {
        "robots": ["Panda"] * (2 if name.startswith("TwoArm") else 1),
        "control_freq": 20,
        "reward_shaping": True,
    }
    env = make("robosuite/Lift-v0", env_args={"env_name": name, "env_kwargs": options})
    steps_as_the_package_does(env, monkeypatch)


def steps_as_the_package_does(env, monkeypatch):
    """What every sensor has read, what is remembered for the next reading, reward, success and the simulator's state, to the bit."""
    import mujoco

    from dopr_robot.envs.adapters import robosuite_steps

    ours, whole = env.unwrapped, mujoco.mjtState.mjSTATE_INTEGRATION

    def episode():
        env.reset(seed=5)
        rng = np.random.default_rng(0)
        model, data = env.physics()
        for _ in range(READINGS):
            seen, *outcome, info = ours.step(rng.uniform(ours.action_space.low, ours.action_space.high))
            state = np.empty(mujoco.mj_stateSize(model, whole))
            mujoco.mj_getState(model, data, state, whole)
            kept = {f"cache of {key}": np.array(value) for key, value in ours.env._obs_cache.items()}
            for key, sensor in ours.env._observables.items():
                kept[f"clock of {key}"] = np.array([sensor._time_since_last_sample, sensor._sampled])
            yield {"state": state, "outcome": [*outcome, info["success"]]} | seen | kept

    mine = list(episode())
    assert robosuite_steps.arms(ours.env), "it is stepped by the package itself"
    monkeypatch.setattr(robosuite_steps, "step", lambda env, action: float(env.step(action)[1]))
    for step, (reading, same) in enumerate(zip(mine, episode(), strict=True)):
        assert reading.keys() == same.keys()
        for key, values in reading.items():
            np.testing.assert_array_equal(values, same[key], err_msg=f"{key}, step {step}")
    env.close()


@SIMULATORS
def test_robosuites_other_controllers_are_left_to_the_package():
    from robosuite.controllers import load_part_controller_config

    from dopr_robot.envs.adapters import robosuite_steps

    arm = load_part_controller_config(default_controller="JOINT_POSITION")
    options = {"robots": "Panda", "control_freq": 20, "controller_configs": arm}
    env = make("robosuite/Lift-v0", env_args={"env_name": "Lift", "env_kwargs": options}).unwrapped
    env.reset(seed=0)
    assert robosuite_steps.arms(env.env) is None
    env.step(np.zeros(env.action_space.shape))
    assert env.env.timestep == 1
    env.close()

"""The batched core: autoreset as Gymnasium defines it, options, perturbations, blow-ups, pictures."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dopr_robot.envs import get_task, make, make_vec
from dopr_robot.errors import UserError

NOTHING = np.zeros((3, 4), np.float32)


def arrays(info):
    """An info as plain values, without what Gymnasium's own vectorisation leaves out."""
    return {key: np.asarray(value).tolist() for key, value in info.items() if key not in ("cause", "_cause")}


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_autoreset_is_gymnasiums(mode):
    """Quadrotors without thrust fall out of their paths at different steps; Gymnasium's own SyncVectorEnv says what should happen."""
    ours = make_vec("QuadrotorTrack", 3, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: make("QuadrotorTrack")] * 3, autoreset_mode=mode)
    ours.reset(seed=[0, 1, 2])
    theirs.reset(seed=[0, 1, 2])
    ends = 0
    for _ in range(40):
        got, want = ours.step(NOTHING), theirs.step(NOTHING)
        ends += int(want[2].sum())
        assert np.array_equal(got[0]["state"], want[0]["state"])
        assert all(np.array_equal(a, b) for a, b in zip(got[1:4], want[1:4], strict=True))
        if mode == AutoresetMode.SAME_STEP and want[2].any():
            assert np.array_equal(got[4]["_final_info"], want[4]["_final_info"])
            for copy in np.flatnonzero(want[2]):
                assert np.array_equal(got[4]["final_obs"]["state"][copy], want[4]["final_obs"][copy]["state"])
                assert not got[4]["final_info"]["success"][copy]
                assert got[4]["final_info"]["distance"][copy] == want[4]["final_info"]["distance"][copy]
    assert ends >= 3


def test_a_finished_copy_stands_still_until_it_is_reset_alone():
    env = make_vec("QuadrotorTrack", 3)
    env.reset(seed=[0, 1, 2])
    while True:
        observation, _, terminated, _, _ = env.step(NOTHING)
        if terminated.any():
            break
    copy = int(np.argmax(terminated))
    assert np.array_equal(env.step(NOTHING)[0]["state"][copy], observation["state"][copy])
    others = np.arange(3) != copy
    moved = env.step(NOTHING)[0]["state"]
    fresh, _ = env.reset(seed=[9, 9, 9], options={"reset_mask": ~others})
    assert np.array_equal(fresh["state"][others], moved[others])
    assert np.array_equal(fresh["state"][copy], make("QuadrotorTrack").reset(seed=9)[0]["state"])


def test_a_blow_up_is_a_failure_of_its_own_copy():
    env, calm = make_vec("PickPlace", 3), make_vec("PickPlace", 3)
    for each in (env, calm):
        each.reset(seed=[0, 1, 2])
    still = np.concatenate([env.joints, np.full((3, 1), 0.08)], axis=1).astype(np.float32)
    env.qvel[1, 9] = 1e12
    got, want = env.step(still), calm.step(still)
    assert got[2].tolist() == [False, True, False]
    assert got[4]["cause"][1] == "the simulation became unstable"
    assert not got[4]["success"][1]
    assert np.isfinite(got[0]["state"]).all()
    for copy in (0, 2):
        assert np.array_equal(got[0]["state"][copy], want[0]["state"][copy])


def test_a_delayed_action_is_executed_later():
    prompt, late = make_vec("CartPoleSwingUp", 1), make_vec("CartPoleSwingUp", 1, action_delay=2)
    for env in (prompt, late):
        env.reset(seed=[3])
    forces = np.random.default_rng(0).uniform(-10, 10, (6, 1, 1)).astype(np.float32)
    for force in np.concatenate([np.zeros((2, 1, 1), np.float32), forces]):
        expected = prompt.step(force)[0]["state"]
        assert expected is not None
    for force in np.concatenate([forces, np.zeros((2, 1, 1), np.float32)]):
        delayed = late.step(force)[0]["state"]
    assert np.array_equal(delayed, expected)


def test_noise_and_pushes_have_the_size_that_was_asked_for():
    exact, noisy, pushed = (
        make_vec("QuadrotorTrack", 64, **o) for o in ({}, {"observation_noise": 0.1}, {"disturbance": 3.0})
    )
    seeds = list(range(64))
    true, seen = exact.reset(seed=seeds)[0]["state"], noisy.reset(seed=seeds)[0]["state"]
    assert 0.095 < (seen - true).std() < 0.105
    pushed.reset(seed=seeds)
    hover = np.tile(np.float32([1, 0, 0, 0]), (64, 1))
    exact.step(hover)
    pushed.step(hover)
    # A force F for a control step of 0.04 s changes the velocity of 1 kg by 0.04 F.
    assert 0.1 < (pushed.qvel[:, :3] - exact.qvel[:, :3]).std() < 0.14


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("PickPlace", {"cubes": 2}, "has no option 'cubes'"),
        ("Stack", {"cubes": 5}, "cubes=5 has to be a whole number from 1 to 4"),
        ("PegInsert", {"clearance": 0.1}, "clearance=0.1 has to be from"),
        ("PickPlace", {"obs": ("state", "rear")}, "unknown camera of dopr_robot/PickPlace-v0: 'rear'"),
        ("PickPlace", {"action_delay": -1}, "action_delay=-1"),
        ("PickPlace", {"observation_noise": float("nan")}, "observation_noise=nan"),
        ("PickPlase", {}, "did you mean 'PickPlace'"),
    ],
)
def test_a_wrong_option_is_named(task, options, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        make_vec(task, 1, **options)


@pytest.mark.parametrize("task", ["PickPlace", "Drawer", "QuadrotorTrack"])
def test_pictures_are_observations(task):
    env = make_vec(task, 2, cameras=get_task(task).cameras, camera_size=(48, 64))
    observation, _ = env.reset(seed=[0, 1])
    cameras = env.task.cameras
    assert set(observation) == {"state", *cameras}
    for camera in cameras:
        assert observation[camera].shape == (2, 48, 64, 3)
        assert observation[camera].dtype == np.uint8
        assert observation[camera].std() > 5
    assert not np.array_equal(observation[cameras[0]][0], observation[cameras[0]][1])
    again, _ = env.reset(seed=[0, 1])
    assert all(np.array_equal(observation[key], again[key]) for key in observation)
    env.close()


@pytest.mark.parametrize("cubes", [1, 4])
def test_one_policy_can_be_asked_for_any_tower(cubes):
    """The observation has room for four cubes whatever their number, and the first ones lie alike."""
    env, other = make("Stack", cubes=cubes), make("Stack", cubes=2)
    assert env.observation_space == other.observation_space
    state, known = env.reset(seed=5)[0]["state"], other.reset(seed=5)[0]["state"]
    assert np.array_equal(state[:27], known[:27])
    assert [state[14 + 16 * cube] for cube in range(4)] == [1.0] * cubes + [0.0] * (4 - cubes)


def test_the_drawers_stages_come_in_their_order():
    from dopr_robot.envs import load_expert

    env = make_vec("Drawer", 1)
    expert = load_expert(get_task("Drawer"))(env)
    env.reset(seed=[1])
    first = {}
    for step in range(env.max_steps):
        _, _, terminated, _, info = env.step(expert.act())
        for stage in ("opened", "placed", "closed"):
            if info[stage][0]:
                first.setdefault(stage, step)
        if terminated[0]:
            break
    assert info["success"][0]
    assert first["opened"] < first["placed"] < first["closed"]

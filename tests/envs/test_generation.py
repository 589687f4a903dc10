"""Many demonstrations from few: exact transformation, one episode a seed, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dopr_robot.cli import main
from dopr_robot.collection import demonstrations
from dopr_robot.collection.replay import COLLECTED
from dopr_robot.collection.transformation import Piece, Segment, SegmentExpert, _Plan, cut, poses, straight_way
from dopr_robot.datasets import Attributes, Store
from dopr_robot.datasets.formats import convert
from dopr_robot.envs import make_vec
from dopr_robot.envs.adapters.robosuite import LiftSegments
from dopr_robot.envs.pick_place import PickPlaceSegments

THREE = range(2**16, 2**16 + 3)


@pytest.fixture(scope="module")
def sources():
    return [episode.arrays for episode in demonstrations("PickPlace", THREE, num_envs=3)]


@pytest.fixture(scope="module")
def task():
    return PickPlaceSegments(make_vec("PickPlace", 1))


@pytest.fixture
def few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "PickPlace", "--episodes", "3", "--seed", "1", "--out", "few.zarr"]) == 0
    return tmp_path / "few.zarr"


def test_in_the_sources_own_scene_a_segment_asks_for_what_the_source_asked_for(task, sources):
    """From the first target on, the plan gives the poses that the recorded actions meant, and the recorded openings."""
    for arrays in sources:
        meant = poses(*task.env.arm.forward(arrays["action"][:, :7].astype(np.float64))[:2])
        for piece, steps in zip(cut(task, arrays), task.split(arrays), strict=True):
            assert 0 <= len(meant[steps]) - len(piece.steps) <= 3  # this hand hardly ever rests
            plan = _Plan(task, [piece])
            for target, action in zip(meant[piece.steps], arrays["action"][piece.steps], strict=True):
                asked, opening = plan.follow(target, {piece.segment.object: piece.reference})
                np.testing.assert_allclose(asked, target, atol=1e-12)
                assert opening == action[7]


@pytest.mark.parametrize(("yaw", "turned"), [(10, 10), (100, 10), (-80, 10), (50, -40), (180, 0)])
def test_a_segment_moves_and_turns_with_its_object(yaw, turned):
    """A cube looks the same after a quarter turn, so the hand never turns by more than 45 degrees."""
    rng = np.random.default_rng(0)
    targets = poses(rng.normal(size=(5, 3)), Rotation.random(5, random_state=1).as_matrix())
    source, now = (poses(rng.normal(size=(1, 3)), np.eye(3))[0] for _ in range(2))
    now[:3, :3] = Rotation.from_euler("z", yaw, degrees=True).as_matrix()
    carried = now @ Piece(Segment("cube", symmetry=4), np.arange(5), targets, np.zeros((5, 1)), 0, source).relative(now)
    turn = Rotation.from_euler("z", turned, degrees=True).as_matrix()
    np.testing.assert_allclose(carried[:, :3, 3], now[:3, 3] + (targets[:, :3, 3] - source[:3, 3]) @ turn.T, atol=1e-12)
    np.testing.assert_allclose(carried[:, :3, :3], turn @ targets[:, :3, :3], atol=1e-12)


def test_the_way_to_a_segment_is_straight_and_no_faster_than_allowed():
    start, end = poses(np.array([[0.0, 0, 0], [0.3, 0, 0.1]]), np.eye(3))
    end[:3, :3] = Rotation.from_euler("z", 1.0).as_matrix()
    path = np.concatenate([start[None], straight_way(start, end, 0.02, 0.1), end[None]])
    steps = np.diff(path[:, :3, 3], axis=0)
    np.testing.assert_allclose(steps, np.tile(steps[0], (len(steps), 1)), atol=1e-12)
    assert 0.018 < np.linalg.norm(steps[0]) <= 0.02
    assert len(straight_way(start, start, 0.02, 0.1)) == 0


def test_a_source_that_rests_is_cut_like_one_that_does_not(task, sources):
    steps = np.insert(np.arange(len(sources[0]["action"])), 6, [5] * 40)
    rested = {key: values[steps] for key, values in sources[0].items()}
    for ours, theirs in zip(cut(task, sources[0]), cut(task, rested), strict=True):
        assert np.array_equal(ours.targets, theirs.targets)
        assert np.array_equal(ours.gripper, theirs.gripper)


def test_osc_actions_are_the_way_left_in_the_controllers_units():
    shown = {"robot0_eef_pos": np.array([[0.1, 0.0, 1.0]]), "robot0_eef_quat": np.array([[1.0, 0.0, 0.0, 0.0]])}
    task = LiftSegments(SimpleNamespace(observation=shown))
    target = task.hand(shown)
    target[0, :3, 3] += [0.01, 0.0, -0.2]
    target[0, :3, :3] = Rotation.from_euler("z", 0.1).as_matrix() @ target[0, :3, :3]
    action = task.action(target, np.array([[1.0]]))
    np.testing.assert_allclose(action, [[0.2, 0, -1, 0, 0, 0.2, 1]], atol=1e-12)


def test_an_episode_depends_on_its_seed_alone(sources):
    def make_expert(env):
        return SegmentExpert(env, PickPlaceSegments, sources)

    alone, together = (
        list(demonstrations("PickPlace", range(3), num_envs=n, keep_failures=True, make_expert=make_expert))
        for n in (1, 3)
    )
    for one, other in zip(alone, together, strict=True):
        assert (one.seed, one.success, one.meta) == (other.seed, other.success, other.meta)
        assert all(np.array_equal(one.arrays[key], other.arrays[key]) for key in one.arrays)


def test_the_command_goes_on_where_it_stopped_and_says_where_episodes_come_from(few, capsys):
    words = ["collect", "PickPlace", "--from", "few.zarr"]
    for episodes, out in (("5", "once.zarr"), ("2", "twice.zarr"), ("5", "twice.zarr")):
        assert main([*words, "--episodes", episodes, "--out", out]) == 0
    once, twice = Store.open("once.zarr"), Store.open("twice.zarr")
    assert once.num_episodes == 5 and once.success.tolist() == [1] * 5
    for name in ("seed", "source"):
        assert np.array_equal(once.meta[name], twice.meta[name])
    assert all(np.array_equal(values, twice.read()[key]) for key, values in once.read().items())
    about = once.attributes
    assert about.carried[COLLECTED]["from"]["episodes"] == [0, 1, 2]
    assert "3 demonstrations of few.zarr" in about.source and "segments" in about.provenance[-1]
    capsys.readouterr()
    assert main(["info", "once.zarr", "--check"]) == 0
    assert "differs" not in capsys.readouterr().out  # played again, with the noise


def test_mistakes_are_one_line_and_leave_nothing(few, capsys):
    with Store.create("still.zarr") as still:
        still.append({key: np.repeat(value[:1], 9, axis=0) for key, value in Store.open(few).episode(0).items()})
    with Store.create("bare.zarr") as bare:
        bare.append({"action": np.zeros((9, 8))})
    with Store.create("slow.zarr", Attributes(control_hz=10)) as slow:
        slow.append({"action": np.zeros((9, 8))})
    Path("demo.hdf5").touch()
    before = sorted(path.name for path in few.parent.iterdir())
    collect = ["collect", "PickPlace", "--episodes", "5", "--out"]
    for words, message in (
        (["collect", "Stack", "--episodes", "1", "--out", "a.zarr", "--from", "few.zarr"], "dopr_robot/PickPlace-v0, robosuite/Lift-v0"),
        (["collect", "robosuite/Lift-v0", "--episodes", "1", "--out", "a.zarr", "--from", "few.zarr"], "of dopr_robot/PickPlace-v0, not"),
        ([*collect, "a.zarr", "--from", "bare.zarr"], "bare.zarr has no state [29]"),
        ([*collect, "a.zarr", "--from", "slow.zarr"], "dopr edit --rate 20"),
        ([*collect, "a.zarr", "--from", "demo.hdf5"], "dopr convert demo.hdf5"),
        ([*collect, "a.zarr", "--from", "nowhere.zarr"], "nowhere.zarr"),
        ([*collect, "a.zarr", "--from", "still.zarr"], "source demonstration 0: the cube is never lifted"),
        ([*collect, "few.zarr", "--from", "few.zarr"], "was collected from the task's expert"),
    ):  # fmt: skip
        capsys.readouterr()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
        assert sorted(path.name for path in few.parent.iterdir()) == before


@pytest.mark.sim
def test_more_from_the_human_demonstrations_of_lift(human_lift, tmp_path):
    convert(human_lift, tmp_path / "human.zarr")
    words = ["collect", "robosuite/Lift-v0", "--from", str(tmp_path / "human.zarr"), "--out", str(tmp_path / "s.zarr")]
    assert main([*words, "--episodes", "3"]) == 0
    store = Store.open(tmp_path / "s.zarr")
    assert store.success.tolist() == [1] * 3 and set(store.meta["source"]) <= {0, 1, 2}
    assert store.seeds.max() < 10, "most succeed"
    assert store.attributes.carried[COLLECTED]["from"]["episodes"] == [0, 1, 2]
    assert any("rebuilt from the recorded states" in line for line in store.attributes.provenance)
    for index in range(3):
        episode = store.episode(index)
        assert np.linalg.norm(episode["robot0_eef_pos"][-1] - episode["object"][-1, :3]) < 0.04, "it is in the gripper"

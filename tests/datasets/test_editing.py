"""dopr edit: a new store from old ones, the old ones untouched."""

import numpy as np
import pytest

from dopr_robot.cli import main
from dopr_robot.datasets import ActionAttributes, Attributes, Recording, Store, check, read_store
from dopr_robot.datasets.editing import resample
from dopr_robot.envs import get_task
from dopr_robot.errors import UserError

ABOUT = Attributes(control_hz=20, observations=("state",), action=ActionAttributes("joint position", absolute=True))


def make(path, lengths=(5, 8, 3, 6), about=ABOUT, first_seed=0, **extra):
    with Store.create(path, about) as store:
        for index, length in enumerate(lengths):
            rng = np.random.default_rng(first_seed + index)
            arrays = {
                "state": rng.normal(size=(length, 3)),
                "img": rng.integers(0, 256, (length, 4, 4, 3)).astype(np.float32),
                "action": rng.normal(size=(length, 2)),
            }
            store.append(arrays | extra, seed=first_seed + index, success=index != 2, meta={"name": f"take {index}"})
    return str(path)


@pytest.fixture
def edit(tmp_path, capsys):
    """Runs the command and opens what it wrote; checks that the sources stayed as they were."""

    def run(*arguments, out="out.zarr"):
        sources = [tmp_path / word for word in arguments if word.endswith(".zarr") and (tmp_path / word).exists()]
        before = {file: file.read_bytes() for source in sources for file in source.rglob("*") if file.is_file()}
        words = [str(tmp_path / word) if (tmp_path / word) in sources else word for word in arguments]
        code = main(["edit", *words[: len(sources)], str(tmp_path / out), *words[len(sources) :]])
        assert {
            file: file.read_bytes()
            for source in sources
            for file in source.rglob("*")
            if file.is_file() and file.name != ".lock"
        } == {file: content for file, content in before.items() if file.name != ".lock"}
        said = capsys.readouterr()
        if code:
            assert said.err.count("\n") == 1 and not (tmp_path / out).exists()
            return code, said.err
        return Store.open(tmp_path / out) if (tmp_path / out).exists() else said.out

    return run


def test_filters_and_merge(tmp_path, edit):
    make(tmp_path / "a.zarr"), make(tmp_path / "b.zarr", (4, 9), first_seed=10)
    out = edit("a.zarr", "b.zarr", "--success", "--length", "4:9")
    assert out.seeds.tolist() == [0, 1, 3, 10]
    assert out.meta["name"].tolist() == ["take 0", "take 1", "take 3", "take 0"]
    a, b = Store.open(tmp_path / "a.zarr"), Store.open(tmp_path / "b.zarr")
    for mine, theirs in zip(range(4), [a.episode(0), a.episode(1), a.episode(3), b.episode(0)], strict=True):
        for key, value in theirs.items():
            np.testing.assert_array_equal(out.episode(mine)[key], value)
    assert (
        "merged: " in out.attributes.provenance[0] and out.attributes.provenance[1] == "successful episodes; length 4:9"
    )
    assert check(out.path).damage == []


def test_subsets_of_one_seed_are_nested_and_a_split_is_a_partition(tmp_path, edit):
    make(tmp_path / "a.zarr", (3,) * 12)
    small, large = (
        set(edit("a.zarr", "--subset", n, "--seed", "7", out=f"{n}.zarr").seeds.tolist()) for n in ("3", "8")
    )
    assert len(small) == 3 and small < large
    edit("a.zarr", "--split", "0.25")
    train, held_out = (Store.open(tmp_path / f"out-{name}.zarr").seeds.tolist() for name in ("train", "validation"))
    assert len(held_out) == 3 and sorted(train + held_out) == list(range(12))


def test_keys(tmp_path, edit):
    make(tmp_path / "a.zarr")
    out = edit("a.zarr", "--keep", "state,img", "--rename", "img=image,state=pose", "--uint8", "img")
    assert sorted(out.keys) == ["action", "image", "pose"] and out.attributes.observations == ("pose",)
    assert out.keys["image"].dtype == np.uint8
    old = Store.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(out.read(["image"])["image"], old.read(["img"])["img"])
    assert out.attributes.provenance[1:] == ("renamed img to image; renamed state to pose", "as uint8: image")
    assert sorted(edit("a.zarr", "--drop", "img", out="b.zarr").keys) == ["action", "state"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--length 5", "A:B is expected"),
        ("--length 100:", "no episode is left"),
        ("--subset 9", "--subset 9: there are 4 episodes"),
        ("--keep pose", "no key 'pose' (keys: action, img, state)"),
        ("--rename img", "OLD=NEW is expected"),
        ("--rename img=state", "two keys would be called 'state'"),
        ("--uint8 state", "state is not made of whole numbers from 0 to 255 (episode 0)"),
        ("--rate 0", "--rate 0 has to be above 0"),
        ("--split 1.5", "between 0 and 1"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path, edit, words, said):
    make(tmp_path / "a.zarr")
    code, error = edit("a.zarr", *words.split())
    assert code == 2 and said in error


def test_stores_that_differ_are_not_merged(tmp_path, edit):
    from dataclasses import replace

    make(tmp_path / "a.zarr", (4,))
    make(tmp_path / "b.zarr", (4,), about=replace(ABOUT, action=ActionAttributes("joint position", absolute=False)))
    make(tmp_path / "c.zarr", (4,), force=np.zeros(4))
    make(tmp_path / "d.zarr", (4,), about=replace(ABOUT, control_hz=10))
    assert "action is relative joint position, and absolute joint position in" in edit("a.zarr", "b.zarr")[1]
    assert "'force' is float64[], and absent in" in edit("a.zarr", "c.zarr")[1]
    assert "control_hz is 10.0, and 20.0 in" in edit("a.zarr", "d.zarr")[1]


def test_a_store_that_does_not_say_success_is_not_emptied(tmp_path, edit):
    with Store.create(tmp_path / "a.zarr") as store:
        store.append({"action": np.zeros((3, 1))})
    assert "does not say of any episode whether it succeeded" in edit("a.zarr", "--success")[1]


def resampled(arrays, hz, action, observations=("state",)):
    about = Attributes(control_hz=20, observations=observations, action=action)
    from dopr_robot.datasets import Episode

    (episode,) = resample(Recording(about, [Episode(arrays)]), hz).episodes
    return episode.arrays


def test_half_the_rate_keeps_the_motion():
    t = np.arange(9.0)
    arrays = {
        "state": np.stack([t, t**2], 1),
        "action": np.stack([t + 1, np.sign(t - 3.5)], 1),
        "rewards": t,
        "dones": (t == 8).astype(np.int64),
        "img": np.tile(t[:, None, None, None], (1, 2, 2, 3)).astype(np.uint8),
    }
    out = resampled(arrays, 10, ActionAttributes("joint position", absolute=True))
    np.testing.assert_array_equal(out["state"], arrays["state"][::2])
    np.testing.assert_array_equal(out["img"], arrays["img"][::2])
    # The target in force at the end of each new step; the last new step is cut by the episode's end.
    np.testing.assert_array_equal(out["action"], arrays["action"][[1, 3, 5, 7, 8]])
    assert out["rewards"].tolist() == [1, 5, 9, 13, 8] and out["dones"].tolist() == [0, 0, 0, 0, 1]
    delta = ActionAttributes("joint delta", absolute=False, names=("dx", "gripper"))
    out = resampled(arrays, 10, delta)
    np.testing.assert_allclose(out["action"][:, 0], [3, 7, 11, 15, 9])
    np.testing.assert_array_equal(out["action"][:, 1], arrays["action"][[1, 3, 5, 7, 8], 1])
    speed = ActionAttributes("velocity", absolute=False, units="m/s")
    np.testing.assert_allclose(
        resampled({"action": arrays["action"][:8]}, 10, speed)["action"][:, 0], [1.5, 3.5, 5.5, 7.5]
    )


@pytest.mark.parametrize("hz", [7.0, 15.0, 20.0, 50.0])
def test_any_rate_keeps_sums_and_straight_lines(hz):
    rng = np.random.default_rng(0)
    t = np.arange(30.0)
    arrays = {"state": np.stack([t, 3 - 2 * t], 1), "action": rng.normal(size=(30, 2)), "rewards": rng.normal(size=30)}
    out = resampled(arrays, hz, ActionAttributes("joint delta", absolute=False))
    np.testing.assert_allclose(out["state"][:, 0], np.arange(len(out["state"])) * 20 / hz)
    np.testing.assert_allclose(out["action"].sum(0), arrays["action"].sum(0))
    np.testing.assert_allclose(out["rewards"].sum(), arrays["rewards"].sum())
    if hz == 20:
        np.testing.assert_allclose(out["action"], arrays["action"])


def test_rates_that_cannot_be_are_refused(tmp_path):
    bounded = ActionAttributes("end-effector pose", absolute=False, low=(-1, -1), high=(1, 1))
    with pytest.raises(UserError, match=r"it is 0.8 beyond its bounds \(episode 0\)"):
        resampled({"action": np.full((4, 2), 0.9)}, 10, bounded)
    with pytest.raises(UserError, match="whether actions are absolute is unknown"):
        resampled({"action": np.zeros((4, 2))}, 10, ActionAttributes())
    make(tmp_path / "a.zarr", about=Attributes())
    with pytest.raises(UserError, match="the control rate is unknown"):
        resample(read_store(Store.open(tmp_path / "a.zarr")), 10)


def test_folders_on_the_way_are_made_and_gone_again_after_an_error(tmp_path, capsys):
    source = make(tmp_path / "in.zarr")
    assert main(["edit", source, str(tmp_path / "new" / "deep" / "out.zarr"), "--subset", "2"]) == 0
    assert Store.open(tmp_path / "new" / "deep" / "out.zarr").num_episodes == 2
    assert main(["edit", source, str(tmp_path / "other" / "out.zarr"), "--length", "100:200"]) == 2
    assert not (tmp_path / "other").exists() and "\n" not in capsys.readouterr().err.strip()


def test_success_is_said_by_a_key_a_word_or_a_file(tmp_path, edit, capsys):
    with Store.create(tmp_path / "a.zarr") as store:
        for reached in (None, 2, 0):
            rewards = np.zeros(5) if reached is None else np.eye(5)[reached]
            store.append({"action": np.zeros((5, 1)), "rewards": rewards, "word": np.array(["go"] * 5)})
    code, error = edit("a.zarr", "--success")
    assert (
        code == 2
        and "--success-from KEY" in error
        and "keys: action, rewards, word" in error
        and "--set-success true" in error
    )
    assert edit("a.zarr", "--success-from", "rewards").success.tolist() == [0, 1, 1]
    out = edit("a.zarr", "--success-from", "rewards", "--success", out="b.zarr")
    assert out.num_episodes == 2 and out.success.tolist() == [1, 1]
    assert out.attributes.provenance[-1] == "success: rewards above 0 at any step; successful episodes"
    assert edit("a.zarr", "--set-success", "false", out="c.zarr").success.tolist() == [0, 0, 0]
    words = tmp_path / "words.txt"
    words.write_text("true\nfalse\n1\n")
    assert edit("a.zarr", "--set-success", str(words), "--success", out="d.zarr").num_episodes == 2
    for wrong, said in {
        "--success-from reward": "has action, rewards, word",
        "--success-from word": "numbers or flags are expected",
        "--set-success maybe": "true, false or a text file of them is expected",
        f"--set-success {tmp_path / 'two'}": "has 2 words for 3 episodes",
        f"--set-success {tmp_path / 'odd'}": "holds 'perhaps'",
    }.items():
        (tmp_path / "two").write_text("true false")
        (tmp_path / "odd").write_text("true perhaps 0")
        code, error = edit("a.zarr", *wrong.split(), out="e.zarr")
        assert code == 2 and said in error


def test_task_and_rate_are_said(tmp_path, edit):
    with Store.create(tmp_path / "a.zarr") as store:
        for _ in range(2):
            store.append({"action": np.zeros((8, 28), np.float32), "observation": np.zeros((8, 39), np.float32)})
    code, error = edit("a.zarr", "--task", "AdroitHandDoor-v1", "--hz", "20")
    assert code == 2 and "runs at" in error
    hz = get_task("AdroitHandDoor-v1").control_hz
    out = edit("a.zarr", "--hz", str(hz / 2), "--absolute", "--rate", str(hz), "--task", "AdroitHandDoor-v1")
    assert out.attributes.control_hz == hz and out.attributes.task == "AdroitHandDoor-v1"
    assert out.attributes.observations == ("state",) and out.episode_lengths.tolist() == [15, 15]
    make(tmp_path / "b.zarr", about=Attributes(task="dopr_robot/PickPlace-v0"))
    assert edit("b.zarr", "--task", "none", out="c.zarr").attributes.task is None

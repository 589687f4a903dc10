"""A store meets its task before training: what could not be evaluated is refused, what is no picture is numbers."""

import numpy as np
import pytest

from dopr_robot.datasets import Attributes, Store
from dopr_robot.envs import get_task
from dopr_robot.errors import UserError
from dopr_robot.training import load_data, train


def write(path, task, **keys):
    """Two episodes of 20 steps; an observation has a shape, or is one step."""
    rng = np.random.default_rng(0)
    about = Attributes(task=task, observations=tuple(key for key in keys if key != "action"))
    with Store.create(path, about) as made:
        for _ in range(4):
            made.append(
                {
                    key: rng.normal(size=(20, *shape)).astype(np.float32)
                    if isinstance(shape, tuple)
                    else np.array([shape] * 20)
                    for key, shape in keys.items()
                }
            )
    return path


@pytest.mark.parametrize(
    ("task", "keys", "said"),
    [
        (
            "AdroitHandDoor-v1",
            {"observation": (39,), "action": (28,)},
            "--rename observation=state (it gives state [39])",
        ),
        (
            "PickPlace",
            {"state": (29,), "force": (3,), "action": (8,)},
            "data.observations=[state] (it gives state [29])",
        ),
        ("PickPlace", {"pose": (7,), "force": (3,), "action": (8,)}, "--rename KEY=NAME, or --task none"),
        (
            "robosuite/Lift-v0",
            {"object": (10,), "robot0_joint_pos": (7,), "action": (7,)},
            "data.observations=[object]",
        ),
    ],
)
def test_observations_that_a_task_does_not_give_are_refused_with_the_mend(tmp_path, config, task, keys, said):
    store = write(tmp_path / "s.zarr", get_task(task).id, **keys)
    with pytest.raises(UserError, match="could not be evaluated") as caught:
        load_data(config(store))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        (None, {"observation": (39,), "action": (28,)}),
        ("not/here-v0", {"observation": (39,), "action": (28,)}),
        ("dopr_robot/PickPlace-v0", {"state": (29,), "wrist": (4, 4, 3), "action": (8,)}),
    ],
)
def test_what_a_task_may_give_and_what_is_not_known_pass(tmp_path, config, task, keys):
    if "wrist" in keys:
        keys = {**keys, "wrist": np.zeros((8, 8, 3), np.uint8)}
    spec = load_data(config(write(tmp_path / "s.zarr", task, **keys))).spec
    assert set(spec.observations) == set(keys) - {"action"}


def test_flags_of_any_dtype_are_trained_on_and_text_is_named(tmp_path, config):
    for dtype in (np.uint8, np.bool_, np.int64):
        name = np.dtype(dtype).name
        store = write(tmp_path / f"{name}.zarr", None, state=(3,), gripper=np.ones(1, dtype), action=(2,))
        data = load_data(config(store))
        assert set(data.statistics) == {"state", "gripper", "action"}
        assert data.spec.observations["gripper"].shape == (1,)
        train(
            config(store, "training.steps=2", "training.checkpoint_every=2", "training.batch_size=8"), tmp_path / name
        )
    store = write(tmp_path / "text.zarr", None, state=(3,), gripper="open", action=(2,))
    with pytest.raises(UserError, match=r"in 'gripper', .* numbers: data.observations=\[state\]"):
        load_data(config(store))

"""Names that have moved are found under the old one, with a warning at the line that used it."""

import importlib
import warnings

import pytest

MOVED = {
    "dopr_robot.envs.Demonstration": "dopr_robot.collection.Demonstration",
    "dopr_robot.envs.demonstrations": "dopr_robot.collection.demonstrations",
    "dopr_robot.envs.measure_expert": "dopr_robot.collection.measure_expert",
    "dopr_robot.evaluation.seeds": "dopr_robot.seeds",
}


@pytest.mark.parametrize("old", MOVED)
def test_the_old_name_gives_the_new_ones_object_and_says_so_where_it_is_used(old):
    room, _, name = old.rpartition(".")
    _, _, new_name = MOVED[old].rpartition(".")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(importlib.import_module(room), name)
    (warning,) = caught
    assert warning.category is DeprecationWarning and warning.filename == __file__
    assert str(warning.message) == f"{old} is now {MOVED[old]}; the old name goes with 0.3"
    assert found.__name__.endswith(new_name)


def test_an_old_name_that_ours_uses_fails_any_test():
    """What ``filterwarnings`` of pyproject.toml says, tried: the warning is an error where the line that caused it is ours."""
    ours = compile("import dopr_robot.envs\ndopr_robot.envs.demonstrations", "ours.py", "exec")
    with pytest.raises(DeprecationWarning, match=r"envs\.demonstrations is now"):
        exec(ours, {"__name__": "dopr_robot.somewhere"})


@pytest.mark.parametrize("room", ["envs", "evaluation"])
def test_an_unknown_name_is_an_attribute_error(room):
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        getattr(importlib.import_module(f"dopr_robot.{room}"), "nonsense")  # noqa: B009

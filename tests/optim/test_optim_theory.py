"""The method's claims, by the scripts of benchmarks/ that also plot them."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_coordinate_systems_stay_one_function_under_dopr_sgd_and_part_under_sgd(tmp_path):
    module = script("theory_affine_invariance")
    results = module.run(steps=60)
    assert max(results["DoPr-SGD"]["distance"]) < 1e-5
    assert max(results["SGD"]["distance"]) > 0.1
    assert results["DoPr-SGD"]["loss"][-1] < 0.1 * results["DoPr-SGD"]["loss"][0]  # it is not standing still
    module.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_feature_subspace_contracts_whatever_the_condition_number_under_dopr_sgd_only(tmp_path):
    module = script("theory_feature_learning")
    results = module.run(steps=30)
    dopr, sgd = results["DoPr-SGD"], results["SGD"]
    assert all(dopr[number][-1] < 1e-3 for number in (1.0, 1e2, 1e4))
    rates = [(dopr[number][-1] / dopr[number][10]) ** (1 / 19) for number in (1.0, 1e2, 1e4)]
    assert max(rates) < 0.8
    assert sgd[1.0][-1] < 1e-2
    assert sgd[1e2][-1] > 0.5
    assert sgd[1e4][-1] > 0.8
    module.plot(results, tmp_path / "plot.png")


@pytest.mark.parametrize("seed", [0, 1])
def test_validation_loss_prefers_the_policy_that_rolls_out_worse(seed, tmp_path):
    module = script("theory_test_time_feedback")
    results = module.run(seed=seed)
    dopr, sgd = results["DoPr-SGD"], results["SGD"]
    assert sgd["validation_loss"] < 0.1 * dopr["validation_loss"]
    assert dopr["horizon 40"] < 0.01 * sgd["horizon 40"]
    assert dopr["horizon 40"] < 0.1
    assert math.isfinite(sgd["horizon 40"])
    module.plot(results, tmp_path / "plot.png")

"""What holds for the repository as a whole: style, layers, light imports, the doors at the top."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dopr_robot.policies import ArraySpec, PolicySpec, make_policy, save_policy

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imported_by(module: str) -> set[str]:
    """Top-level modules that importing ``module`` brings in, in a fresh interpreter."""
    return {name.split(".")[0] for name in loaded_by(f"import {module}")}


def loaded_by(code: str) -> set[str]:
    """Every module that running ``code`` brings in, in a fresh interpreter."""
    return set(run(sys.executable, "-P", "-c", f"import sys; {code}; print(*sys.modules)").split())


def test_ruff_finds_nothing():
    run(str(BIN / "ruff"), "check", ".")
    run(str(BIN / "ruff"), "format", "--check", ".")


def test_types_hold():
    run(str(BIN / "mypy"))


def test_imports_run_downwards():
    run(str(BIN / "lint-imports"))


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
@pytest.mark.parametrize("door", ["policies", "envs", "datasets", "configs"])
def test_the_doors_at_the_top_lead_into_the_package(door):
    assert (ROOT / door).readlink() == Path("dopr_robot") / door
    assert (ROOT / door).resolve() == ROOT / "dopr_robot" / door


def test_our_doors_shadow_nobody():
    """`datasets` has to be Hugging Face's or nothing, never our folder, whatever directory the tests run in."""
    spec = importlib.util.find_spec("datasets")
    locations = list(spec.submodule_search_locations or []) if spec else []
    assert not any(Path(location).resolve().is_relative_to(ROOT / "dopr_robot") for location in locations)


def test_the_package_itself_loads_nothing_of_weight():
    assert not {"torch", "mujoco", "zarr", "diffusers", "gymnasium"} & imported_by("dopr_robot")


def test_the_optimizer_brings_torch_and_nothing_else_of_weight():
    """And is found by its lazy name."""
    code = (
        "import torch; before = set(sys.modules); import dopr_robot; dopr_robot.DoPr; print(*set(sys.modules) - before)"
    )
    brought = {name.split(".")[0] for name in run(sys.executable, "-P", "-c", f"import sys; {code}").split()}
    assert "dopr_robot" in brought
    assert not {"mujoco", "zarr", "diffusers", "gymnasium", "scipy", "hydra", "matplotlib", "transformers"} & brought


def test_tasks_are_registered_without_a_simulator():
    assert not {"mujoco", "gym_pusht", "pygame", "torch", "scipy"} & imported_by("dopr_robot.envs")


def test_what_comes_late_is_loaded_late(tmp_path):
    """An evaluation begins before what draws and counts is loaded, a checkpoint is read without the compiler, and so on; step by step in
    one interpreter, since each would load torch."""
    spec = PolicySpec({"state": ArraySpec((3,))}, ArraySpec((2,)))
    policy = make_policy({"name": "flow_transformer"}, spec)
    limits = {"min": -np.ones(1), "max": np.ones(1), "mean": np.zeros(1), "std": np.ones(1)}
    policy.fit_normalizer(
        {key: {name: np.repeat(each, n) for name, each in limits.items()} for key, n in (("state", 3), ("action", 2))}
    )
    save_policy(policy, tmp_path)
    steps = {
        "import dopr_robot; dopr_robot.evaluate": "matplotlib scipy.stats torch._dynamo imageio tensorboard h5py",
        f"dopr_robot.load_policy({str(tmp_path)!r})": "torch._dynamo sympy",
        "import dopr_robot.training.loop": "diffusers torch._dynamo",
        "dopr_robot.Results, dopr_robot.Comparison, dopr_robot.Feedback, dopr_robot.StudyResult, dopr_robot.Store": "pandas",
    }
    said = run(sys.executable, "-P", "-c", "import sys; " + "; ".join(f"{step}; print(*sys.modules)" for step in steps))
    for loaded, (step, late) in zip(said.splitlines(), steps.items(), strict=True):
        assert "dopr_robot" in loaded.split() and not set(late.split()) & set(loaded.split()), step


def opens_text_as_the_locale_says(node: ast.AST) -> bool:
    """``open``, ``read_text`` or ``write_text`` of a text without an encoding; another class's ``open`` is none of these."""
    if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in ("read_text", "write_text"):
        return True
    of = getattr(node.func, "value", None)
    of = getattr(getattr(of, "func", of), "id", "")
    given = [getattr(each, "value", None) for each in [*node.args, *(keyword.value for keyword in node.keywords)]]
    binary = any(isinstance(each, str) and "b" in each for each in given)
    return name == "open" and of not in ("Store", "cls", "Image", "av", "os") and not binary


@pytest.mark.parametrize("room", ["dopr_robot", "benchmarks"])
def test_every_text_has_an_encoding(room):
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if opens_text_as_the_locale_says(node)
    ]
    assert not found

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
    brought = imported_by("dopr_robot.optim") - imported_by("torch")
    assert not {"mujoco", "zarr", "diffusers", "gymnasium", "scipy", "hydra", "matplotlib", "transformers"} & brought


def test_tasks_are_registered_without_a_simulator():
    assert not {"mujoco", "gym_pusht", "pygame", "torch", "scipy"} & imported_by("dopr_robot.envs")


def test_an_evaluation_begins_before_what_draws_and_counts_is_loaded():
    late = {"matplotlib", "scipy.stats", "torch._dynamo", "imageio", "tensorboard", "h5py"}
    assert not late & loaded_by("import dopr_robot; dopr_robot.evaluate")


def test_a_checkpoint_is_read_without_the_compiler(tmp_path):
    spec = PolicySpec({"state": ArraySpec((3,))}, ArraySpec((2,)))
    policy = make_policy({"name": "flow_transformer"}, spec)
    limits = {"min": -np.ones(1), "max": np.ones(1), "mean": np.zeros(1), "std": np.ones(1)}
    policy.fit_normalizer(
        {key: {name: np.repeat(each, n) for name, each in limits.items()} for key, n in (("state", 3), ("action", 2))}
    )
    save_policy(policy, tmp_path)
    code = f"from dopr_robot.policies import load_policy; load_policy({str(tmp_path)!r})"
    assert not {"torch._dynamo", "sympy"} & loaded_by(code)


def test_lazy_names_are_found():
    code = (
        "import dopr_robot; print(dopr_robot.DoPr.__name__, dopr_robot.Store.__name__, dopr_robot.load_policy.__name__)"
    )
    assert run(sys.executable, "-P", "-c", code).split() == ["DoPr", "Store", "load_policy"]


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

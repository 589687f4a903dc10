"""What holds for the repository as a whole: style, types, layers, light imports, the doors at the top."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imported_by(module: str) -> set[str]:
    """Top-level modules that importing ``module`` brings in, in a fresh interpreter."""
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(run(sys.executable, "-P", "-c", code).split())


def test_ruff_finds_nothing():
    run(str(BIN / "ruff"), "check", ".")
    run(str(BIN / "ruff"), "format", "--check", ".")


def test_mypy_finds_nothing():
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
    assert not {"mujoco", "gym_pusht", "pygame", "torch"} & imported_by("dopr_robot.envs")


def test_lazy_names_are_found():
    code = (
        "import dopr_robot; print(dopr_robot.DoPr.__name__, dopr_robot.Store.__name__, dopr_robot.load_policy.__name__)"
    )
    assert run(sys.executable, "-P", "-c", code).split() == ["DoPr", "Store", "load_policy"]

"""The distribution dopr-optim: what it would contain runs with torch and nothing else, and shares its states with dopr-robot."""

import ast
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from dopr_robot.optim import make_optimizer

ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    spec = spec_from_file_location("optimizer_project", ROOT / ".ci" / "optimizer.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return script().make_project(tmp_path_factory.mktemp("project"))


def run_alone(project: Path, place: Path, program: str) -> str:
    """Run a program in a Python that sees the standard library, the project, torch and what torch requires."""
    begin = f"import sys; sys.path += [{str(project)!r}, {str(script().only_torch(place / 'only'))!r}]\n"
    command = [sys.executable, "-I", "-S", "-c", begin + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_trains_with_torch_alone_and_its_state_is_taken_up_here(project, tmp_path):
    """Its README's example and the trial of `make build`, in one program; then a state saved there is loaded under dopr_robot's name."""
    example = (project / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    save = f"torch.save((model.state_dict(), optimizer.state_dict()), {str(tmp_path / 'state.pt')!r})\n"
    out = run_alone(project, tmp_path, example + script().TRIAL + save)
    assert "100.0% of the entries" in out
    assert "Muon takes 1 hidden matrices" in out
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = make_optimizer("dopr_muon", model)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert optimizer.preconditioner.step == 1


def test_it_names_nothing_of_ours_and_imports_torch_alone(project):
    allowed = {"torch", "dopr_optim", *sys.stdlib_module_names}
    doors = {
        "lerobot/__init__.py": {"lerobot"},
        "timm.py": {"timm"},
        "library.py": {"pytorch_optimizer"},
    }  # imported by who has these
    files = sorted((project / "dopr_optim").rglob("*.py"))
    assert len(files) == len(list((ROOT / "dopr_robot" / "optim").rglob("*.py")))
    for path in files:
        text = path.read_text()
        assert "dopr_robot" not in text, path
        imported = {
            name.partition(".")[0]
            for node in ast.walk(ast.parse(text))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert imported <= allowed | doors.get(path.relative_to(project / "dopr_optim").as_posix(), set()), path


def test_its_project_is_of_our_version_and_licence(project):
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    theirs = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert (theirs["version"], theirs["license"]) == (ours["version"], ours["license"])
    assert [each.partition(">")[0] for each in theirs["dependencies"]] == ["torch"]
    assert (project / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()

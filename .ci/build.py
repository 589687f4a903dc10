"""Wheel and sdist of dopr-robot and of dopr-optim, each installed alone in an empty environment, and tried there: `make build`.

First without any dependency (what does not need one has to work), then with those of the environment that this is run by on the path:
not installed once more, since torch and the simulators are gigabytes, and the wheel's content is what is in question. The optimizer alone
sees torch and what torch requires, and nothing else.
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from optimizer import TRIAL, make_project, only_torch

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"

BARE = """
import importlib.resources, pathlib, sys
import dopr_robot
assert pathlib.Path(dopr_robot.__file__).is_relative_to(sys.prefix), dopr_robot.__file__
assert dopr_robot.UserError("x") and dopr_robot.Interrupted
files = importlib.resources.files("dopr_robot")
for name in ("py.typed", "configs/train.yaml", "configs/experiment/pick_place.yaml", "evaluation/reports/templates/base.html.j2"):
    assert files.joinpath(name).is_file(), name
"""
OPTIMIZER = """
import torch
from dopr_robot.optim import DoPr
model = torch.nn.Linear(3, 2)
optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model)
model(torch.randn(8, 3)).square().mean().backward()
optimizer.step()
"""
WHOLE = Path(__file__).with_name("trial.py").read_text(encoding="utf-8")


def call(*command: object, cwd: Path) -> None:
    """Run a command. Raises SystemExit, with what it said, where it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:300]}\n{done.stdout}{done.stderr}")


def tried(artefact: Path) -> None:
    """Install one file and try it."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        venv.create(place / "env", with_pip=True)
        scripts = place / "env" / ("Scripts" if sys.platform == "win32" else "bin")
        python, dopr = scripts / "python", scripts / "dopr"
        call(python, "-m", "pip", "install", "-q", "--no-deps", artefact, cwd=place)
        call(python, "-I", "-c", BARE, cwd=place)
        for words in (["--version"], ["--help"]):
            call(dopr, *words, cwd=place)
        libraries = call_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        # Behind its own, and without what an editable install of the checkout would add.
        (Path(libraries) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        for program in (BARE, OPTIMIZER, WHOLE):
            call(python, "-I", "-c", program, cwd=place)
        for words in (["tasks", "PickPlace"], ["policies"], ["train", "pick_place", "--print"], ["info", "--versions"]):
            call(dopr, *words, cwd=place)
    print(f"{artefact.name}: good")


def tried_optimizer(artefact: Path) -> None:
    """Install one file of dopr-optim and try it."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        venv.create(place / "env", with_pip=True)
        python = place / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        call(python, "-m", "pip", "install", "-q", "--no-deps", artefact, cwd=place)
        libraries = call_output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        (Path(libraries) / "torch.pth").write_text(f"{only_torch(place / 'only')}\n", encoding="utf-8")
        call(python, "-I", "-c", TRIAL, cwd=place)
    print(f"{artefact.name}: good")


def call_output(*command: object) -> str:
    """What a command prints."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout.strip()


def built(source: Path, name: str) -> list[Path]:
    """Wheel and sdist of a project, in DIST."""
    for old in DIST.glob(f"{name}-*"):
        old.unlink()
    call(sys.executable, "-m", "build", "-q", "--outdir", DIST, source, cwd=source)
    artefacts = sorted(DIST.glob(f"{name}-*"))
    assert [path.suffix for path in artefacts] == [".whl", ".gz"], artefacts
    return artefacts


def main() -> None:
    """Build all, and try all."""
    with tempfile.TemporaryDirectory() as temporary:
        for artefact in built(make_project(Path(temporary)), "dopr_optim"):
            tried_optimizer(artefact)
    for artefact in built(ROOT, "dopr_robot"):
        tried(artefact)


if __name__ == "__main__":
    main()

"""The optimizer as a distribution of its own, `dopr-optim`: its source project, made from dopr_robot/optim.

It is imported as `dopr_optim`. Not as `dopr_robot.optim`: two distributions can share a package only where neither has an `__init__.py` (a
namespace package), and `dopr_robot` has one, which holds the public interface. So the folder goes out under another name, with
that name wherever it names itself; both can be installed side by side. A state that one saved the other loads, since states hold names
of weights and tensors, and no paths of modules.

    python .ci/optimizer.py DIRECTORY
"""

import re
import shutil
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, NAME = "dopr_robot.optim", "dopr_optim"

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "dopr-optim"
version = "{version}"
description = "Double preconditioning (DoPr) for any torch optimizer"
readme = "README.md"
license = "{license}"
license-files = ["LICENSE"]
requires-python = "{python}"
dependencies = ["{torch}"]

[project.urls]
Paper = "{paper}"

[tool.setuptools.packages.find]
include = ["{name}*"]

[tool.setuptools.package-data]
{name} = ["py.typed"]
"""

TRIAL = """
import sys, torch
from dopr_optim import DoPr, make_optimizer, muon_roles
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
for optimizer in (DoPr(torch.optim.AdamW(model.parameters(), lr=1e-3), model), make_optimizer("dopr_muon", model)):
    model(torch.randn(8, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer.coverage().matrix_share == 1
optimizer.load_state_dict(optimizer.state_dict())
print(muon_roles(model))
ours = {name.partition(".")[0] for name in sys.modules} & {"dopr_robot", "numpy", "mujoco", "zarr", "diffusers", "einops", "yaml"}
assert not ours, ours
"""


def make_project(place: Path) -> Path:
    """Write the source project into ``place``, ready for ``python -m build``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    facts = {
        "version": project["version"],
        "license": project["license"],
        "python": project["requires-python"],
        "torch": next(each for each in project["dependencies"] if each.startswith("torch")),
        "paper": project["urls"]["Paper"],
        "name": NAME,
    }
    source = ROOT / SOURCE.replace(".", "/")
    for path in sorted(source.rglob("*.py")):
        target = place / NAME / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8").replace(SOURCE, NAME), encoding="utf-8")
    (place / NAME / "py.typed").touch()
    (place / "pyproject.toml").write_text(PROJECT.format(**facts), encoding="utf-8")
    shutil.copy(source / "README.md", place)
    shutil.copy(ROOT / "LICENSE", place)
    return place


def only_torch(place: Path) -> Path:
    """A folder with links to the torch of this environment and to what that requires, and to nothing else."""
    place.mkdir(parents=True, exist_ok=True)
    waiting, seen = ["torch"], set()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        for entry in {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (place / entry).exists():
                (place / entry).symlink_to(Path(str(found.locate_file(entry))).resolve())
        waiting += [re.match(r"[\w.-]+", each)[0] for each in found.requires or () if "extra ==" not in each]  # type: ignore[index]
    return place


if __name__ == "__main__":
    make_project(Path(sys.argv[1]))

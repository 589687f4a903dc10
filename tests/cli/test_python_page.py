"""docs/python.md, run from top to bottom as it stands but for sizes."""

import re
from pathlib import Path

import torch

import dopr_robot
from dopr_robot.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SMALLER = {
    r"250, ": "4, ",
    r"steps=3000\)": "steps=3000, batch_size=64, name='readme')",
    r"steps=3000, batch_size=64": 'steps=2, batch_size=16, **{"policy.network.dim": 16, "policy.network.layers": 1}',
    r"evaluate\(run, episodes=100\)": "evaluate(run, episodes=2, video=0)",
    r"episodes=100": "episodes=2",
    r"\(3e-4, 1e-3\)": "(1e-3,)",
    r"runs\[2\]": "runs[1]",
}


def python(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys, undrawn):
    """And, on the run and the store that it leaves, README's and one of docs/policies.md."""
    monkeypatch.chdir(tmp_path)
    blocks = python(PAGE)
    assert len(blocks) == 5
    blocks += [block for block in python((ROOT / "README.md").read_text(encoding="utf-8")) if "dopr.train" in block]
    names: dict = {}
    for block in blocks:
        for large, small in SMALLER.items():
            block = re.sub(large, small, block)
        exec(compile(block, "docs/python.md", "exec"), names)
    (acting,) = [
        block for block in python((ROOT / "docs" / "policies.md").read_text(encoding="utf-8")) if "memory" in block
    ]
    exec(acting, given := {"observation": {"state": torch.zeros(1, 2, 29)}, "generator": torch.Generator()})
    assert given["actions"].shape[:2] == (1, 1)
    said = capsys.readouterr().out
    assert "unknown config key 'stepz': did you mean 'training.steps'?" in said
    assert len(names["table"]) == 2 and names["results"].curve.low.shape == names["curve"].horizon.shape


def test_the_page_names_every_function_and_every_command():
    functions = {name for name in dopr_robot.__all__ if name.islower() and name != "__version__"}
    unnamed = functions - {"load_policy", "make", "make_vec"} - set(re.findall(r"`(\w+)\(", PAGE))
    assert not unnamed
    assert not {name for name in COMMANDS if name not in ("demo", "completion") and f"dopr {name}" not in PAGE}

"""docs/python.md, run from top to bottom as it stands but for sizes."""

import re
from pathlib import Path

import dopr_robot
from dopr_robot.cli import COMMANDS

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
SMALLER = {
    r"250, ": "4, ",
    r"steps=3000, batch_size=64": 'steps=2, batch_size=16, **{"policy.network.dim": 16, "policy.network.layers": 1}',
    r"episodes=100": "episodes=2",
    r"\(3e-4, 1e-3\)": "(1e-3,)",
    r"runs\[2\]": "runs[1]",
}


def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    names: dict = {}
    for block in blocks:
        for large, small in SMALLER.items():
            block = re.sub(large, small, block)
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert "unknown config key 'stepz': did you mean 'training.steps'?" in said
    assert len(names["table"]) == 2 and names["results"].curve.low.shape == names["curve"].horizon.shape


def test_the_page_names_every_function_and_every_command():
    functions = {name for name in dopr_robot.__all__ if name.islower() and name != "__version__"}
    unnamed = functions - {"load_policy", "make", "make_vec"} - set(re.findall(r"`(\w+)\(", PAGE))
    assert not unnamed
    assert not {name for name in COMMANDS if name != "demo" and f"dopr {name}" not in PAGE}

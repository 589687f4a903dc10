"""The tutorial's calls, in their order, as they stand but for sizes."""

import re
import shlex
from pathlib import Path

from dopr_robot.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
SMALLER = {
    r"--episodes 60\b": "--episodes 3",
    r"--episodes 200\b": "--episodes 2 --video 0",
    r"--out mine.mp4": "--out mine.mp4 --episodes 1 --size 64",
    r"steps: 5000\b": "steps: 4",
    r"batch_size: 128\b": "batch_size: 16\n  checkpoint_every: 2\n  rollout_episodes: 2\n  warmup_steps: 1",
    r"(rollout|validate)_every: \d+": r"\1_every: 2",
    r"name: flow_transformer,": "name: flow_transformer, network: {dim: 16, layers: 1, heads: 2},",
    r"(compare .*) --video 0": r"\1",
}


def blocks(kind: str) -> list[str]:
    text = PAGE
    for large, small in SMALLER.items():
        text = re.sub(large, small, text)
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for name, content in fenced if name == kind]


def test_every_call_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (configuration,) = blocks("yaml")
    Path("mine.yaml").write_text(configuration)
    calls = [line for block in blocks("") for line in block.splitlines()]
    assert len(calls) == 13
    for call in calls:
        program, *words = shlex.split(call)
        assert (program, main(words)) == ("dopr", 0), call
    assert Path("comparison/report.html").exists() and Path("mine.html").exists()
    (script,) = blocks("python")
    script = script.replace('"lr": 3e-4}}', '"lr": 3e-4}, "training": {"steps": 2, "batch_size": 16, "device": "cpu"}}')
    exec(compile(script, "docs/tutorial.md", "exec"), {})
    assert Path("runs/mine_too/checkpoints/2").is_dir()

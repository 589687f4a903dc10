"""Every study file in studies/ is one that runs: it parses, its arms resolve, and its stores are made by commands that it says."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from dopr_robot.cli import collect
from dopr_robot.envs import get_task, matching_tasks, names_several
from dopr_robot.settings import read_yaml
from dopr_robot.study import load_study

FILES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def commands(file: Path) -> list[list[str]]:
    """The calls of ``dopr`` in a file's comments."""
    lines = re.findall(r"^#[ ]+dopr (.*?)(?:[ ]+# .*)?$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def collected() -> dict[str, int]:
    """Episodes of every store that the files say how to make."""
    parser = argparse.ArgumentParser()
    collect.add_arguments(parser)
    calls = [parser.parse_args(call[1:]) for file in FILES for call in commands(file) if call[0] == "collect"]
    for call in calls:
        assert names_several(call.task) or get_task(call.task).has_expert
    return {str(call.out): call.episodes for call in calls}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory in which the stores of a pattern's tasks are said to be there."""
    monkeypatch.chdir(tmp_path)
    for file in FILES:
        for entry in read_yaml(file, "study", ["tasks"])["tasks"]:
            for spec in matching_tasks(entry["task"]) if names_several(entry["task"]) else []:
                (tmp_path / entry["store"] / f"{spec.name}.zarr").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_file_parses_and_its_arms_resolve(file, folder):
    study = load_study(file)
    arms = [*study.arms(), *study.final_arms({arm.choice: arm.candidate for arm in study.arms()})]
    assert len({arm.name for arm in arms}) == len(set(map(str, (arm.key for arm in arms))))
    methods = {(arm.key["policy"], arm.key["optimizer"]): arm for arm in arms}
    for arm in [*methods.values(), *{arm.entry.label: arm for arm in arms}.values()]:
        assert arm.config.training.steps == study.steps(arm.budget) and arm.config.data.store == arm.entry.store


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_file_says_how_it_is_run_and_how_its_stores_are_made(file, folder):
    assert ["compare", f"studies/{file.name}", "--out", f"studies/{file.stem}"] in commands(file)
    made, text = collected(), file.read_text(encoding="utf-8")
    for entry in load_study(file).entries():
        episodes = made.get(str(Path(entry.store)), made.get(str(Path(entry.store).parent)))
        if episodes is None:  # not ours to make: the text says whose it is
            assert re.search(rf"^#.*{re.escape(Path(entry.store).name)}", text, re.MULTILINE)
        assert entry.episodes is None or entry.episodes <= (episodes or 0)

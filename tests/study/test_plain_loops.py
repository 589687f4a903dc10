"""The two studies outside robotics, in small: the same rules for every arm, and a stopped one goes on."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(autouse=True, scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDIES))
        yield
    for name in ("loop", "images", "language"):
        sys.modules.pop(name, None)
    problem.cache_clear()


@cache
def problem(name):
    """One of each: pictures are judged by a classifier, which takes seconds to train."""
    module = importlib.import_module(name)
    return module.Digits() if name == "images" else module.Sums()


@pytest.mark.parametrize("name", ["images", "language"])
def test_arms_are_matched_and_a_stopped_study_goes_on(name, tmp_path, monkeypatch):
    loop, of = importlib.import_module("loop"), problem(name)
    small = {"images": ("SAMPLES", 100), "language": ("ASKED", 20)}[name]
    monkeypatch.setattr(importlib.import_module(name), *small)
    monkeypatch.setattr(importlib.import_module(name), "BATCH", 16)
    monkeypatch.setattr(loop, "RATES", (1e-3, 1e-2))
    monkeypatch.setattr(of, "points", of.points[:2])
    chosen = loop.run(of, tmp_path, arms=["adamw", "dopr_adamw"], seeds=2, steps=3)
    assert [(each["arm"], each["seed"]) for each in chosen] == [
        (arm, seed) for arm in ("adamw", "dopr_adamw") for seed in (0, 1)
    ]
    lines = (tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8 and all(np.isfinite(json.loads(line)["test"]).all() for line in lines)
    assert "| dopr_adamw |" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    (tmp_path / "records.jsonl").write_text("\n".join(lines[:5]) + "\n", encoding="utf-8")
    assert [each["test"] for each in loop.run(of, tmp_path, arms=["adamw", "dopr_adamw"], seeds=2, steps=3)] == [
        each["test"] for each in chosen
    ]
    assert len((tmp_path / "records.jsonl").read_text(encoding="utf-8").splitlines()) == 8


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("images", {1e-3: [20.0, 0.3], 3e-3: [18.0, 0.4], 1e-2: [np.inf, 0.1], 3e-2: [np.nan, 0.1]}),
        ("language", {1e-3: [0.9, 0.6], 3e-3: [1.0, 0.4], 1e-2: [0.2, 0.1], 3e-2: [np.nan, 1.0]}),
    ],
)
def test_the_rate_is_that_of_the_best_figures_and_a_large_distance_does_not_outweigh_the_others(
    name, figures, tmp_path, monkeypatch
):
    loop, of = importlib.import_module("loop"), problem(name)

    def train(of, arm, rate, seed, steps):
        told = {"arm": arm, "rate": rate, "seed": seed, "steps": steps, "selection": figures[rate], "test": [0.5, 0.5]}
        return told | {"validation_loss": 1.0, "cpu_seconds_per_step": 0.1}

    monkeypatch.setattr(loop, "RATES", tuple(figures))
    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(of, "points", of.points[:2])
    assert {each["rate"] for each in loop.run(of, tmp_path, arms=["adamw"], seeds=2, steps=1)} == {1e-3}


def test_sums_are_sums():
    language = importlib.import_module("language")
    digits = torch.tensor([1, 3, 6, 2])
    tokens, asked = language.sums(digits, torch.Generator().manual_seed(0))
    for row, n in enumerate(digits.tolist()):
        text = "".join("0123456789+= "[token] for token in tokens[row].tolist()).strip()
        a, rest = text.split("+")
        b, c = rest.split("=")
        assert (len(a), len(b), len(c)) == (n, n, n + 1)
        assert int(a) + int(b) == int(c[::-1])
        assert "".join(str(token) for token in tokens[row][asked[row]].tolist()) == c


def test_the_distance_of_a_sample_from_itself_is_nought():
    of = problem("images")
    assert of._distance(of.held_out) == pytest.approx(0, abs=1e-6)
    assert of._distance(of.train) < 5 < of._distance(torch.zeros_like(of.held_out))

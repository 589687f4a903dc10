"""The tables of the README and of the pages on evidence are what the committed studies say."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evidence():
    spec = importlib.util.spec_from_file_location("evidence_tables", ROOT / ".ci" / "evidence.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_the_studies(evidence):
    for page in evidence.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- table\n" in text and evidence.filled(text) == text, "write it anew: python -P .ci/evidence.py"


@pytest.fixture
def study(evidence, tmp_path, monkeypatch):
    """A study of two tasks, one of two policies, with a longer and a shorter horizon."""
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    rows = []
    for task, policy, optimizer, success, difference in [
        ("Stack", "flow_mlp dim=8", "adamw", 0.5, None),
        ("Stack", "flow_mlp dim=8", "dopr_adamw", 0.25, (-0.25, -0.4, -0.1)),
        ("Stack", "regression_mlp", "adamw", 0.125, None),
        ("Drawer", "flow_mlp dim=8", "adamw", 1.0, None),
        ("Drawer", "flow_mlp dim=8", "dopr_adamw", 0.975, (-0.025, -0.2, 0.1)),
    ]:
        base = dict(zip(("difference", "difference_low", "difference_high"), difference or ("", "", ""), strict=True))
        row = {"task": task, "policy": policy, "optimizer": optimizer, "horizon": 200, "success": success}
        row |= {"success_low": success - 0.1, "success_high": success, "learning_rate": 0.003, "return": "", **base}
        row |= {"hyperparameters": "weight_decay=0.1"}
        rows += [row | {"horizon": 50, "success": 0.75}, row]
    folder = tmp_path / "studies" / "some"
    folder.mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summed = {"optimizer": "adamw", "mean": 0.75, "mean_tasks_ci95": [0.6, 0.9], "reference": None}
    compared = {"difference": -0.1375, "ci95": [-0.3, 0.2], "wins": 0, "ties": 1, "losses": 1, "reference": "adamw"}
    compared |= {
        "optimizer": "dopr_adamw",
        "mean": 0.6125,
        "mean_tasks_ci95": [0.5, 0.7],
        "permutation_p_holm": 0.00021,
    }
    (folder / "over_tasks.json").write_text(json.dumps([summed, compared]))
    return folder


def test_a_row_a_task_of_the_longest_horizon(evidence, study):
    about = """  <!-- table
  columns: {base: adamw, ours: [no_such, dopr_adamw]}
  rows:
    Stack: some/Stack@flow
    Stack, MLP: some/Stack@regression
    Drawer: some/Drawer
    all: some
    mean: [some/Stack@flow, some/Drawer]
    pattern: some/*@flow
  -->
"""
    made = evidence.filled(about + "  | an old | table |\n\ntext\n")
    assert made == (
        about
        + "  | | base | ours |\n  | --- | --- | --- |\n"
        + "  | Stack | 50.0 | 25.0, **-25.0** (-40.0 to -10.0) |\n"
        + "  | Stack, MLP | 12.5 | |\n"
        + "  | Drawer | 100 | 97.5, -2.5 (-20.0 to +10.0) |\n"
        + "  | all | 75.0 | 61.3, -13.8 (-30.0 to +20.0) |\n"
        + "  | mean | 75.0 | 61.3 |\n  | pattern | 75.0 | 61.3 |\n\ntext\n"
    )
    assert evidence.filled(made) == made


def test_cells_may_have_intervals_and_rates(evidence, study):
    made = evidence.settings({"ours": "dopr_adamw"}, {"Stack": "some/Stack@flow"}, ["interval", "rate"], digits=0)
    assert made[-1] == ["Stack", "25 (15 to 25), 0.003"]


def test_a_row_an_optimizer_over_the_tasks(evidence, study):
    heads, _, base, ours = evidence.over_tasks("some", {"AdamW": "adamw", "DoPr": "dopr_adamw"})
    assert heads[2] == "against AdamW"
    assert base == ["AdamW", "75.0 (60.0 to 90.0)", "", "", "", "0.003, weight_decay=0.1"]
    assert ours[1:5] == ["61.3 (50.0 to 70.0)", "-13.8 (-30.0 to +20.0)", "0, 1, 1 (-25)", "0.0002"]


def test_a_task_that_is_not_there_is_an_error(evidence, study):
    with pytest.raises(ValueError, match=r"studies/some/table\.csv has no Peg"):
        evidence.settings({"base": "adamw"}, {"Peg": "some/Peg"})

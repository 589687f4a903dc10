"""The notebooks run from top to bottom, at small sizes, and are committed as they ran at their own."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
SMALLER = {
    "train_and_evaluate": {r"= 40, 600, 50": "= 3, 4, 2", r"\[125, 250, 375, 500\]": "[5, 10]"},
    "own_data": {r"= 60, 400": "= 4, 4"},
    "optimizer_alone": {r"STEPS = 300": "STEPS = 4"},
}
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_none_is_forgotten():
    assert sorted(SMALLER) == NAMES


def test_they_run(tmp_path, monkeypatch):
    """One after another in one kernel, which loads torch once, each with none of the names of the one before."""
    monkeypatch.delenv("MPLBACKEND", raising=False)  # figures are shown
    cells, own = [], {}
    for name in NAMES:
        own[name] = [cell for cell in read(name).cells if cell.cell_type == "code"]
        for cell in own[name]:
            for large, small in SMALLER[name].items():
                cell.source = re.sub(large, small, cell.source)
        cells += [*own[name], nbformat.v4.new_code_cell("%reset -f")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    for name, executed in own.items():
        shown = [output for cell in executed for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) for output in shown), name


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_it_ran(name):
    """In one go, with nothing of the machine that it ran on."""
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not re.search(r"/tmp/|/home/|site-packages|Warning", str([cell.outputs for cell in cells]))

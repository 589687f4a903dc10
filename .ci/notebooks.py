"""Run the notebooks of docs/notebooks anew and keep what they show: ``python -P .ci/notebooks.py [NAME ...]``."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


def main(names: list[str]) -> None:
    """Each in an empty folder; a cell that fails ends it."""
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, which a package of ours loads
    for path in [FOLDER / f"{name}.ipynb" for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(
                notebook, timeout=3600, record_timing=False, resources={"metadata": {"path": folder}}
            ).execute()
        for cell in notebook.cells:
            cell.metadata.clear()
        path.write_text(nbformat.writes(notebook).replace(f"{folder}/", "") + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A notebook that is executed: progress below the cells, objects as HTML, figures as pictures, and a stop with the state saved."""

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

CELLS = [
    'import dopr_robot as dopr\ndopr.collect("CartPoleSwingUp", 3, "s.zarr");',
    'small = {"policy.network": {"dim": 16, "layers": 1, "heads": 2}}\n'
    'run = dopr.train(store="s.zarr", name="a", steps=4, batch_size=16, checkpoint_every=2, **small)\nrun',
    "results = dopr.evaluate(run, episodes=2, horizons=[20, 40], video=0)\nresults",
    "results.plot()",
    # What Jupyter's stop button does: SIGINT to the kernel. `last` stays from the first checkpoint on; those with a number come and go.
    "import os, signal, threading, time\nfrom pathlib import Path\n"
    "def stop():\n"
    '    while not Path("runs/b/checkpoints/last").exists():\n        time.sleep(0.05)\n'
    "    os.kill(os.getpid(), signal.SIGINT)\n"
    "threading.Thread(target=stop, daemon=True).start()\n"
    'dopr.train(store="s.zarr", name="b", steps=100_000, batch_size=16, checkpoint_every=2, **small)',
    'b = dopr.Run("runs/b")\nlast = b.checkpoints.steps()[-1]\n'
    'b = dopr.train(resume=b, force=True, steps=last + 2)\nb.checkpoints.steps()[-1] - last',
    'dopr.train(store="s.zarr", stepz=3)',
]  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Of each cell, its outputs."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(notebook, timeout=600, allow_errors=True, resources={"metadata": {"path": folder}})
    client.execute()
    return [cell.outputs for cell in notebook.cells]


def shown(cell, kind: str) -> list[str]:
    return [output.data[kind] for output in cell if kind in output.get("data", {})]


def test_progress_is_one_bar_below_the_cell_that_ends_full(outputs):
    for cell, said in zip(outputs[:3], ("3/3 episodes", "4/4 steps", "2/2 episodes"), strict=True):
        bars = [html for html in shown(cell, "text/html") if "<progress" in html]
        assert len(bars) == 1 and said in bars[0]


def test_runs_and_results_are_shown_as_tables_and_figures_as_pictures(outputs):
    (run,) = [html for html in shown(outputs[1], "text/html") if "<table" in html]
    assert "flow_transformer" in run and "dopr_adamw" in run
    (results,) = [html for html in shown(outputs[2], "text/html") if "<table" in html]
    assert "95 % interval" in results and "data:image/png" in results
    assert len(shown(outputs[3], "image/png")) == 1


def test_a_stop_leaves_a_run_that_goes_on(outputs):
    (stopped,) = [output for output in outputs[4] if output.output_type == "error"]
    assert stopped.ename == "Interrupted" and "SIGINT" in stopped.evalue
    assert not [output for output in outputs[5] if output.output_type == "error"]
    assert shown(outputs[5], "text/plain")[-1] == "2"


def test_a_mistake_is_told_as_the_command_tells_it(outputs):
    (mistake,) = [output for output in outputs[6] if output.output_type == "error"]
    assert mistake.ename == "UnknownNameError" and "did you mean 'training.steps'" in mistake.evalue

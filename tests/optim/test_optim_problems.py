"""The suite of silent failures: every optimizer of ours solves every problem, and every problem catches what it is there for."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "optimizer_problems.py"
spec = spec_from_file_location("optimizer_problems", SCRIPT)
assert spec is not None and spec.loader is not None
suite = sys.modules["optimizer_problems"] = module_from_spec(spec)
spec.loader.exec_module(suite)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("problem", suite.PROBLEMS, ids=lambda problem: problem.name)
def test_ours_solve_it_and_what_has_the_fault_does_not(problem):
    failed = [name for name, make in suite.contestants(problem) if not problem.passes(make)]
    assert not failed
    assert problem.faults
    missed = [fault for fault, make in problem.faults.items() if problem.passes(make)]
    assert not missed


def test_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--optimizers", "dopr_adamw", "--problems", "decay is by itself"])
    with pytest.raises(SystemExit) as stop:
        suite.main()
    assert not stop.value.code
    out = capsys.readouterr().out
    assert out.splitlines() == ["decay is by itself: 1 of 1", "    catches: decay goes through the averages"]

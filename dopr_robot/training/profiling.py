"""What a step of training spends its time on: ``dopr train --profile``."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.profiler import supported_activities as supported

from dopr_robot.files import replacing
from dopr_robot.progress import tell

FOLDER = "profile"
TABLE, TRACE = "table.txt", "trace.json"
WARM_UP, MEASURED = 3, 10
"""Steps that are left out, since memory is found and kernels are chosen in them, and steps that are measured."""
PARTS = ("batch", "loss", "backward", "optimizer", "average")
ROWS = 15
"""Operations that the table names."""


class Parts:
    """Names the parts of a step for the profiler; does nothing where nothing is profiled."""

    def __init__(self, profiler: profile | None = None) -> None:
        self._profiler = profiler

    def __call__(self, name: str) -> AbstractContextManager[Any]:
        """A context: what happens in it belongs to the part (of :data:`PARTS`)."""
        return nullcontext() if self._profiler is None else record_function(f"step: {name}")

    def next_step(self) -> None:
        if self._profiler is not None:
            self._profiler.step()


@contextmanager
def profiled(folder: Path, steps: int) -> Iterator[Parts]:
    """Measure some of the ``steps`` that follow; write ``profile/table.txt`` and ``profile/trace.json`` (for chrome://tracing or
    ui.perfetto.dev) into the run folder, and say the table.

    Args:
        folder: the run's.
        steps: that are left; where they are few, fewer are left out and measured.
    """
    warm_up = min(WARM_UP, max(steps - 1, 0))
    measured = max(1, min(MEASURED, steps - warm_up))

    def write(profiler: profile) -> None:
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(place / TRACE))
        said = table(profiler, measured)
        with replacing(place / TABLE) as beside:
            beside.write_text(said + "\n", encoding="utf-8")
        for line in [*said.splitlines(), f"{place / TRACE} is the trace: open it at ui.perfetto.dev"]:
            tell(line)

    when = schedule(wait=0, warmup=warm_up, active=measured, repeat=1)
    activities = [each for each in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if each in supported()]
    with profile(activities=activities, schedule=when, on_trace_ready=write) as profiler:
        yield Parts(profiler)


def table(profiler: profile, steps: int) -> str:
    """Milliseconds a step: of every part, and of the operations that take most by themselves."""
    events = profiler.key_averages()
    whole = {each.key: each for each in events}
    parts = {name: whole[f"step: {name}"].cpu_time_total / 1e3 / steps for name in PARTS if f"step: {name}" in whole}
    total = sum(parts.values())
    lines = [f"{'part of a step':<28}{'ms':>9}{'share':>8}"]
    lines += [f"{name:<28}{value:>9.2f}{value / total:>8.1%}" for name, value in parts.items()]
    lines += [f"{'together':<28}{total:>9.2f}", "", f"{'operation, by itself':<28}{'ms':>9}{'share':>8}{'calls':>8}"]
    operations = [each for each in events if not each.key.startswith(("step: ", "ProfilerStep"))]
    for each in sorted(operations, key=lambda each: -each.self_cpu_time_total)[:ROWS]:
        spent = each.self_cpu_time_total / 1e3 / steps
        lines.append(f"{each.key[:27]:<28}{spent:>9.2f}{spent / total:>8.1%}{each.count / steps:>8.0f}")
    return "\n".join(lines)

"""Write the tables of README.md, docs/choosing.md and docs/evidence.md from the tables of committed studies: ``python -P .ci/evidence.py``.

A table's content is said in a comment above it, YAML after ``<!-- table``, of one of two kinds:

- ``columns``: headings with the optimizer's name in a study (several: the first that the row's study has); ``rows``: headings with
  ``STUDY/TASK`` (``STUDY/TASK@POLICY`` where the study has several policies, by their first letters), or ``STUDY`` alone for the mean
  over its tasks, or a pattern of tasks (``STUDY/* half``), or a list of these, whose successes are averaged. ``cells``: what stands
  beside a success, of ``interval``, ``difference`` (from its base, bold where its interval leaves out 0; the default) and ``rate``.
  ``digits``: of a percentage.
- ``over``: a study, and ``rows``: headings with optimizers: what is said over its tasks.

Figures are of the last checkpoint at the longest horizon on test states; of a task whose figure is a return, the return.
"""

import csv
import fnmatch
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "choosing.md", ROOT / "docs" / "evidence.md"]
TABLE = re.compile(r"^(?P<indent> *)<!-- table\n(?P<about>[^>]*)-->\n(?: *\|.*\n)*", re.MULTILINE)
Row = Mapping[str, str]


def filled(text: str) -> str:
    """A page with the figures that the studies have now."""

    def written(found: re.Match[str]) -> str:
        about, indent = found["about"], found["indent"]
        said = yaml.safe_load(about)
        lines = over_tasks(said["over"], said["rows"]) if "over" in said else settings(**said)
        text = "\n".join(f"{indent}| {' | '.join(line)} |" for line in lines)
        return f"{indent}<!-- table\n{about}-->\n" + text.replace("|  ", "| ") + "\n"

    return TABLE.sub(written, text)


def settings(
    columns: Mapping[str, str | list[str]],
    rows: Mapping[str, str | list[str]],
    cells: Sequence[str] = ("difference",),
    digits: int = 1,
) -> list[list[str]]:
    """A row a task, a column an optimizer."""
    lines = [["", *columns], ["---"] * (1 + len(columns))]
    for heading, places in rows.items():
        line = [heading]
        for names in columns.values():
            found = [of(place, listed(names)) for place in matching(listed(places))]
            several = isinstance(places, list) or "*" in places
            line.append(_mean(found, digits) if several else _cell(found[0], cells, digits))
        lines.append(line)
    return lines


def listed(names: str | list[str]) -> list[str]:
    return names if isinstance(names, list) else [names]


def matching(places: list[str]) -> list[str]:
    """The places with patterns of tasks written out."""
    found = []
    for place in places:
        study, _, tasks = place.partition("/")
        pattern, at, policy = tasks.partition("@")
        names = (
            fnmatch.filter(dict.fromkeys(row["task"] for row in table(study)), pattern) if "*" in pattern else [pattern]
        )
        found += [f"{study}/{name}{at}{policy}" for name in names]
    return found


def of(place: str, names: list[str]) -> Row | None:
    """The row of a study's table, in which one of the optimizers is; None where the study has none of them."""
    study, _, rest = place.partition("/")
    task, _, policy = rest.partition("@")
    if task:
        rows = [row for row in table(study) if row["task"] == task and row["policy"].startswith(policy)]
    else:
        rows = [_summed(row, study) for row in summed(study)]
    if not rows:
        raise ValueError(f"studies/{study}/table.csv has no {rest}")
    for name in names:
        if found := [row for row in rows if row["optimizer"] == name]:
            return max(found, key=lambda row: int(row["horizon"]))
    return None


@cache
def table(study: str) -> list[Row]:
    with (ROOT / "studies" / study / "table.csv").open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines) if float(row.get("budget") or 1) == 1]


@cache
def summed(study: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "studies" / study / "over_tasks.json").read_text(encoding="utf-8"))


def _summed(row: Mapping[str, Any], study: str) -> Row:
    """What is said over tasks as a row of a table."""
    low, high = row["mean_tasks_ci95"]
    rate = next(each["learning_rate"] for each in table(study) if each["optimizer"] == row["optimizer"])
    made = {
        "optimizer": row["optimizer"],
        "horizon": "0",
        "success": row["mean"],
        "success_low": low,
        "success_high": high,
    }
    if row["reference"]:
        made |= {"difference": row["difference"], "difference_low": row["ci95"][0], "difference_high": row["ci95"][1]}
    return {name: str(value) for name, value in (made | {"learning_rate": rate}).items()}


def _cell(row: Row | None, cells: Sequence[str], digits: int) -> str:
    if row is None:
        return ""
    figure, prefix, scale = ("return", "return_", 1) if row.get("return") else ("success", "", 100)
    digits = 0 if prefix else digits

    def ends(name: str) -> tuple[float, float]:
        return scale * float(row[f"{name}_low"]), scale * float(row[f"{name}_high"])

    made = _number(scale * float(row[figure]), digits)
    if "interval" in cells:
        made += " ({} to {})".format(*(_number(end, 0) for end in ends(figure)))
    if "difference" in cells and row.get(f"{prefix}difference"):
        made += ", " + _difference(scale * float(row[f"{prefix}difference"]), ends(f"{prefix}difference"), digits)
    return made + (f", {float(row['learning_rate']):g}" if "rate" in cells else "")


def _difference(value: float, ends: tuple[float, float], digits: int) -> str:
    said, low, high = (_number(each, digits, "+") for each in (value, *ends))
    said = f"**{said}**" if ends[0] > 0 or ends[1] < 0 else said
    return f"{said} ({low} to {high})"


def _mean(rows: list[Row | None], digits: int) -> str:
    return "" if None in rows else _number(100 * float(np.mean([float(row["success"]) for row in rows if row])), digits)


def _number(value: float, digits: int, sign: str = "-") -> str:
    value = round(value + math.copysign(1e-9, value), digits) + 0.0  # 32.5 is 33
    return "100" if value == 100 and sign == "-" else f"{value:{sign},.{digits}f}"


def over_tasks(study: str, rows: Mapping[str, str]) -> list[list[str]]:
    """A row an optimizer."""
    found = {row["optimizer"]: row for row in summed(study)}
    called = {name: heading for heading, name in rows.items()}
    bases = {found[name]["reference"] for name in called} - {None}
    against = f"against {called[bases.pop()]}" if len(bases) == 1 else "against its base"
    lines = [["", "success", against, "ahead, level, behind (most)", "exact permutation p, Holm's", "chosen"]]
    lines.append(["---"] * len(lines[0]))
    for name, heading in called.items():
        row, of_tasks = found[name], [each for each in table(study) if each["optimizer"] == name]
        mean, low, high = (_number(100 * each, 1) for each in (row["mean"], *row["mean_tasks_ci95"]))
        compared = _compared(row, of_tasks, called if bases else {}) if row["reference"] else [""] * 3
        chosen = [f"{float(of_tasks[0]['learning_rate']):g}", *of_tasks[0]["hyperparameters"].split()]
        lines.append([heading, f"{mean} ({low} to {high})", *compared, ", ".join(chosen)])
    return lines


def _compared(row: Mapping[str, Any], of_tasks: list[Row], called: Mapping[str, str]) -> list[str]:
    """Three cells: the difference (over which base, where ``called`` says it), tasks, and p."""
    longest: dict[str, Row] = {}
    for each in of_tasks:
        longest[each["task"]] = max(longest.get(each["task"], each), each, key=lambda found: int(found["horizon"]))
    most = 100 * min(float(each["difference"]) for each in longest.values())
    difference = _difference(100 * row["difference"], tuple(100 * end for end in row["ci95"]), 1)
    over = f" over {called[row['reference']]}" if called else ""
    tasks = f"{row['wins']}, {row['ties']}, {row['losses']} ({_number(most, 0)})"
    return [difference + over, tasks, _p(row["permutation_p_holm"])]


def _p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.1 else np.format_float_positional(p, precision=1, fractional=False, trim="-")


def draw_demonstrations(file: Path) -> None:
    """studies/data: success against the number of demonstrations, a panel for each task and kind, with 95 % over seeds and episodes."""
    import matplotlib.pyplot as plt

    numbers = {"PegInsert": (50, 100, 200), "PickPlace": (50, 100, 200), "QuadrotorTrack": (10, 20, 40)}
    arms = {"AdamW": "adamw", "damping=1, the default": "dopr_adamw damping=1.0", "damping=0.1": "dopr_adamw"}
    figure, panels = plt.subplots(2, 3, figsize=(9, 4.8), sharey=True, layout="constrained")
    for line, kind in zip(panels, ("", " clean"), strict=True):
        for axes, (task, counts) in zip(line, numbers.items(), strict=True):
            for place, (heading, name) in enumerate(arms.items()):
                rows = [of(f"data/{task} {variant}{kind}", [name]) for variant in ("half", "once", "twice")]
                ends = [
                    [100 * float(row[key]) for row in rows if row] for key in ("success_low", "success", "success_high")
                ]
                x = np.array(counts) * 1.03 ** (place - 1)  # beside one another
                below, above = (np.abs(np.subtract(ends[1], each)) for each in (ends[0], ends[2]))
                axes.errorbar(x, ends[1], [below, above], marker="o", markersize=4, capsize=2, label=heading)
            axes.set(title=f"{task}, {kind.strip() or 'noisy'}", xscale="log", ylim=(-4, 104))
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
    figure.supxlabel("demonstrations")
    figure.supylabel("success in per cent")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    draw_demonstrations(ROOT / "docs" / "images" / "demonstrations.png")
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")

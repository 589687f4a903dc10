"""Write the figures of docs/gallery.md from the tables of committed studies: ``python -P .ci/gallery.py``."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
FIGURES = re.compile(r"(?<=<!-- figures: )(\w+) -->\n.*?(?=<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The page with the figures that the studies have now."""
    return FIGURES.sub(lambda found: f"{found[1]} -->\n{table(found[1])}\n", text)


def table(policy: str) -> str:
    """A policy's figure at the longest horizon, in Markdown: of every study with it a table, a row a task and a column an optimizer."""
    made = []
    for file in sorted((ROOT / "studies").glob("*/table.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row["policy"].split()[0] == policy]
        rows = [row for row in rows if float(row.get("budget") or 1) == 1]  # after the whole training
        longest: dict[str, int] = {}
        for row in rows:
            longest[row["task"]] = max(int(row["horizon"]), longest.get(row["task"], 0))
        rows = [row for row in rows if int(row["horizon"]) == longest[row["task"]]]
        optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
        for sizes in dict.fromkeys(row["policy"].partition(" ")[2] for row in rows):
            made += ["", f"[{file.parent.name}](../studies/{file.parent.name}), `{sizes}`:", ""]
            made += [f"| | {' | '.join(optimizers)} |", "|---" * (1 + len(optimizers)) + "|"]
            for task, horizon in longest.items():
                cells = {
                    row["optimizer"]: _cell(row)
                    for row in rows
                    if row["task"] == task and row["policy"].endswith(sizes)
                }
                said = f"{task.rsplit('/', 1)[-1].removesuffix('-v0')}, {horizon} steps"
                made.append(f"| {said} | {' | '.join(cells.get(name, '') for name in optimizers)} |")
    return "\n".join([*made, ""])


def _cell(row: dict[str, str]) -> str:
    if row.get("return"):  # the task's figure
        low, figure, high = (f"{float(row[name]):,.0f}" for name in ("return_low", "return", "return_high"))
        return f"{figure} ({low} to {high}), lr {float(row['learning_rate']):g}"
    low, success, high = (f"{100 * float(row[name]):.0f}" for name in ("success_low", "success", "success_high"))
    return f"{success} % ({low} to {high}), lr {float(row['learning_rate']):g}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

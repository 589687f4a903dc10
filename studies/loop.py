"""The rules of studies/images.py and studies/language.py: plain training loops on ``dopr_robot.optim``, matched arm by arm.

Every optimizer has the same rates to choose from, data order, initial weights, schedule, weight decay and average of weights. The rate is
chosen on the first ``SELECT`` training seeds, by the problem's own figure on selection draws; the chosen one is trained on every seed and
tested on other draws. A call that was stopped goes on where it was. What comes out: ``records.jsonl``, a training a line, and from it
``figures.csv``, ``summary.md`` and ``curves.png``.
"""

import argparse
import csv
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dopr_robot.evaluation.statistics import mean_with_interval, sign_flip_p_value
from dopr_robot.optim import make_optimizer
from dopr_robot.policies.products import fast_products

ARMS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "muon": {"name": "muon"},
    "soap": {"name": "soap"},
    "dopr_adamw": {"name": "dopr_adamw", "damping": 1.0},
    "dopr_adamw damping=0.1": {"name": "dopr_adamw", "damping": 0.1},
    "dopr_adamw form=average": {"name": "dopr_adamw", "form": "average", "damping": 1.0},
    "dopr_muon": {"name": "dopr_muon", "damping": 1.0},
}
BASE = {arm: "muon" if arm == "dopr_muon" else "adamw" for arm in ARMS if arm != "adamw"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SELECT, WARMUP, WEIGHT_DECAY = 2, 100, 0.01


class Problem(ABC):
    """What is learned.

    Attributes:
        steps: of training, under a cosine schedule.
        average: decay of the averaged weights, which are what is judged.
        points: where the figure is taken: numbers of digits, of integration steps.
        axis, figure: what points and figure are called.
        larger_is_better: of the figure; a rate is chosen by its mean over the points, a distance by its geometric one: that of
            one integration step is a hundred times that of 64.
    """

    steps: int
    average: float
    points: tuple[int, ...]
    axis: str
    figure: str
    larger_is_better: bool

    @abstractmethod
    def model(self) -> nn.Module:
        """A model with weights from torch's global generator."""

    @abstractmethod
    def loss(self, model: nn.Module, draw: torch.Generator) -> Tensor:
        """Of a batch."""

    @abstractmethod
    def validation(self, model: nn.Module) -> float:
        """The one-step loss on data that were held out."""

    @abstractmethod
    def figures(self, model: nn.Module, seed: int) -> list[float]:
        """The figure at every point, on draws of that seed."""


def train(problem: Problem, arm: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One training's record."""
    torch.manual_seed(seed)
    model = problem.model()
    optimizer = make_optimizer(model=model, lr=rate, weight_decay=WEIGHT_DECAY, **ARMS[arm])
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(problem.average))
    clock = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        loss = problem.loss(model, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged.update_parameters(model)
    seconds = time.process_time() - clock
    judged = averaged.module.eval()
    with torch.no_grad():
        return {
            "arm": arm,
            "rate": rate,
            "seed": seed,
            "steps": steps,
            "validation_loss": problem.validation(judged),
            "selection": problem.figures(judged, 1),
            "test": problem.figures(judged, 2),
            "cpu_seconds_per_step": seconds / steps,
        }


def run(problem: Problem, out: Path, *, arms: Sequence[str], seeds: int, steps: int) -> list[dict[str, Any]]:
    """Train what is missing in ``out``, and write the figures; the records of the chosen rates."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "records.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = {(each["arm"], each["rate"], each["seed"]): each for each in map(json.loads, lines)}

    def record(arm: str, rate: float, seed: int) -> dict[str, Any]:
        if (arm, rate, seed) not in records:
            records[arm, rate, seed] = made = train(problem, arm, rate, seed, steps)
            with file.open("a", encoding="utf-8") as log:
                log.write(json.dumps(made) + "\n")
            print(f"{arm} {rate:g} seed {seed}: {made['validation_loss']:.4f} {np.round(made['test'], 3)}", flush=True)
        return records[arm, rate, seed]

    chosen = []
    for arm in arms:
        tried = {rate: [record(arm, rate, seed) for seed in range(min(SELECT, seeds))] for rate in RATES}
        worth = {rate: _worth(problem, [each["selection"] for each in those]) for rate, those in tried.items()}
        best = max(RATES, key=worth.__getitem__)
        chosen += [record(arm, best, seed) for seed in range(seeds)]
    rows = list(table(problem, chosen, arms))
    with (out / "figures.csv").open("w", encoding="utf-8", newline="") as sheet:
        writer = csv.DictWriter(sheet, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "summary.md").write_text(summary(problem, chosen, rows, arms), encoding="utf-8")
    plot(problem, chosen, arms, out / "curves.png")
    return chosen


def _worth(problem: Problem, figures: Sequence[Sequence[float]]) -> float:
    """Of a rate, the larger the better; figures that are not finite are the worst."""
    worth = float(np.mean(figures) if problem.larger_is_better else -np.log(figures).mean())
    return worth if math.isfinite(worth) else -math.inf


def table(problem: Problem, chosen: Sequence[dict[str, Any]], arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row an arm and point: mean over training seeds, and the paired difference from the arm's base, with 95 % intervals."""
    tests = {arm: np.array([each["test"] for each in chosen if each["arm"] == arm]) for arm in arms}
    for arm, figures in tests.items():
        base = tests.get(BASE.get(arm, ""))
        for column, point in enumerate(problem.points):
            own = mean_with_interval(figures[:, column])
            row = {"arm": arm, "point": point, "mean": own["mean"], **_ends("", own), "against": BASE.get(arm)}
            pair = None if base is None else figures[:, column] - base[:, column]
            between = {"mean": None, "ci95": None} if pair is None else mean_with_interval(pair)
            p = None if pair is None else sign_flip_p_value(pair / max(1.0, float(np.abs(pair).max())))
            yield row | {"difference": between["mean"], **_ends("difference_", between), "p": p}


def _ends(name: str, found: dict[str, Any]) -> dict[str, float | None]:
    low, high = found["ci95"] or (None, None)
    return {f"{name}low": low, f"{name}high": high}


def summary(
    problem: Problem, chosen: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], arms: Sequence[str]
) -> str:
    """The table that is read, in Markdown."""
    seeds = len({each["seed"] for each in chosen})
    better = "larger" if problem.larger_is_better else "smaller"
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    said = [
        f"# {problem.figure} versus {problem.axis}",
        "",
        f"{chosen[0]['steps']} steps, {seeds} training seeds; rates {rates}, chosen on {min(SELECT, seeds)} of them; {better} is better.",
        "Mean over seeds; in brackets the paired difference from the base, with its 95 % interval.",
        "",
        f"| | lr | validation loss | {' | '.join(map(str, problem.points))} | CPU s a step |",
        "|---|---|---|" + "---|" * (len(problem.points) + 1),
    ]
    for arm in arms:
        own = [each for each in chosen if each["arm"] == arm]
        cells = " | ".join(_cell(row) for row in rows if row["arm"] == arm)
        loss, cost = (np.mean([each[key] for each in own]) for key in ("validation_loss", "cpu_seconds_per_step"))
        edge = " (edge)" if own[0]["rate"] in (RATES[0], RATES[-1]) else ""
        said.append(f"| {arm} | {own[0]['rate']:g}{edge} | {loss:.4f} | {cells} | {cost:.3f} |")
    return "\n".join([*said, ""])


def _cell(row: dict[str, Any]) -> str:
    if row["difference_low"] is None:
        return f"{row['mean']:.3g}"
    return (
        f"{row['mean']:.3g} ({row['difference']:+.2g}, {row['difference_low']:+.2g} to {row['difference_high']:+.2g})"
    )


def plot(problem: Problem, chosen: Sequence[dict[str, Any]], arms: Sequence[str], file: Path) -> None:
    """The figure at every point: an arm's mean over training seeds a line, each seed a dot; arms beside one another."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    logarithmic = not problem.larger_is_better
    for place, arm in enumerate(arms):
        figures = np.array([each["test"] for each in chosen if each["arm"] == arm])
        aside = 0.09 * (place - (len(arms) - 1) / 2)
        points = np.array(problem.points, dtype=float)
        points = points * 2**aside if logarithmic else points + aside
        (line,) = axes.plot(points, figures.mean(axis=0), marker="_", markersize=9, linewidth=1, label=arm)
        axes.plot(points, figures.T, ".", color=line.get_color(), alpha=0.6)
    axes.set(xlabel=problem.axis, ylabel=problem.figure, xticks=problem.points)
    if logarithmic:
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(problem.points, [str(point) for point in problem.points], minor=False)
        axes.minorticks_off()
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main(problem: Problem, name: str, args: Sequence[str] | None = None) -> None:
    """The command of a study."""
    parser = argparse.ArgumentParser(description=type(problem).__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / name)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=problem.steps)
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    with fast_products():
        run(problem, options.out, arms=options.arms, seeds=options.seeds, steps=options.steps)
    print((options.out / "summary.md").read_text(encoding="utf-8"))

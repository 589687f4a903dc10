"""The page of all tasks, docs/tasks.md: written from the registry, with a picture of each."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from dopr_robot.envs.loading import load, load_expert
from dopr_robot.envs.making import make, make_vec
from dopr_robot.envs.perturbations import PERTURBATIONS, Perturbations
from dopr_robot.envs.registration import TaskSpec, list_tasks

WIDTH, HEIGHT = 240, 180
PICTURES = "images/tasks"
ALIKE = 20
"""More of an extra's tasks than these are a benchmark of tasks that differ in their scene alone: one table for all."""
HEAD = f"""# Tasks

Written by `dopr tasks --page docs/tasks.md`; do not edit. A task is named by its id, ours also by the bare name (`PickPlace`).
*Attain*: success at horizon h is success reached by control step h. *Sustain*: success at horizon h is no failure up to step h.
Options are keywords of `dopr_robot.envs.make_vec`, and `--option NAME=VALUE` of `dopr collect`.
`cameras=["overview", "wrist"]` puts the pictures of a task's cameras beside the other observations: uint8 `[height, width, 3]`, upright,
under the camera's name, of `camera_size=84` pixels a side, or `(height, width)`; PushT's are of 96, gym-aloha's of 480 x 640 unless told
otherwise. `free` is the view of the package's own viewer. Shadows, reflections and multisampling are left out, which a software renderer
can not afford; gym-aloha keeps them, since its published demonstrations have them.
How often an expert succeeds is measured by `benchmarks/expert_success.py`, on the first seeds of what `dopr collect` draws from (where
nothing else is said) and under the noise that it injects; intervals are Wilson's.

These options perturb what a robot meets, decided by the episode's seed alone. Every task takes them, where its own table does not say
otherwise; those of pictures need `cameras`.

| option | |
|---|---|
{chr(10).join(f"| `{name}` | {what} |" for name, what in PERTURBATIONS.items())}
"""
NOTES = {
    "metaworld": """`reset(seed=...)` draws objects and goal from the space that the package's benchmark MT1 draws its tasks from.
The goal is `state[36:39]`. Demonstrations, runs and records in which it is 0 from the second step on were made while this adapter hid it:
they are of another task, on which most of the experts fail, and are to be made anew.""",
    "robosuite": """What robosuite draws while it builds a model (the size of Lift's cube, 4 to 4.4 cm; the hammer of Transport) is drawn
once, from seed 0; positions vary with the seed.

What the package calls success is lax in places (ARISE-Initiative/robosuite, issue 657): Lift counts a cube whose centre is 4 cm above the
table's top, 2 cm above where it rests; Square a nut around its peg that the hand still holds; Can a can that is still falling into its
quarter of the bin.

The experts' way-points follow from the observation alone. They are measured on seeds that they were not written on
(`python benchmarks/expert_success.py --tasks robosuite/Lift-v0 --first 1000 --seeds 100`), those of
ToolHang from 1400 on, those of Transport from 2000 on. ToolHang's fails where the frame stands and the tool does not stay on its hook.""",
}
"""What has to be known of an extra's tasks."""
GROUPED = {
    "metaworld": """Names for several, which `dopr collect`, `dopr tasks` and studies take, as they take patterns (`'metaworld/*'`): the
groups under which papers report, of Seo et al., "Masked World Models for Visual Control" (2022, arXiv 2206.14244, appendix).""",
}
"""Of an extra's groups, what they are."""


def write_page(path: Path) -> list[str]:
    """Write the page and the pictures that are missing beside it; the tasks that could not be drawn here, and why."""
    folder = path.parent / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for spec in list_tasks():
        file = folder / f"{spec.name}.png"
        if not file.exists():
            try:
                spec.check_installed()
                _save(picture(spec), file)
            except Exception as error:  # whatever a simulator raises; the page is written all the same
                problems.append(f"{spec.id}: {error}")
    path.write_text(page(path.parent), encoding="utf-8")
    return problems


def picture(spec: TaskSpec) -> Any:
    """A frame ``uint8 [H, W, 3]``: a task of ours some steps into its expert's episode, another one at its start."""
    options: dict[str, Any] = {"render_mode": "rgb_array", "width": 2 * WIDTH, "height": 2 * HEIGHT}
    if spec.vector_entry_point is None:
        single = make(spec.id, **options)
        try:
            single.reset(seed=1)
            return single.render()
        finally:
            single.close()
    env = make_vec(spec.id, 1, **options)
    expert = load_expert(spec)(env)
    env.reset(seed=1)
    for _ in range(25):
        env.step(expert.act())
    frames: Any = env.render()
    env.close()
    return frames[0]


def page(docs: Path) -> str:
    """The page's text; it shows the pictures that there are under ``docs``."""
    groups: dict[str, list[TaskSpec]] = {}
    for spec in list_tasks():
        groups.setdefault(_group(spec), []).append(spec)
    parts = [
        HEAD,
        _overview(groups, docs),
        *(_section(title, specs, docs) for title, specs in sorted(groups.items(), key=_order)),
    ]
    return "\n".join(parts)


def _overview(groups: dict[str, list[TaskSpec]], docs: Path) -> str:
    """Pictures that lead to what is said of each task; a benchmark of many alike has its own table of pictures."""
    cells = []
    for _, specs in sorted(groups.items(), key=_order):
        for spec in specs if len(specs) <= ALIKE else []:
            place = re.sub(r"[^\w -]", "", spec.id.lower()).replace(" ", "-")
            cells.append(f"[{''.join(list(_image(spec, docs))[:1])}<br>{spec.name}](#{place})")
    return "\n".join([*_grid(cells), ""])


def _grid(cells: list[str], columns: int = 4) -> list[str]:
    """Lines of a Markdown table."""
    rows = ["| " + " | ".join([""] * columns) + " |", "|" + "---|" * columns]
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        rows.append("| " + " | ".join([*row, *[""] * (columns - len(row))]) + " |")
    return rows


def _group(spec: TaskSpec) -> str:
    if spec.source == "ours":
        return "Ours"
    return f"Extra `{spec.extra}`" if spec.extra else "Gymnasium's MuJoCo tasks"


def _order(item: tuple[str, Any]) -> tuple[bool, bool, str]:
    return item[0] != "Ours", item[0] != "Gymnasium's MuJoCo tasks", item[0]


def _section(title: str, specs: list[TaskSpec], docs: Path) -> str:
    install = f"\n`pip install 'dopr-robot[{specs[0].extra}]'`\n" if specs[0].extra else ""
    alike = len(specs) > ALIKE
    tables = [_alike(specs, docs)] if alike else [_task(spec, docs) for spec in specs]
    note = f"{NOTES[specs[0].extra]}\n" if specs[0].extra in NOTES else ""
    return "\n".join([f"## {title}", install, *filter(None, [note]), *tables])


def facts(spec: TaskSpec) -> list[tuple[str, str]]:
    """What there is to say of a task, by name, in Markdown; without its options and its action's entries."""
    longer = "; longer where `--horizons` asks for it" if spec.extensible else ""
    rows = [
        ("what", spec.description),
        ("kind, longest horizon", f"{spec.kind}, {spec.max_steps} control steps at {spec.control_hz:.4g} Hz{longer}"),
        ("observations", ", ".join(f"`{key}` {list(shape)}" for key, shape in spec.observations.items())),
        ("cameras", ", ".join(f"`{camera}`" for camera in spec.cameras)),
        ("group", ", ".join(f"`{group}`" for group in spec.groups)),
        ("stages", ", ".join(f"`{stage}`" for stage in spec.stages)),
        ("further figures", ", ".join(f"`{name}` ({how})" for name, how in spec.metrics.items())),
        ("return versus horizon", f"the reward pays {spec.reward}" if spec.reward else ""),
        ("expert", _expert(spec)),
        ("from few demonstrations", "`dopr collect --from STORE`" if spec.segments else ""),
        ("source", spec.source),
    ]
    return [(name, value) for name, value in rows if value]


def defaults(spec: TaskSpec) -> dict[str, Any]:
    """What each option is where nobody sets it, as far as the entry point's signature says."""
    made = load(spec.vector_entry_point or spec.entry_point)
    found: dict[str, Any] = {each.name: each.default for each in fields(Perturbations)}
    for each in inspect.getmro(made) if inspect.isclass(made) else [made]:
        if each is not object:
            for name, parameter in inspect.signature(each).parameters.items():
                if parameter.default is not parameter.empty:
                    found.setdefault(name, parameter.default)
    return {name: found[name] for name in spec.options if name in found}


def _task(spec: TaskSpec, docs: Path) -> str:
    *rows, source = facts(spec)
    rows += [("options", _options(spec)), source]
    lines = [f"### {spec.id}", "", *_image(spec, docs), "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([*lines, "", *_action(spec), ""])


def _options(spec: TaskSpec) -> str:
    """The task's own with what each does, and the names of those that every task has."""
    own = [f"`{name}`: {what}" for name, what in spec.options.items() if PERTURBATIONS.get(name) != what]
    common = [f"`{name}`" for name, what in spec.options.items() if PERTURBATIONS.get(name) == what]
    return "; ".join([*own, *([", ".join(common)] if common else [])]) or "none"


def _expert(spec: TaskSpec) -> str:
    if not spec.has_expert:
        return "none"
    name = f"`{(spec.expert or '').split(':')[1]}`"
    told = getattr(load(spec.expert or ""), "told", None)  # a learned one says how it was trained
    name += f", {told(spec.id)}" if told else ""
    if spec.expert_success is None:
        return name
    from scipy.stats import binomtest

    wins = round(spec.expert_success * spec.expert_seeds)
    low, high = binomtest(wins, spec.expert_seeds).proportion_ci(method="wilson")
    steps = "" if spec.expert_steps is None else f"; {spec.expert_steps:.0f} control steps on average"
    share = f"success {spec.expert_success:.1%} on {spec.expert_seeds} seeds (95% interval {low:.1%} to {high:.1%})"
    return f"{name}, {share}{steps}"


def _image(spec: TaskSpec, docs: Path) -> Iterable[str]:
    if (docs / PICTURES / f"{spec.name}.png").exists():
        yield f"![{spec.name}]({PICTURES}/{spec.name}.png)"
        yield ""


def action_rows(spec: TaskSpec) -> list[tuple[str, str, str, str]]:
    """Entries, name, unit and range of an action's numbers; neighbours of the same unit and bounds share a row."""
    action = spec.action
    units = [action.units] * len(action.low) if isinstance(action.units, str) else list(action.units)
    runs: list[list[Any]] = []
    for index, entry in enumerate(zip(units, action.low, action.high, strict=True)):
        if runs and runs[-1][2] == entry:
            runs[-1][1] = index
        else:
            runs.append([index, index, entry])
    rows = []
    for first, last, (unit, low, high) in runs:
        names = action.names[first] if first == last else f"{action.names[first]} ... {action.names[last]}"
        entries = str(first) if first == last else f"{first}-{last}"
        rows.append((entries, names, unit, f"{low:g} to {high:g}"))
    return rows


def _action(spec: TaskSpec) -> list[str]:
    target = "absolute" if spec.action.absolute else "relative"
    rows = [f"| {' | '.join(row)} |" for row in action_rows(spec)]
    head = ["| entry | name | unit | range |", "|---|---|---|---|"]
    return [f"Action: {spec.action.meaning} ({target}).", "", *head, *rows]


def _alike(specs: list[TaskSpec], docs: Path) -> str:
    first = replace(specs[0], expert_success=None)
    common = _task(first, docs).splitlines()
    kept = [line for line in common if not line.startswith(("### ", "![", "| what"))]
    cells = []
    for spec in specs:
        success = [] if spec.expert_success is None else [f"expert {spec.expert_success:.0%}"]
        cells.append("<br>".join([*list(_image(spec, docs))[:1], f"`{spec.id}`", *success]))
    rows = ["", *_grid(cells)]
    count = f"{len(specs)} tasks; success is what the package's reward says; objects and goal vary with the seed."
    if first.has_expert:
        count += f" Under each picture: how often the package's own expert succeeds, on {first.expert_seeds} seeds."
    faults = [f"- `{spec.id}`: {spec.expert_fault}" for spec in specs if spec.expert_fault]
    known = ["", "Where the experts fail:", "", *faults] if faults else []
    return "\n".join([count, *kept, *rows, *_grouped(specs), *known, ""])


def _grouped(specs: list[TaskSpec]) -> list[str]:
    """Names under which papers report several of these tasks, and where that is from."""
    groups: dict[str, list[str]] = {}
    for spec in specs:
        for group in spec.groups:
            groups.setdefault(group, []).append(spec.name)
    if not groups:
        return []
    lines = [f"- `{group}` ({len(names)}): {', '.join(names)}" for group, names in groups.items()]
    return ["", GROUPED[specs[0].extra or ""], "", *lines]


def _save(frame: Any, file: Path) -> None:
    from PIL import Image

    image = Image.fromarray(frame).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)

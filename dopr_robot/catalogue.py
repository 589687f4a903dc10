"""What there is: tasks, policies, optimizers, runs, and what a setting means; what the command lists."""

import inspect
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, overload

from dopr_robot.errors import DoprError, UnknownNameError, UserError
from dopr_robot.tables import Shown, Table, interval

Row = Mapping[str, Any]


class Listing(Sequence[Row], Shown):
    """Rows of equal keys; ``pandas.DataFrame(listing)`` is a table of them.

    Args:
        rows: the first key of each is its name.
        texts: the rows as they are printed, under ``head``; None: the values.
        head: names of the columns; None: the keys.
    """

    def __init__(self, rows: Sequence[Row], texts: Sequence[Sequence[Any]], head: Sequence[str]) -> None:
        self._rows, self._table = list(rows), Table(head, texts)

    @property
    def names(self) -> list[str]:
        """The first value of every row, which other functions take."""
        return [str(next(iter(row.values()))) for row in self._rows]

    def plain(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self._rows]

    def _parts(self) -> Iterator[str | Table]:
        yield self._table

    def __str__(self) -> str:
        """Without the names of the columns: the first word of every line is a name."""
        return self._table.text(head=False)

    def __repr__(self) -> str:
        return f"Listing({len(self)}: {', '.join(self.names)})"

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)


def list_tasks(name: str = "*") -> Listing:
    """Tasks, as ``dopr tasks`` lists them: ``{id, kind, max_steps, control_hz, expert, extra, groups, description}``.

    Args:
        name: a pattern over their ids (``metaworld/*``), a group (``metaworld/easy``), or one task.

    Raises:
        UserError: there is none.
    """
    from dopr_robot.envs import matching_tasks

    rows, texts = [], []
    for spec in matching_tasks(name):
        rows.append(
            {
                "id": spec.id,
                "kind": spec.kind,
                "max_steps": spec.max_steps,
                "control_hz": spec.control_hz,
                "expert": spec.has_expert,
                "extra": spec.extra,
                "groups": list(spec.groups),
                "description": spec.description,
            }
        )
        extra = "".join(f"  [group: {group}]" for group in spec.groups)
        extra += f"  [extra: {spec.extra}]" if spec.extra else ""
        expert = "expert" if spec.has_expert else "-"
        steps, rate = f"{spec.max_steps} steps", f"{spec.control_hz:g} Hz"
        texts.append([spec.id, spec.kind, steps, rate, expert, spec.description + extra])
    return Listing(rows, texts, ["task", "kind", "longest", "rate", "", "what"])


class TaskDescription(Shown):
    """Everything about a task, as ``dopr tasks NAME`` prints it.

    Args:
        name: the task's.

    Raises:
        UnknownNameError: there is no such task.
    """

    def __init__(self, name: str) -> None:
        from dopr_robot.envs import get_task

        self.spec = get_task(name)
        """Its :class:`~dopr_robot.envs.TaskSpec`."""

    def rows(self) -> list[tuple[str, str]]:
        """What is said, by name."""
        from dopr_robot.envs.page import action_rows, defaults, facts

        spec = self.spec
        rows = [(what, value.replace("`", "")) for what, value in facts(spec)]
        try:
            spec.check_installed()
            standard = {name: "none" if value is None else value for name, value in defaults(spec).items()}
            rows.append(("installed", f"with the extra {spec.extra}" if spec.extra else "with dopr-robot"))
        except UserError as error:
            standard = {}
            rows.append(("not installed", str(error)))
        for option, what in spec.options.items():
            default = f" (default {standard[option]})" if option in standard and "default" not in what else ""
            rows.append((f"--option {option}=", what + default))
        rows.append(("action", f"{spec.action.meaning} ({'absolute' if spec.action.absolute else 'relative'})"))
        return rows + [(f"  {entry}", f"{names}: {bounds} {unit}") for entry, names, unit, bounds in action_rows(spec)]

    def plain(self) -> dict[str, str]:
        return {"id": self.spec.id} | {what.strip(): value for what, value in self.rows()}

    def _parts(self) -> Iterator[str | Table]:
        rows = self.rows()
        width = max(len(what) for what, _ in rows)
        yield self.spec.id
        yield from (f"  {what:<{width}}  {value}" for what, value in rows)

    def _repr_html_(self) -> str:
        return Table([self.spec.id, ""], self.rows()).html()


def describe_task(name: str) -> TaskDescription:
    """Everything about a task: spaces, options, expert. Raises UnknownNameError."""
    return TaskDescription(name)


def list_data() -> Listing:
    """Public data that :func:`dopr_robot.fetch` knows by name: ``{name, address, what, licence, extra, options}``."""
    from dopr_robot.hub import PUBLIC

    rows = [{"name": name, **asdict(entry)} for name, entry in PUBLIC.items()]
    texts = [
        [name, each.licence, each.what + (f"  [extra: {each.extra}]" if each.extra else "")]
        for name, each in PUBLIC.items()
    ]
    return Listing(rows, texts, ["name", "licence", "what"])


def list_policies(word: str | None = None) -> Listing:
    """The policies, ``{name, summary}``; with ``word`` those with it in the name. Raises UnknownNameError where there is none."""
    from dopr_robot.policies import POLICIES

    rows = [
        {"name": name, "summary": entry.summary} for name, entry in POLICIES.items() if word is None or word in name
    ]
    if not rows:
        raise UnknownNameError("policy", str(word), POLICIES)
    return Listing(rows, [list(row.values()) for row in rows], ["policy", "what"])


def list_optimizers() -> Listing:
    """The optimizers, ``{name, options: {name: default}}``."""
    from dopr_robot.optim import optimizer_names, optimizer_options

    rows = [{"name": name, "options": optimizer_options(name)} for name in optimizer_names()]
    texts = [[row["name"], " ".join(f"{key}={value}" for key, value in row["options"].items())] for row in rows]  # type: ignore[attr-defined]
    return Listing(rows, texts, ["optimizer", "settings and their defaults"])


def list_runs(folder: str | os.PathLike[str] = "runs") -> Listing:
    """The run folders in a folder: ``{run, policy, optimizer, lr, step, steps, success_rate, ci95, horizon, episodes, error}``.

    Success is that of the newest checkpoint that was evaluated, at the longest horizon, by most episodes; None where none was.
    Raises UserError where there is no run.
    """
    folder = Path(folder)
    places = [path.parent for path in sorted({*folder.glob("*/config.yaml"), *folder.glob("config.yaml")})]
    if not places:
        raise UserError(f"{folder} holds no run folder: dopr train makes one in runs/")
    rows = [_run_row(place) for place in places]
    return Listing(rows, [_run_text(row) for row in rows], ["run", "policy", "optimizer", "step", "success"])


def _run_row(place: Path) -> dict[str, Any]:
    from dopr_robot.evaluation import Results
    from dopr_robot.training import Run

    empty = ("policy", "optimizer", "lr", "step", "steps", "success_rate", "ci95", "horizon", "episodes", "error")
    row: dict[str, Any] = {"run": str(place), **dict.fromkeys(empty)}
    run = Run(place)
    try:
        config, steps = run.config, run.checkpoints.steps()
        row |= {"policy": config.policy.get("name"), "optimizer": config.optimizer.get("name")}
        row |= {"lr": config.optimizer.get("lr"), "step": steps[-1] if steps else 0, "steps": config.training.steps}
        found = [Results(each).content for each in run.evaluations]
        if found := [each for each in found if each["curve"] and each["use"] == "final"]:
            best = max(found, key=lambda each: ((each["checkpoint"] or {}).get("step") or 0, each["episodes"]))
            last = best["curve"][-1]
            row |= {key: last[key] for key in ("success_rate", "ci95", "horizon", "episodes")}
    except DoprError as error:  # one damaged run hides no other
        row["error"] = str(error)
    return row


def _run_text(row: Mapping[str, Any]) -> list[str]:
    if row["error"]:
        success = row["error"]
    elif row["success_rate"] is None:
        success = "not evaluated"
    else:
        success = f"{row['success_rate']:.1%} at {row['horizon']} steps (95 %: {interval(row['ci95'])}, {row['episodes']} episodes)"
    optimizer = f"{row['optimizer'] or '-'}" + (f" lr={row['lr']:g}" if isinstance(row["lr"], float | int) else "")
    step = "-" if row["step"] is None else f"{row['step']:,} of {row['steps']:,} steps"
    return [row["run"], row["policy"] or "-", optimizer, step, success]


PACKAGES = (
    "dopr-robot", "torch", "mujoco", "gymnasium", "numpy", "scipy", "zarr", "diffusers", "accelerate", "hydra-core", "h5py", "matplotlib",
    "gym-pusht", "gymnasium-robotics", "metaworld", "robosuite", "gym-aloha", "robomimic", "lerobot", "pyarrow", "minari", "timm", "ray",
)  # fmt: skip


def versions() -> Listing:
    """What a report of a fault begins with: ``{name, version}`` of Python, the machine and the packages that matter."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    found = {"python": platform.python_version(), "platform": platform.platform(), "device": gpu}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = torch.__version__ if name == "torch" else version(name)
    rows = [{"name": name, "version": value} for name, value in found.items()]
    return Listing(rows, [list(row.values()) for row in rows], ["", "version"])


# What a setting means


def explain(key: str | None = None) -> Listing:
    """What settings mean: ``{key, default, explanation}`` of ``training.ema_power``, of a whole section (``training``), of what has such a
    last part (``ema_power``, ``network``), or of all; defaults are those without an experiment.

    Raises UnknownNameError for a key that no configuration has.
    """
    from dopr_robot.settings import leaves, unknown_key
    from dopr_robot.training import compose_config

    tree = asdict(compose_config())
    known = dict(leaves(tree))
    chosen = [each for each in known if key is None or each == key or each.startswith(f"{key}.")]
    chosen = chosen or [each for each in known if f".{key}." in f"{each}."]
    if not chosen:
        parts = [each.split(".")[:-1] for each in known]
        sections = {".".join(path[:end]) for path in parts for end in range(1, len(path) + 1)}
        raise unknown_key(str(key), [*known, *sorted(sections)])
    rows = [{"key": each, "default": known[each], "explanation": _explained(each, tree)} for each in chosen]
    texts = [[row["key"], _value(row["default"]), row["explanation"]] for row in rows]
    return Listing(rows, texts, ["setting", "default", "what"])


def _explained(key: str, tree: Mapping[str, Any]) -> str:
    *path, last = key.split(".")
    for source in _documented(path, tree):
        if found := arguments(source).get(last):
            return found
    return ""


def _documented(path: Sequence[str], tree: Mapping[str, Any]) -> list[Any]:
    """What the docstrings of the settings below a path are of."""
    import torch

    from dopr_robot import optim
    from dopr_robot.policies import NETWORKS, OBJECTIVES, POLICIES
    from dopr_robot.training import RunConfig

    if not path:
        return [RunConfig]
    if path[0] == "optimizer":
        bases: list[Any] = [torch.optim.AdamW, torch.optim.SGD, optim.Muon, optim.AdaMuon, optim.Lion, optim.Signum]
        bases += optim.packaged.PACKAGED.values()
        return [optim.make_optimizer, optim.ActivationPreconditioner, *bases]
    if path[0] != "policy":
        return [type(getattr(RunConfig(), path[0]))]
    policy = tree["policy"]
    schema: Any = POLICIES[policy["name"]].schema
    if len(path) == 1:
        return list(schema.__mro__)
    parts: dict[str, Any] = {"network": NETWORKS, "objective": OBJECTIVES}
    if path[1] in parts:
        schema = parts[path[1]][policy[path[1]]["name"]].config
        return [*schema.__mro__]
    for name in path[1:]:
        made = schema() if name else schema
        schema = type(getattr(made, name, None))
    return [*schema.__mro__]


def arguments(source: Any) -> dict[str, str]:
    """The arguments that a docstring explains, each in a line: ``{name: explanation}``.

    >>> def f(a, b): '''Args:
    ...     a, b: how
    ...         many.
    ... '''
    >>> arguments(f)
    {'a': 'how many.', 'b': 'how many.'}
    """
    lines = inspect.cleandoc(source.__doc__ or "").splitlines()
    start = next((n for n, line in enumerate(lines) if line.strip() in ("Args:", "Attributes:")), None)
    if start is None:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    depth = None
    for line in lines[start + 1 :]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= len(lines[start]) - len(lines[start].lstrip()):
            break
        depth = indent if depth is None and line.strip() else depth
        head = re.match(r"\s*\*{0,2}(\w+(?:, \w+)*)(?: \([^)]*\))?: (.*)", line)
        if head and indent == depth:
            names = head.group(1).split(", ")
            found |= dict.fromkeys(names, head.group(2).strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    plain = (re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "") for text in found.values())
    return dict(zip(found, plain, strict=True))


def _value(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


__all__ = [
    "Listing",
    "TaskDescription",
    "describe_task",
    "explain",
    "list_data",
    "list_optimizers",
    "list_policies",
    "list_runs",
    "list_tasks",
    "versions",
]

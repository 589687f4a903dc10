"""What makes a shell complete the words of dopr: subcommands, options, and names of tasks, policies, optimizers, experiments and settings.

eval "$(dopr completion bash)"                                       # in ~/.bashrc
dopr completion zsh > ~/.zfunc/_dopr                                 # in a folder of $fpath, before compinit
dopr completion fish > ~/.config/fish/completions/dopr.fish
"""

import argparse
import contextlib
import importlib
import json
import os
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dopr_robot import __version__
from dopr_robot.cli import COMMANDS, VOICES, Parser
from dopr_robot.cli import add_arguments as add_all

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    import argcomplete

    print(argcomplete.shellcode(["dopr"], shell=args.shell))  # type: ignore[no-untyped-call]
    return 0


def answer() -> None:
    """Say how the line in COMP_LINE may go on, as argcomplete's shell code asks, and leave the process.

    Of the subcommands only the one on the line is loaded.
    """
    import argcomplete

    parser = Parser(prog="dopr", allow_abbrev=False)
    for flag in VOICES:
        parser.add_argument(flag, action="store_true", help="how much is said")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers(metavar="COMMAND")
    words = _words(os.environ.get("COMP_LINE", ""))
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, allow_abbrev=False)
        if name in words:
            add_all(command, importlib.import_module(f"dopr_robot.cli.{name}"))
            for action in command._actions:
                if action.dest in NAMES:
                    action.completer = NAMES[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options="long")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that is still open
        return line.split()


def _tasks(**_: Any) -> list[str]:
    from dopr_robot.envs import list_tasks

    found = list_tasks()
    return [*(spec.id for spec in found), *(spec.name for spec in found if spec.source == "ours")]


def _experiments(**_: Any) -> list[str]:
    from dopr_robot.training import experiment_names

    return experiment_names()


def _policies(**_: Any) -> list[str]:
    return _known("policies")


def _settings(**_: Any) -> list[str]:
    keys = _known("settings")
    return [*keys, *dict.fromkeys(key.partition(".")[0] for key in keys)]


def _formats(**_: Any) -> list[str]:
    from dopr_robot.datasets.formats import FORMATS

    return [*FORMATS]


def _training(prefix: str, **_: Any) -> list[str]:
    """Words of ``dopr train``: an experiment, ``key=``, or a value behind the keys that take a name; else other settings."""
    key, equals, _value = prefix.partition("=")
    named: dict[str, Callable[[], Iterable[str]]] = {
        "experiment": _experiments, "task": _tasks, "policy": _policies, "optimizer": lambda: _known("optimizers"),
    }  # fmt: skip
    if equals:
        return [f"{key}={name}" for name in named.get(key.removesuffix(".name"), list)()]
    first = [name for name in (*_experiments(), *(f"{key}=" for key in named)) if name.startswith(prefix)]
    return first or [f"{name}=" for name in _known("settings")]


NAMES: dict[str, Callable[..., list[str]]] = {
    "task": _tasks,
    "experiment": _experiments,
    "word": _policies,
    "key": _settings,
    "words": _training,
    "read_as": _formats,
    "write_as": _formats,
}
"""By an argument's destination."""


def _known(kind: str) -> list[str]:
    """Policies, optimizers or settings. Finding them loads torch, which takes seconds: they are kept in the user's cache, for the files
    and outsiders' packages that they were read from."""
    from importlib.metadata import entry_points

    package = Path(__file__).parents[1]
    newest = max(
        file.stat().st_mtime_ns
        for room in ("policies", "optim", "training", "configs")
        for file in (package / room).rglob("*.*")
    )
    outsiders = [
        point.value
        for group in ("policies", "networks", "objectives")
        for point in entry_points(group=f"dopr_robot.{group}")
    ]
    state = [__version__, str(package), newest, sorted(outsiders)]
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dopr" / "names.json"
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["of"] == state:
            return [str(name) for name in kept[kind]]
    except (OSError, ValueError, LookupError, TypeError):
        pass
    from dopr_robot import explain, list_optimizers, list_policies
    from dopr_robot.files import write_json

    found = {"policies": list_policies().names, "optimizers": list_optimizers().names, "settings": explain().names}
    with contextlib.suppress(OSError):  # where nothing can be written it is found anew the next time
        write_json(file, {"of": state, **found})
    return found[kind]

"""The command ``dopr``: one module a subcommand, loaded when it is called.

A subcommand's module has ``add_arguments(parser)`` and ``run(args) -> exit code``; the module's docstring is its help.
"""

import argparse
import contextlib
import gc
import io
import itertools
import logging
import os
import platform
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn, TextIO, cast

import dopr_robot
from dopr_robot.errors import DoprError, UnknownNameError, UserError
from dopr_robot.terminal import Escaping, escaped

COMMANDS = {
    "demo": "the main job on a built-in task: collect, train, evaluate, plot, render",
    "fetch": "public data or weights by name",
    "collect": "demonstrations from a task's expert",
    "convert": "demonstrations from one format to another",
    "edit": "a new store from old ones",
    "info": "what is in a store, a run or a checkpoint",
    "repair": "a damaged store back to its last whole episode",
    "train": "train a policy on a store",
    "eval": "success versus horizon of a trained policy",
    "push": "a trained policy to the hub, with a card",
    "render": "a video of a policy or of demonstrations",
    "compare": "whether one run beats another",
    "tasks": "the tasks there are",
    "policies": "the policies there are",
    "optimizers": "the optimizers there are",
    "runs": "the run folders there are, and how they did",
    "config": "what a setting means",
    "completion": "what makes a shell complete words of dopr",
}

DONE, FAILED, MISTAKE = 0, 1, 2
UNEXPECTED = "unexpected"
"""Begins the line about an exception that nobody foresaw."""
LOG = logging.getLogger("dopr_robot")
VOICES = ("-q", "--quiet", "-v", "--verbose")
"""How much is said; they stand before the command or behind it."""


class Parser(argparse.ArgumentParser):
    """argparse, with a mistake told in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 the user's mistake, 130 Ctrl-C, 143 SIGTERM."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how the line may go on
        import_module("dopr_robot.cli.completion").answer()
    _set_up()
    before, level = signal.signal(signal.SIGTERM, _terminate), LOG.level
    try:
        with contextlib.redirect_stdout(cast(TextIO, Escaping(sys.stdout))):
            return _run(arguments)
    except DoprError as error:
        if LOG.isEnabledFor(logging.DEBUG):
            _trace()
        return _say(error, MISTAKE if isinstance(error, UserError) else getattr(error, "exit_code", FAILED))
    except KeyboardInterrupt:
        return _say("stopped", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has gone; without this, Python complains once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        _trace()
        return _say(error, FAILED)
    except Exception as error:  # a fault of ours, or of a library that met what it did not expect
        _trace()
        return _say(f"{UNEXPECTED} {type(error).__name__}: {error} (--verbose shows where)", FAILED)
    finally:
        LOG.setLevel(level)
        signal.signal(signal.SIGTERM, before)  # an exception while the interpreter closes would leave a traceback


def _run(arguments: list[str]) -> int:
    before = [*itertools.takewhile(VOICES.__contains__, arguments)]
    arguments = arguments[len(before) :]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if arguments[0] == "--version":
        print(f"dopr-robot {dopr_robot.__version__}")
        return DONE
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    module = import_module(f"dopr_robot.cli.{name}")
    parser = Parser(
        prog=f"dopr {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, module)
    args = parser.parse_intermixed_args([*before, *rest])
    _speak(args)
    return module.run(args)


def add_arguments(parser: argparse.ArgumentParser, module: ModuleType) -> None:
    """A subcommand's own, and how much it says."""
    module.add_arguments(parser)
    voice = parser.add_mutually_exclusive_group()
    voice.add_argument(
        "-q", "--quiet", action="store_true", help="nothing but the result, on one line where it has one, and errors"
    )
    voice.add_argument(
        "-v", "--verbose", action="store_true", help="what is read and written, and where an error comes from"
    )


def _speak(args: argparse.Namespace) -> None:
    """From now on say as much as was asked for: the level of the package's logger decides on everything but results and errors."""
    if args.quiet:
        LOG.setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
    elif args.verbose:
        LOG.setLevel(logging.DEBUG)
    LOG.debug(
        "dopr-robot %s, Python %s, in %s: %s", dopr_robot.__version__, platform.python_version(), Path.cwd(), vars(args)
    )


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: dopr COMMAND ...",
            "",
            "Robot imitation learning under double preconditioning, judged by success versus horizon.",
            "",
            *lines,
            "",
            "dopr COMMAND --help tells more, with an example. dopr demo is a good start.",
            "Every command takes --quiet (nothing but results and errors) and --verbose (what is read and written, where errors arise).",
        ]
    )


def _set_up() -> None:
    # Before torch is loaded. Its threads spin for milliseconds while they wait for one another, which costs nearly everything where
    # other programs want the cores too; sleeping at once costs much where they do not. So they spin for some microseconds. Steps a
    # second of a small MLP on two cores, idle and beside two other programs: 50 and 27; sleeping at once 45 and 21; by default 0.9 busy.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # Importing torch and what we need of it makes objects by the hundred thousand, all of which stay: looking for garbage among them
    # every 700 is a sixth of what passes before the first step (benchmarks/startup.py). A training step makes none.
    gc.set_threshold(100_000, 20, 20)
    handler = logging.StreamHandler()
    handler.setFormatter(_EscapingFormatter("dopr: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for stream in (sys.stdout, sys.stderr):  # an encoding that lacks a character is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        # A user can do nothing about the warnings that libraries give one another; ours they should see.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"dopr_robot")
        warnings.showwarning = lambda message, *_args, **_kwargs: _print(f"dopr: {message}")


def _terminate(signum: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that half-written files are taken away on the way out, which a second signal must not cut short.
    signal.signal(signum, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def _say(message: object, code: int) -> int:
    _print("dopr: " + " ".join(str(message).split()))
    return code


def _print(line: str) -> None:
    print(escaped(line), file=sys.stderr)


def _trace() -> None:
    if os.environ.get("DOPR_TRACEBACK") or LOG.isEnabledFor(logging.DEBUG):
        traceback.print_exc()


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))

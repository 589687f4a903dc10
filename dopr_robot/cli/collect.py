"""Demonstrations from a task's expert, into a store.

N is the store's total: the same call goes on where it stopped, and a call with a larger N adds to it. Noise is injected on the
executed action while the expert's clean action is recorded (DART), so that the store shows how to come back from small errors.
Episodes in which the expert fails are left out unless asked for.

  dopr collect PickPlace --episodes 150 --out data/pick_place.zarr
  dopr collect Stack --episodes 200 --out data/stack.zarr --option cubes=3
"""

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dopr_robot.errors import DoprError, UserError
from dopr_robot.progress import progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="a name that `dopr tasks` lists")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="how many the store holds in the end")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="STORE", help="path of the store, new or to go on with"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="block of initial states (default 0)")
    parser.add_argument("--noise", type=float, metavar="X", help="share of the task's own noise (default 1; 0: none)")
    parser.add_argument("--keep-failures", action="store_true", help="keep the episodes in which the expert fails too")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the task, see docs/tasks.md"
    )


def run(args: argparse.Namespace) -> int:
    options = dict(map(_option, args.option))
    noise = 1.0 if args.noise is None else args.noise
    collect(args.task, args.episodes, args.out, args.seed, noise, keep_failures=args.keep_failures, options=options)
    print(args.out)
    return 0


def collect(
    task: str,
    episodes: int,
    out: Path,
    seed: int = 0,
    noise: float = 1.0,
    *,
    keep_failures: bool = False,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Bring the store at ``out`` to ``episodes`` episodes of the task's expert.

    Args:
        task: a task's name.
        episodes: how many the store holds in the end.
        out: the store, new or to go on with.
        seed: block of initial states.
        noise: share of the expert's own.
        keep_failures: keep the episodes in which the expert fails too.
        options: of the task.

    Raises:
        UserError: an unknown task, one without an expert, or a store of another task.
        DoprError: the expert fails so often that the block of seeds would not do.
    """
    from dopr_robot.datasets import Store
    from dopr_robot.envs import demonstrations, get_task
    from dopr_robot.evaluation.replay import COLLECTED
    from dopr_robot.evaluation.seeds import BLOCK, block

    spec = get_task(task)
    if not spec.has_expert:
        raise UserError(f"{spec.id} has no expert: bring demonstrations of your own (dopr convert)")
    if episodes < 1:
        raise UserError(f"--episodes {episodes} has to be at least 1")
    own = block("demonstrations", seed, BLOCK)
    options = dict(options or {})
    for name in options:
        if name not in spec.options:
            raise UserError(f"{spec.id} has no option {name!r} (it has: {', '.join(spec.options) or 'none'})")
    store = Store.open(out) if out.exists() else Store.create(out, _attributes(spec, noise, options))
    with store:
        if store.attributes.task != spec.id:
            raise UserError(
                f"{out} holds demonstrations of {store.attributes.task}, not of {spec.id}: choose another --out"
            )
        made = (store.attributes.carried.get(COLLECTED) or {}).get("options", {})
        if made != options:
            raise UserError(f"{out} was collected with options {made}, not {options}: choose another --out")
        missing = episodes - store.num_episodes
        used = [number for number in store.seeds.tolist() if number in own]
        seeds = range(max(used, default=own.start - 1) + 1, own.stop)
        if missing <= 0:
            return
        with progress(f"collect {spec.id}", episodes, "episodes", done=store.num_episodes) as meter:
            attempts = demonstrations(
                spec.id, seeds, noise=noise, num_envs=min(32, missing), keep_failures=True, **options
            )
            for tried, demonstration in enumerate(attempts, start=1):
                if demonstration.success or keep_failures:
                    store.append(demonstration.arrays, seed=demonstration.seed, success=demonstration.success)
                    missing -= 1
                    meter.advance(note=f"{tried} tried")
                if not missing:
                    return
    raise DoprError(
        f"{out} has {store.num_episodes} of {episodes} episodes and block {seed} of seeds is used up: take another --seed"
    )


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--option {text!r} has to be NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _attributes(spec: Any, noise: float, options: Mapping[str, Any]) -> Any:
    from importlib.metadata import version

    from dopr_robot import __version__
    from dopr_robot.datasets import ActionAttributes, Attributes
    from dopr_robot.evaluation.replay import COLLECTED

    return Attributes(
        task=spec.id,
        control_hz=spec.control_hz,
        observations=tuple(spec.observations),
        action=ActionAttributes(
            meaning=spec.action.meaning,
            absolute=spec.action.absolute,
            units=spec.action.units,
            names=tuple(spec.action.names),
            low=tuple(spec.action.low),
            high=tuple(spec.action.high),
        ),
        simulator="mujoco",
        simulator_version=version("mujoco"),
        source=f"dopr-robot {__version__}, expert of {spec.id}",
        licence="Apache-2.0",
        # A replay needs both again.
        carried={COLLECTED: {"noise": noise, **({"options": dict(options)} if options else {})}},
    )

"""Demonstrations from a task's expert, or from a few demonstrations of it, into a store.

N is the store's total: the same call goes on where it stopped, and a call with a larger N adds to it. Noise is injected on the
executed action while the expert's clean action is recorded (DART), so that the store shows how to come back from small errors.
Episodes in which the expert fails are left out unless asked for.

A pattern over tasks, or a group of them (`dopr tasks metaworld/easy`), takes a folder: a store each, called by its task.

With --from, a few successful demonstrations take the expert's place: their segments are transformed to where the objects lie now
and replayed, and what the simulator calls a success is kept (the idea of MimicGen, Mandlekar et al., 2023).

  dopr collect PickPlace --episodes 150 --out data/pick_place.zarr
  dopr collect Stack --episodes 200 --out data/stack.zarr --option cubes=3
  dopr collect PickPlace --episodes 150 --out data/pixels.zarr --cameras overview,wrist --size 84
  dopr collect 'metaworld/*' --episodes 10 --out data/metaworld/
  dopr collect robosuite/Lift-v0 --from human.zarr --episodes 100 --out data/lift.zarr
"""

import argparse
from pathlib import Path

from dopr_robot.cli.options import add_cameras, add_option, option_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="a name that `dopr tasks` lists, a pattern over them, or a group")
    parser.add_argument("--episodes", type=int, required=True, metavar="N", help="how many the store holds in the end")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="STORE",
        help="path of the store, new or to go on with; of several tasks, the folder of their stores",
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="STORE",
        help="the few demonstrations to transform instead of an expert",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="block of initial states (default 0)")
    parser.add_argument("--noise", type=float, metavar="X", help="share of the task's own noise (default 1; 0: none)")
    parser.add_argument(
        "--tries",
        type=int,
        metavar="N",
        help="give up after so many (default 20 for each missing episode, at least 100)",
    )
    parser.add_argument("--keep-failures", action="store_true", help="keep the episodes in which the expert fails too")
    add_option(parser)
    add_cameras(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import collect, collect_several
    from dopr_robot.envs import names_several

    noise = 1.0 if args.noise is None else args.noise
    more = {"keep_failures": args.keep_failures, "source": args.source, "tries": args.tries}
    more |= {"options": option_values(args.option), "cameras": args.cameras, "camera_size": args.size}
    ways = (args.task, args.episodes, args.out, args.seed, noise)
    collect_several(*ways, **more) if names_several(args.task) else collect(*ways, **more)
    print(args.out)
    return 0

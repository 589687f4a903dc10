"""A video of a policy's rollouts, or of a store's demonstrations.

A policy is rolled out from the initial states that `dopr eval` begins with. Demonstrations are shown by their recorded images
where the store has some, and else replayed: the task is reset to the episode's seed and its actions are executed again, with the noise
that was injected when they were collected.

  dopr render runs/pick_place --out policy.mp4 --episodes 4
  dopr render data/pick_place.zarr --out demonstrations.mp4
  dopr render runs/pick_place --out wrist.mp4 --camera wrist
"""

import argparse
from pathlib import Path

from dopr_robot.cli.options import add_option, option_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN_OR_STORE", help="run folder, checkpoint folder or store")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.mp4", help="where the video goes")
    parser.add_argument("--episodes", type=int, default=4, metavar="K", help="how many are shown (default 4)")
    parser.add_argument("--camera", metavar="NAME", help="one of the task's cameras, or of the store's images")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="block of initial states of a policy (default 0)"
    )
    add_option(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import render

    ways = {"episodes": args.episodes, "camera": args.camera, "seed": args.seed, "options": option_values(args.option)}
    print(render(args.source, args.out, **ways))
    return 0

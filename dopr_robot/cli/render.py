"""A video of a policy's rollouts, or of a store's demonstrations.

A policy is rolled out from the initial states that `dopr eval` begins with. Demonstrations are shown by their recorded images
where the store has some, and else replayed: the task is reset to the episode's seed and its actions are executed again, with the noise
that was injected when they were collected.

  dopr render runs/pick_place --out policy.mp4 --episodes 4
  dopr render data/pick_place.zarr --out demonstrations.mp4
  dopr render runs/pick_place --out wrist.mp4 --camera wrist
  dopr render runs/pick_place --out policy.webp --episodes 6 --size 160       # an animated picture for a page
"""

import argparse
from pathlib import Path

from dopr_robot.cli.options import add_option, option_values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="RUN_OR_STORE", help="run folder, checkpoint folder or store")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="where it goes: a video .mp4, or an animated picture .webp",
    )
    parser.add_argument("--episodes", type=int, default=4, metavar="K", help="how many are shown (default 4)")
    parser.add_argument("--camera", metavar="NAME", help="one of the task's cameras, or of the store's images")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="block of initial states of a policy (default 0)"
    )
    parser.add_argument(
        "--size", type=int, default=240, metavar="S", help="height of an episode's picture, in pixels (default 240)"
    )
    add_option(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot import render

    ways = {"episodes": args.episodes, "camera": args.camera, "seed": args.seed, "size": args.size}
    ways["options"] = option_values(args.option)
    print(render(args.source, args.out, **ways))
    return 0

"""A trained policy to the Hugging Face hub, with a card that says how often it succeeds. It takes the extra `hub`.

What goes there: the weights (policy.safetensors), policy.json, config.yaml, the records of an evaluation of this very checkpoint
(the largest that there is, unless --evaluation names one), and a card with its figures, their intervals, and the calls that give them
again. It is one commit, whole or not at all. The address for `dopr eval` and `dopr_robot.load_policy` is the last line of the output.

  hf auth login                                            # once; or HF_TOKEN
  dopr push runs/pick_place ada/pick_place
  dopr push runs/pick_place/checkpoints/4000 ada/pick_place --private --licence mit
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder (its newest checkpoint) or checkpoint folder")
    parser.add_argument("name", metavar="USER/NAME", help="the repository, made where there is none")
    parser.add_argument("--evaluation", type=Path, metavar="DIR", help="of which evaluation the card says the figures")
    parser.add_argument("--private", action="store_true", help="a new repository is seen by its owner alone")
    parser.add_argument("--licence", metavar="SPDX", help="of the weights, for the card")


def run(args: argparse.Namespace) -> int:
    from dopr_robot import push

    print(push(args.run, args.name, evaluation=args.evaluation, private=args.private, licence=args.licence))
    return 0

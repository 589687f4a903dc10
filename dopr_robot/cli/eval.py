"""Success versus horizon of a trained policy.

RUN is a run folder or a checkpoint folder. The policy is rolled out from initial states that nobody has trained or chosen a
checkpoint on; success is reported at every horizon asked for, from the same rollouts. The records do not depend on --num-envs or
--workers. The evaluation's folder is the last line of the output.

  dopr eval runs/pick_place
  dopr eval runs/pick_place --episodes 500 --horizons 50,100,200 --seed 1
  dopr eval runs/pick_place --out eval/a --resume
  dopr eval hf://user/name                                 # from the Hugging Face hub
  dopr eval runs/stack --lengths 1,2,3,4
  dopr eval runs/stack --option cubes=4                    # otherwise than the policy was trained for
  dopr eval runs/pick_place --perturb observation_noise=0.01,0.02,0.05
  dopr eval runs/act --acting ensemble=true                # otherwise than the checkpoint says: temporal ensembling
  dopr eval runs/pick_place --acting delay=2               # plans that are two steps late
  dopr eval runs/pick_place --acting n_action_steps=4 --acting steps=5    # looks more often, draws a plan in fewer steps
  dopr eval runs/pick_place --episodes 5000 --ray auto     # spread over the machines of a Ray cluster

With --feedback, every checkpoint of the run is rolled out from initial states for selection: validation loss beside success, how far
the policy strays from the demonstrations, and how far its plans are from what it does. Keep checkpoints for it when training
(training.keep_checkpoints=20).

  dopr eval runs/pick_place --feedback --episodes 50
"""

import argparse
from pathlib import Path
from typing import Any

from dopr_robot.cli.options import add_option, option_lists, option_values
from dopr_robot.cli.printing import add_json, show
from dopr_robot.errors import UserError

WAYS = ("task", "episodes", "horizons", "seed", "num_envs", "workers", "out", "resume")
"""Arguments that an evaluation and a measurement of feedback share."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, checkpoint folder, or hf://user/name")
    parser.add_argument("--task", help="another task than the policy was trained for")
    parser.add_argument(
        "--episodes", type=int, metavar="N", help="initial states (default: the run's evaluation.episodes)"
    )
    parser.add_argument(
        "--horizons", type=integers, metavar="A,B,C", help="control steps (default: 8 equal ones up to the longest)"
    )
    parser.add_argument(
        "--lengths",
        type=integers,
        metavar="A,B,C",
        help="lengths of the task, where it has one: success versus length too",
    )
    add_option(parser)
    parser.add_argument(
        "--perturb",
        action="append",
        default=[],
        metavar="NAME=A,B,C",
        help="an option at several strengths beside the task as it is, from the same initial states; several options: a grid",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="block of initial states (default 0)")
    parser.add_argument(
        "--num-envs", type=int, metavar="E", help="copies of the environment (default: by the number of cores)"
    )
    parser.add_argument("--workers", type=int, metavar="W", help="threads (default: one a core)")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="on a Ray cluster (auto, or head:6379) instead of this machine"
    )
    parser.add_argument(
        "--video", type=int, metavar="K", help="episodes in the video; 0: none (default: the run's evaluation.video)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the evaluation's folder (default RUN/eval/<step>-seed<S>)"
    )
    parser.add_argument(
        "--acting",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how the policy plans and acts, otherwise than its checkpoint says: ensemble, decay, delay, compile, n_action_steps, and "
        "what its objective has for acting alone (steps, integrator, sampler, clip, low_noise)",
    )
    parser.add_argument(
        "--feedback", action="store_true", help="measure test-time feedback over the run's checkpoints instead"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the evaluation in that folder")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from dopr_robot.settings import parse_words

    ways = {name: getattr(args, name) for name in WAYS} | {"options": option_values(args.option)}
    if args.feedback:
        return _feedback(args, ways)
    from dopr_robot import evaluate

    more = {"lengths": args.lengths, "video": args.video, "perturb": option_lists(args.perturb), "ray": args.ray}
    results = evaluate(args.run, acting=parse_words(args.acting), **more, **ways)
    show(results, args, results.folder)
    return 0


def _feedback(args: argparse.Namespace, ways: dict[str, Any]) -> int:
    from dopr_robot import feedback

    for option in ("lengths", "video", "acting", "perturb", "ray"):
        if getattr(args, option):
            raise UserError(f"--feedback goes without --{option}")
    found = feedback(args.run, **ways)
    show(found, args, found.folder)
    return 0


def integers(text: str) -> list[int]:
    """``"1,2,3"`` as a list; argparse tells the user of anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 50,100,200") from None

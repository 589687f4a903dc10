"""Demonstrations from one format to another.

OUT is a store unless --to says otherwise. What the source does not say about itself can be said here; --task takes over the task's names
of observations, its control rate, and its action's meaning and bounds, and refuses what contradicts it. Nothing is lost on the way:
dtypes are kept, and what a store has no place for (masks, environment arguments, rewards, simulator states, names) is kept too and
written back. SOURCE is never modified, and OUT is there only when it is whole.

With --cameras, the observations of a file of robosuite or robomimic are rebuilt by replaying the simulator's states in the task, as
robomimic's dataset_states_to_obs does, on every core. The same call goes on where one was stopped: what is done so far lies in
OUT.unfinished.

  dopr convert pusht_cchi_v7_replay.zarr.zip data/pusht.zarr --hz 10
  dopr convert hf://lerobot/pusht data/pusht.zarr           # from the Hugging Face hub, see dopr fetch
  dopr convert low_dim_v141.hdf5 data/lift.zarr
  dopr convert demo_v141.hdf5 data/lift.zarr --cameras agentview,robot0_eye_in_hand --size 84
  dopr convert data/lift.zarr lift_lerobot --to lerobot
"""

import argparse
from pathlib import Path

from dopr_robot.cli.options import add_cameras


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dopr_robot.datasets.formats import FORMATS

    written = ", ".join(name for name in FORMATS if FORMATS[name].write)
    parser.add_argument("source", metavar="SOURCE", help="a file or folder, a store, or hf://user/name[/path]")
    parser.add_argument("out", metavar="OUT", type=Path, help="a path where nothing is yet")
    parser.add_argument(
        "--from", dest="read_as", metavar="FMT", help=f"format of SOURCE, found out where absent: {', '.join(FORMATS)}"
    )
    parser.add_argument("--to", dest="write_as", metavar="FMT", help=f"format of OUT instead of a store: {written}")
    parser.add_argument("--task", metavar="TASK", help="the task that they show, as `dopr tasks` names it")
    parser.add_argument("--hz", type=float, metavar="HZ", help="control rate, steps a second")
    parser.add_argument(
        "--success-from", metavar="KEY", help="episodes succeeded where KEY (as in OUT) is above 0 at any step"
    )
    parser.add_argument("--observations", metavar="KEY,KEY", help="which keys are observations")
    add_cameras(parser)
    meaning = parser.add_mutually_exclusive_group()
    meaning.add_argument("--absolute", action="store_true", help="actions are targets")
    meaning.add_argument("--relative", action="store_true", help="actions are changes")


def run(args: argparse.Namespace) -> int:
    from dopr_robot import convert

    count = convert(
        args.source,
        args.out,
        read_as=args.read_as,
        write_as=args.write_as,
        task=args.task,
        hz=args.hz,
        observations=args.observations.split(",") if args.observations else None,
        absolute=args.absolute if args.absolute or args.relative else None,
        success_from=args.success_from,
        cameras=args.cameras,
        size=args.size,
    )
    print(f"{args.out}: {count} episodes")
    return 0

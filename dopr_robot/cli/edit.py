"""A new store from old ones: merged, filtered, split, with other keys, at another control rate, or told what it did not know.

Several STOREs are merged, in the order given. --success-from and --set-success come first, then the filters, --subset, --keep, --drop,
--rename, --uint8, --hz, --rate and --task. The old stores are not touched; what was done is in the new one's provenance. --split P
writes OUT's name with -train and -validation, P of the episodes in the second.

  dopr edit a.zarr b.zarr both.zarr --success --length 20:300
  dopr edit data/lift.zarr data/lift_50.zarr --subset 50 --seed 1
  dopr edit pusht_cchi_v7_replay.zarr.zip data/pusht.zarr --uint8 img --drop n_contacts --rename img=image
  dopr edit data/lift.zarr data/lift_10hz.zarr --rate 10
  dopr edit data/arm.zarr data/arm_good.zarr --success-from rewards --success
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from dopr_robot.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", metavar="STORE", nargs="+", help="stores to read")
    parser.add_argument("out", metavar="OUT", type=Path, help="path of the new store")
    parser.add_argument("--success", action="store_true", help="successful episodes only")
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--success-from", metavar="KEY", help="episodes succeeded where KEY is above 0 at any step")
    known.add_argument(
        "--set-success", metavar="true|false|FILE", help="whether all episodes succeeded, or a file with a word a line"
    )
    parser.add_argument("--length", metavar="A:B", help="episodes with A <= steps < B; either may be left out")
    parser.add_argument("--subset", type=int, metavar="N", help="N of the episodes, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of --subset and --split (default 0)")
    for name, what in {"keep": "keys that stay, beside the action", "drop": "keys to leave out"}.items():
        parser.add_argument(
            f"--{name}", action="append", default=[], metavar="KEY", help=f"{what} (KEY,KEY or repeated)"
        )
    parser.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="another name for a key")
    parser.add_argument(
        "--uint8", action="append", default=[], metavar="KEY", help="images held as floats 0 to 255, as uint8"
    )
    parser.add_argument("--hz", type=float, metavar="HZ", help="the control rate that it was recorded at")
    parser.add_argument("--rate", type=float, metavar="HZ", help="resample to another control rate")
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="the task that it shows, whose rate, bounds and names are taken over; none: no task",
    )
    meaning = parser.add_mutually_exclusive_group()
    meaning.add_argument("--absolute", action="store_true", help="actions are targets, where the store does not say")
    meaning.add_argument("--relative", action="store_true", help="actions are changes, where the store does not say")
    parser.add_argument(
        "--split", type=float, metavar="P", help="write two stores, with P of the episodes in the second"
    )


def run(args: argparse.Namespace) -> int:
    from dopr_robot import edit

    stores = edit(
        args.stores,
        args.out,
        success_from=args.success_from,
        set_success=args.set_success,
        success=args.success,
        length=_length(args.length),
        subset=args.subset,
        keep=_words(args.keep),
        drop=_words(args.drop),
        rename=_names(args.rename),
        uint8=_words(args.uint8),
        absolute=True if args.absolute else False if args.relative else None,
        hz=args.hz,
        rate=args.rate,
        task=args.task,
        split=args.split,
        seed=args.seed,
    )
    for store in stores:
        print(f"{store.path}: {store.num_episodes} episodes")
    return 0


def _words(values: Iterable[str]) -> list[str]:
    return [word for value in values for word in value.split(",") if word]


def _names(values: Iterable[str]) -> dict[str, str]:
    names = {}
    for word in _words(values):
        old, _, new = word.partition("=")
        if not old or not new:
            raise UserError(f"--rename {word}: OLD=NEW is expected")
        names[old] = new
    return names


def _length(text: str | None) -> tuple[int, int | None] | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not colon or not (low or "0").isdigit() or not (high or "0").isdigit():
        raise UserError(f"--length {text}: A:B is expected, two numbers of steps of which one may be left out")
    return int(low or 0), int(high) if high else None

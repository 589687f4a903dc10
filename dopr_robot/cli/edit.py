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
from typing import Any

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
    from dopr_robot.datasets import Store, split_episodes
    from dopr_robot.datasets.editing import select, subset

    stores = [Store.open(path) for path in args.stores]
    length, known = _length(args.length), _success(args, stores)
    chosen = [
        (index, int(e))
        for index, store in enumerate(stores)
        for e in select(store, success=args.success, length=length, known=known[index])
    ]
    if args.subset is not None:
        import numpy as np

        chosen = [chosen[n] for n in subset(np.arange(len(chosen)), args.subset, args.seed)]
    if not chosen:
        raise UserError("no episode is left: nothing was written")
    if args.split is None:
        _write(args, stores, known, chosen, args.out)
        return 0
    if len(chosen) < 2 or not 0 < args.split < 1:
        raise UserError(
            f"--split {args.split:g} of {len(chosen)} episodes: it has to lie between 0 and 1, and two episodes be there"
        )
    outs = [args.out.with_name(f"{args.out.stem}-{name}{args.out.suffix}") for name in ("train", "validation")]
    for out in outs:
        if out.exists():
            raise UserError(f"{out}: exists already; choose another path")
    for out, part in zip(outs, split_episodes(len(chosen), args.split, args.seed), strict=True):
        _write(args, stores, known, [chosen[n] for n in part], out)
    return 0


def _write(
    args: argparse.Namespace, stores: list[Any], known: list[Any], chosen: list[tuple[int, int]], out: Path
) -> None:
    from dopr_robot.datasets import Recording, write_store
    from dopr_robot.datasets.editing import as_uint8, merge, rename_keys, resample, with_action, with_success

    parts = [(store, [e for which, e in chosen if which == index]) for index, store in enumerate(stores)]
    recording = merge(parts)
    if args.success_from or args.set_success:
        recording = with_success(recording, [known[index][e] for index, (_, part) in enumerate(parts) for e in part])
    filters = [text for text, on in _filters(args).items() if on]
    about = with_action(recording.attributes, True if args.absolute else False if args.relative else None)
    recording = Recording(about.with_provenance("; ".join(filters)) if filters else about, recording.episodes)
    if args.keep or args.drop or args.rename:
        keep, drop = _words(args.keep), _words(args.drop)
        recording = rename_keys(recording, stores[0].keys, keep=keep, drop=drop, names=_names(args.rename))
    if args.uint8:
        names = _names(args.rename)
        recording = as_uint8(recording, [names.get(key, key) for key in _words(args.uint8)])
    if args.hz is not None:
        if args.hz <= 0:
            raise UserError(f"--hz {args.hz:g} has to be above 0")
        about = recording.attributes.with_provenance(f"recorded at {args.hz:g} Hz", control_hz=args.hz)
        recording = Recording(about, recording.episodes)
    if args.rate is not None:
        recording = resample(recording, args.rate)
    if args.task:
        recording = _of_task(recording, args.task)
    written = write_store(recording, out)
    print(f"{out}: {written.num_episodes} episodes")


def _of_task(recording: Any, name: str) -> Any:
    from dopr_robot.datasets import Recording
    from dopr_robot.datasets.tasks import as_task, looked_at
    from dopr_robot.envs import get_task

    if name == "none":
        return Recording(recording.attributes.with_provenance("of no task", task=None), recording.episodes)
    task = get_task(name)
    recording, first = looked_at(recording)
    recording = as_task(recording, first, task)
    return Recording(recording.attributes.with_provenance(f"as {task.id}"), recording.episodes)


def _success(args: argparse.Namespace, stores: list[Any]) -> list[Any]:
    """Of every store, success of its episodes as int8: what is said here, else what the store says."""
    import numpy as np

    from dopr_robot.datasets.editing import succeeded

    if args.success_from:
        return [succeeded(store, args.success_from) for store in stores]
    if args.set_success is None:
        return [store.success for store in stores]
    counts = [store.num_episodes for store in stores]
    if args.set_success in FLAGS:
        return [np.full(count, FLAGS[args.set_success], np.int8) for count in counts]
    words = _lines(Path(args.set_success))
    if len(words) != sum(counts):
        raise UserError(f"--set-success {args.set_success}: has {len(words)} words for {sum(counts)} episodes")
    return np.split(np.array([FLAGS[word] for word in words], np.int8), np.cumsum(counts)[:-1])


FLAGS = {"true": 1, "false": 0, "1": 1, "0": 0}


def _lines(path: Path) -> list[str]:
    try:
        words = path.read_text(encoding="utf-8").lower().split()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"--set-success {path}: true, false or a text file of them is expected, one an episode"
        ) from None
    wrong = next((word for word in words if word not in FLAGS), None)
    if wrong is not None:
        raise UserError(f"--set-success {path}: holds {wrong!r}: true or false is expected, one an episode")
    return words


def _filters(args: argparse.Namespace) -> dict[str, bool]:
    return {
        f"success: {args.success_from} above 0 at any step": args.success_from is not None,
        f"success: {args.set_success}": args.set_success is not None,
        "successful episodes": args.success,
        f"length {args.length}": args.length is not None,
        f"subset of {args.subset}, seed {args.seed}": args.subset is not None,
        f"split {args.split}, seed {args.seed}": args.split is not None,
    }


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

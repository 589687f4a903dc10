"""How often the experts succeed: `expert_success` of the tasks, shown by docs/tasks.md.

N seeds of what `dopr collect` draws from, with its noise on the executed action, or with a share of it (`--noise 0`: none).
`steps` is the mean length of the successful episodes. A line is printed, and appended to the file, as a task is done; a task that is in
the file already is left out, so that the same call goes on where it stopped. `--first` leaves out seeds that an expert was written on.

    python benchmarks/expert_success.py --extra metaworld --json experts.jsonl
    python benchmarks/expert_success.py --tasks metaworld/shelf-place-v3 --noise 0
    python benchmarks/expert_success.py --extra robosuite --first 1000 --seeds 100
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dopr_robot.collection import demonstrations
from dopr_robot.envs import get_task, list_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", help="ids; without: all that have an expert")
    parser.add_argument("--extra", help="only the tasks of this extra")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="of the seeds")
    parser.add_argument("--noise", type=float, default=1.0, help="share of the expert's own")
    parser.add_argument("--json", type=Path, help="a file of lines to go on with")
    args = parser.parse_args()
    done = args.json.read_text(encoding="utf-8").splitlines() if args.json and args.json.exists() else []
    known = {(row["task"], row["noise"], row.get("first", 0), row["seeds"]) for row in map(json.loads, done)}
    specs = [get_task(name) for name in args.tasks] if args.tasks else list_tasks()
    for spec in specs:
        asked = (spec.id, args.noise, args.first, args.seeds)
        if args.extra not in (None, spec.extra) or not spec.has_expert or asked in known:
            continue
        seeds = range(args.first, args.first + args.seeds)
        episodes = demonstrations(spec.id, seeds, noise=args.noise, keep_failures=True)
        lengths = np.array([len(episode.arrays["action"]) if episode.success else np.nan for episode in episodes])
        row = dict(zip(("task", "noise", "first", "seeds"), asked, strict=True))
        row["success"] = float(np.isfinite(lengths).mean())
        row["steps"] = float(np.nanmean(lengths)) if row["success"] else None
        line = json.dumps(row)
        print(line, flush=True)
        if args.json:
            with args.json.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()

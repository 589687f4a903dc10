"""How steep are the policies of a study where its demonstrations hardly vary? ``python studies/gain.py studies/damping_few``

The derivative of a plan's first actions by what the policy has seen, both normalised, at observations of the demonstrations; split by
the principal directions of these observations: the *common* ones, which hold 99 % of their variance, and the *rare* rest. The gain is
the root mean square over directions and observations. For regression policies on vectors, in the folder where the study was run, with
its ``policies`` and stores. Writes ``gain.csv`` into the study's folder, a line a policy, and prints the means.
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dopr_robot import load_policy
from dopr_robot.datasets.store import Store
from dopr_robot.policies import Policy

EPISODES, EVERY, POINTS, COMMON = 20, 5, 30, 0.99


def seen(store: Store, policy: Policy) -> Tensor:
    """What the policy sees of the demonstrations, normalised: ``[N, To, D]``."""
    ((key, _),) = policy.spec.observations.items()
    steps = policy.n_obs_steps
    windows = []
    for index in range(EPISODES):
        values = np.asarray(store.episode(index, [key])[key], dtype=np.float32)
        windows += [values[last - steps : last] for last in range(steps, len(values) + 1, EVERY)]
    return policy.normalizer.normalize(key, torch.tensor(np.stack(windows)))


def gains(policy: Policy, windows: Tensor) -> tuple[float, float]:
    """Of the common and of the rare directions."""
    ((key, _),) = policy.spec.observations.items()
    first = policy.n_obs_steps - 1

    def plan(window: Tensor) -> Tensor:
        answer = policy.network(None, None, policy.encoder({key: window[None]}))
        return answer[0, first : first + policy.n_action_steps].flatten()

    points = windows[:: max(1, len(windows) // POINTS)]
    jacobians = torch.stack([torch.autograd.functional.jacobian(plan, each).flatten(1) for each in points.unsqueeze(1)])
    variances, directions = torch.linalg.eigh(torch.cov(windows.flatten(1).T))
    squared = (jacobians.flatten(2) @ directions).square().sum(1).mean(0)
    common = variances.flip(0).cumsum(0).flip(0) <= COMMON * variances.sum()
    rare = ~common & (variances > 1e-8 * variances.max())  # not those that are sums of others
    return float(squared[common].mean().sqrt()), float(squared[rare].mean().sqrt())


def main(folder: Path) -> None:
    """The table of a study."""
    if not (folder / "policies").is_dir():
        sys.exit(f"{folder} has no policies: records alone are not enough, run the study first (dopr compare)")
    windows: dict[tuple[str, int], Tensor] = {}
    rows = []
    for arm in map(json.loads, (folder / "arms.jsonl").read_text(encoding="utf-8").splitlines()):
        name, store = arm["config"]["name"], arm["config"]["data.store"]
        if not (folder / "test" / name).exists():  # not of the chosen rate
            continue
        policy = load_policy(folder / "policies" / name)
        if (
            store,
            arm["seed"],
        ) not in windows:  # of which other episodes are held out, and so the normalisation is another
            windows[store, arm["seed"]] = seen(Store.open(store), policy)
        common, rare = gains(policy, windows[store, arm["seed"]])
        what = {name: arm[name] for name in ("task", "optimizer", "learning_rate", "seed")}
        rows.append(what | {"common": round(common, 3), "rare": round(rare, 3)})
    with (folder / "gain.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    means = defaultdict(list)
    for row in rows:
        means[row["task"], row["optimizer"]].append((row["common"], row["rare"]))
    for (task, optimizer), found in means.items():
        common, rare = np.mean(found, axis=0)
        print(f"{task}, {optimizer}: {common:.2f} common, {rare:.2f} rare ({len(found)} policies)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Which hyperparameters figures are reported of, and whether the arms are matched pairs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from dopr_robot.errors import DoprError
from dopr_robot.evaluation import EpisodeRecord
from dopr_robot.study.config import Arm, Study
from dopr_robot.study.returns import Range
from dopr_robot.study.search import Candidate

Record = dict[str, Any]


def choose(study: Study, done: Mapping[str, Record], ranges: Mapping[str, Range]) -> dict[tuple[str, ...], Candidate]:
    """The hyperparameters of every :meth:`~dopr_robot.study.config.Study.choice`: the largest :func:`score`, over all training seeds (and
    all tasks of ``tune``); where that is equal (nobody solves the task yet) the largest return on selection states, then the least
    validation loss, then the least rate. ``ranges``: of :func:`~dopr_robot.study.returns.return_ranges`."""
    groups: dict[tuple[str, ...], dict[str, list[Arm]]] = {}
    for arm in study.arms():
        groups.setdefault(arm.choice, {}).setdefault(json.dumps(arm.candidate, sort_keys=True), []).append(arm)

    def cost(arms: Sequence[Arm]) -> tuple[float, float, float, float]:
        records = [done[arm.name] for arm in arms]
        return (
            -round(sum(score(record, ranges) for record in records), 9),  # equal ones are, whatever the order of a sum
            -_total(records, "selection_return", -inf),
            _total(records, "validation_loss", inf),
            arms[0].learning_rate,
        )

    return {choice: min(tried.values(), key=cost)[0].candidate for choice, tried in groups.items()}


def score(record: Record, ranges: Mapping[str, Range]) -> float:
    """What an arm reached on selection states at the longest horizon: success, or the share of the return that counts as 1, where that is
    the task's figure."""
    if record["task"] not in ranges:
        return int(list(record["selection_successes"].values())[-1]) / record["selection_episodes"]
    zero, one = ranges[record["task"]]
    earned = record["selection_return"]  # none of an arm that diverged
    return 0.0 if earned is None else (earned - zero) / (one - zero)


def check_matched(records: Iterable[Record]) -> None:
    """Raise DoprError where arms of one task, policy and seed did not begin alike."""
    first: dict[tuple[Any, ...], Record] = {}
    for record in records:
        other = first.setdefault((record["task"], record["policy"], record["seed"]), record)
        for key in ("initial_weights_sha256", "first_batches_sha256", "first_loss", "selection_states_sha256"):
            if key == "selection_states_sha256" and None in (record[key], other[key]):
                continue  # an arm that diverged was not rolled out
            if record[key] != other[key]:
                raise DoprError(
                    f"{_text(record)} and {_text(other)} are no matched pair: {key} is {record[key]} and {other[key]}. "
                    "Were they run on different machines or versions?"
                )


def check_states(arms: Iterable[Arm], tests: Mapping[str, Sequence[EpisodeRecord]]) -> None:
    """Raise DoprError where a test seed did not begin in one state in all arms of a task; ``tests``: by the arm's name."""
    first: dict[tuple[str, int], str] = {}
    for arm in arms:
        for record in tests.get(arm.name, ()):
            if record.initial_state_sha256 is None:
                continue
            state = first.setdefault((arm.entry.label, record.seed), record.initial_state_sha256)
            if state != record.initial_state_sha256:
                raise DoprError(
                    f"test seed {record.seed} began from another state in {arm.name}: were the versions the same?"
                )


def _total(records: Sequence[Record], key: str, unknown: float) -> float:
    """Sum over an arm's training seeds; ``unknown`` where one of them has no value."""
    values = [record[key] for record in records]
    return unknown if None in values else sum(values)


def _text(record: Record) -> str:
    return f"{record['task']} {record['policy']} {record['optimizer']} lr {record['learning_rate']:g} seed {record['seed']}"

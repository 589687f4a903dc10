"""What a perturbation costs: success and return versus horizon under it, and the paired difference to the unperturbed rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.evaluation.statistics.curves import curve, success_matrix
from dopr_robot.evaluation.statistics.paired import Difference, difference_curve
from dopr_robot.evaluation.statistics.returns import known_horizons, return_curve, return_matrix

Records = Sequence[EpisodeRecord]


def perturbed(
    before: Records,
    arms: Sequence[tuple[Mapping[str, float], Records]],
    kind: str,
    horizons: Sequence[int],
    *,
    returned: bool = False,
) -> list[dict[str, Any]]:
    """Of each arm ``{options, option, value, curve, difference: {mean, ci95}, differences: [{horizon, mean, ci95}],
    returns, return_differences}``.

    Args:
        before: records of the unperturbed arm.
        arms: what was perturbed, and the records under it, of the same seeds.
        kind, horizons: of all of them.
        returned: whether the task's reward says more than success.

    Returns:
        In the order of ``arms``. ``option`` and ``value`` are None where several options are perturbed together. A difference is the
        arm's success less the unperturbed one's, paired by seed, with a bootstrap interval over episodes
        (:func:`~dopr_robot.evaluation.statistics.paired.difference_curve`); ``difference`` is the one at the longest horizon. ``returns``
        (:func:`~dopr_robot.evaluation.statistics.returns.return_curve`) and ``return_differences``, likewise paired, are at the horizons at
        which all records say their return, and empty without ``returned``.

    Raises:
        UserError: an arm is of other seeds.
    """
    first = sorted(before, key=lambda record: record.seed)
    found = []
    for options, records in arms:
        second = sorted(records, key=lambda record: record.seed)
        if [record.seed for record in first] != [record.seed for record in second]:
            raise UserError(f"the rollouts under {dict(options)} are of other initial states than the unperturbed ones")
        one = next(iter(options.items())) if len(options) == 1 else (None, None)
        after, unperturbed = (success_matrix(each, kind, horizons)[None] for each in (second, first))
        difference = difference_curve(after, unperturbed)
        differences = _points(horizons, difference)
        known = known_horizons([*first, *second], horizons) if returned else []
        earned = []
        if known:
            more, less = (return_matrix(each, known)[None] for each in (second, first))
            earned = _points(known, difference_curve(more, less, rates=False))
        found.append(
            {
                "options": dict(options),
                "option": one[0],
                "value": one[1],
                "curve": curve(second, kind, horizons),
                "difference": {key: differences[-1][key] for key in ("mean", "ci95")},
                "differences": differences,
                "returns": return_curve(second, known),
                "return_differences": earned,
            }
        )
    return found


def _points(horizons: Sequence[int], difference: Difference) -> list[dict[str, Any]]:
    return [
        {"horizon": horizon, "mean": float(mean), "ci95": [float(low), float(high)]}
        for horizon, mean, low, high in zip(
            horizons, difference.difference, difference.low, difference.high, strict=True
        )
    ]

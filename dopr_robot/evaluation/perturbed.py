"""Success under perturbations: how much of it is left where sensors are noisy, actions late, pictures dark.

Every strength of an option is an evaluation of its own, on the seeds of the unperturbed one, so that differences are of pairs: the
unperturbed one lies in the folder itself, the others under ``perturbed/<option>=<value>/``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from dopr_robot.envs.task import words
from dopr_robot.errors import UserError
from dopr_robot.evaluation.evaluator import earlier, run_evaluation
from dopr_robot.evaluation.rollouts.plan import Evaluation

FOLDER = "perturbed"


def evaluate_perturbed(
    evaluation: Evaluation,
    out: str | Path,
    perturb: Mapping[str, Sequence[float]],
    *,
    resume: bool = False,
    video: int = 9,
    validation_loss: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Evaluate a policy as it is, and under every strength of one option, or every combination of several.

    Args:
        evaluation: the unperturbed one.
        out: its folder; the others lie below it.
        perturb: numbers by option, ``{"observation_noise": [0.01, 0.02]}``.
        resume: go on with what ``out`` holds.
        video, validation_loss, more: see :func:`~dopr_robot.evaluation.evaluator.run_evaluation`; the video shows the unperturbed task.

    Returns:
        The content of ``results.json`` of the unperturbed one, with ``perturbed``, see
        :func:`~dopr_robot.evaluation.statistics.perturbed`.

    Raises:
        UserError: an option that the task does not take, or a value that is no number or out of its range. Nothing was run then.
    """
    out = Path(out)
    arms = [(options, replace(evaluation, env_options=options)) for options in combinations(perturb)]
    earlier(evaluation, out, resume)  # a folder of something else is refused before anything is run
    folders = []
    for options, arm in arms:
        folder = out / FOLDER / ",".join(words(options))
        run_evaluation(arm, folder, video=0, resume=resume, **more)
        folders.append((options, folder))
    return run_evaluation(
        evaluation, out, video=video, validation_loss=validation_loss, resume=resume, perturbed=folders, **more
    )


def combinations(perturb: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination of one value an option, each once.

    >>> combinations({"observation_noise": [0.01, 0.02], "action_delay": [1]})
    [{'observation_noise': 0.01, 'action_delay': 1}, {'observation_noise': 0.02, 'action_delay': 1}]

    Raises:
        UserError: a value that is no number, or none at all.
    """
    for name, values in perturb.items():
        if not values or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise UserError(
                f"--perturb {name}={','.join(map(str, values))}: numbers are expected, such as {name}=0.01,0.02"
            )
    return [
        dict(zip(perturb, values, strict=True))
        for values in product(*(dict.fromkeys(each) for each in perturb.values()))
    ]

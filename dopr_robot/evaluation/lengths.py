"""Success versus the length of the task: how many cubes are to be stacked, how many goals visited.

A task names the keyword of its environment that sets its length (``TaskSpec.length``). Every length is an evaluation of its own, on the
same seeds: the longest lies in the folder itself, the others under ``lengths/<length>/``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dopr_robot.evaluation.evaluator import earlier, run_evaluation
from dopr_robot.evaluation.rollouts.plan import Evaluation

FOLDER = "lengths"


def evaluate_lengths(
    evaluation: Evaluation,
    out: str | Path,
    lengths: Sequence[int],
    *,
    resume: bool = False,
    video: int = 9,
    validation_loss: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Evaluate a policy at several lengths of its task.

    Args:
        evaluation: what is evaluated; a length that it sets does not count.
        out: the folder of the longest one; the others lie below it.
        lengths: of the task.
        resume: go on with what ``out`` holds.
        video, validation_loss, more: see :func:`~dopr_robot.evaluation.evaluator.run_evaluation`; the video shows the longest.

    Returns:
        The content of ``results.json`` of the longest, with ``lengths``: for each the success at the longest horizon.

    Raises:
        UserError: the task has no length to vary, or not such a one.
    """
    out = Path(out)
    *others, longest = [evaluation.at_length(length) for length in sorted(set(lengths))]
    earlier(longest, out, resume)  # a folder of something else is refused before anything is run
    folders = {}
    for other in others:
        assert other.length is not None
        folders[other.length] = out / FOLDER / str(other.length)
        run_evaluation(other, folders[other.length], video=0, resume=resume, **more)
    return run_evaluation(
        longest, out, video=video, validation_loss=validation_loss, resume=resume, lengths=folders, **more
    )

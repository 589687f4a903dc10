"""One evaluation on many machines: its episodes go out in groups, and their records come back."""

from collections.abc import Sequence

from dopr_robot.cluster import Cluster
from dopr_robot.evaluation.rollouts.episode import INFERENCE_BATCH, Job
from dopr_robot.evaluation.rollouts.plan import Evaluation
from dopr_robot.evaluation.rollouts.records import EpisodeRecord
from dopr_robot.evaluation.rollouts.rollout import OnRecord


def spread(
    evaluation: Evaluation, jobs: Sequence[Job], on_record: OnRecord, address: str, copies: int | None = None
) -> list[str]:
    """Run every job on a Ray cluster; records and faults as :meth:`~dopr_robot.evaluation.rollouts.rollout.Rollout.run` gives them.

    Policy and task travel with the call: machines need our package and the task's, and no checkpoint.

    Args:
        evaluation: what is evaluated.
        jobs: its episodes that are to be run.
        on_record: gets the records, a group's together.
        address: of the cluster, see :class:`~dopr_robot.cluster.Cluster`.
        copies: of the task in a group, which has as many episodes and asks for one CPU; None: ``evaluation.copies``.

    Raises:
        MissingExtraError, UserError: see :class:`~dopr_robot.cluster.Cluster`.
        Exception: whatever a rollout raised. Records of groups that had ended were handed over.
    """
    size = min(copies or evaluation.copies, INFERENCE_BATCH)
    groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    faults: list[str] = []
    with Cluster(address) as cluster:
        whole = cluster.put(evaluation)
        for _, (records, found) in cluster.answers(_roll, [(whole, group) for group in groups]):
            for record in records:
                on_record(record)
            faults += found
    return faults


def _roll(evaluation: Evaluation, jobs: Sequence[Job]) -> tuple[list[EpisodeRecord], list[str]]:
    """One group, in any process on any machine."""
    records: list[EpisodeRecord] = []
    # A group asked for one CPU: a simulator with processes of its own gets one.
    return records, evaluation.rollout().run(jobs, records.append, len(jobs), workers=1, cpus=1)

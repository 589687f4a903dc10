"""Rollouts for choosing: a checkpoint, a learning rate. Their initial states are of the range that selection has."""

from collections.abc import Mapping, Sequence

from dopr_robot.envs import Task
from dopr_robot.evaluation import EpisodeRecord, Evaluation
from dopr_robot.evaluation.evaluator import figures
from dopr_robot.policies import Policy


class SelectionRollout:
    """Rolls a policy out from the same initial states at every call; what ``training.train`` takes as ``rollout``.

    Args:
        task: what it was trained for, options included.
        episodes: how many.
        horizons: control steps; None: the task's longest alone.
        num_envs: copies; the records do not depend on it.
        cpus: cores that the simulator may use; None: all of this process.

    Attributes:
        records: of the last call, in the order of the episodes.

    Raises:
        UserError: no such task, or its package is not installed.
    """

    def __init__(
        self,
        task: Task,
        episodes: int,
        horizons: Sequence[int] | None = None,
        num_envs: int | None = None,
        cpus: int | None = None,
    ) -> None:
        self.task, self.spec = task, task.spec
        self.spec.check_installed()
        self.episodes = episodes
        self.horizons = list(horizons or [self.spec.max_steps])
        self.num_envs, self.cpus = num_envs, cpus
        self.records: list[EpisodeRecord] = []

    def __call__(self, policy: Policy) -> Mapping[str, float]:
        """``success_rate`` at the longest horizon, ``return`` where the reward says more, and the task's own figures."""
        self.records = rolled_out(
            policy, self.task, self.episodes, self.horizons, "selection", self.num_envs, cpus=self.cpus
        )
        found = figures(self.records, self.spec, self.horizons, use="selection")
        means = {name: value["mean"] for name, value in found["metrics"].items()}
        if self.spec.reward:
            means["return"] = found["returns"][-1]["mean"]
        return {"success_rate": found["curve"][-1]["success_rate"], **means}


def rolled_out(
    policy: Policy,
    task: Task,
    episodes: int,
    horizons: Sequence[int],
    use: str,
    num_envs: int | None = None,
    part: slice = slice(None),
    cpus: int | None = None,
) -> list[EpisodeRecord]:
    """Records of a policy's episodes, or of a part of them, in one thread, in the order of the episodes; the policy is left in the mode
    it was in."""
    training = policy.training
    policy.eval()
    evaluation = Evaluation(policy, task, episodes=episodes, horizons=horizons, use=use)
    records: list[EpisodeRecord] = []
    try:
        evaluation.rollout().run(evaluation.jobs[part], records.append, num_envs, workers=1, cpus=cpus)
    finally:
        policy.train(training)
    return sorted(records, key=lambda record: record.episode)

"""How far a policy's own actions carry it: what it visits beside the demonstrations, and what it planned beside what it did.

A network is trained on states that somebody else chose, and acts in states that it chose itself. Two things are measured along
rollouts, and the same two on held-out demonstrations, which say what either would be without that feedback:

- *divergence*: distance of a visited state to the nearest demonstrated one. States are the observations that are vectors, each entry over
  its standard deviation in the demonstrations; the distance is the root mean square over entries, in units of what is typical
  (the median) for a held-out demonstration: at 1, the policy is as close to the demonstrations as they are to one another.
- *action gap*: what the plan before the present one foresaw for a step, against the action that was executed there; root mean
  square over the action's entries, each over its standard deviation in the demonstrations. There is none for policies whose plans end
  with the last action that they execute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from scipy.spatial import KDTree

from dopr_robot.datasets import Store
from dopr_robot.errors import UserError
from dopr_robot.evaluation.rollouts.episode import Episode
from dopr_robot.policies import Policy, make_policy
from dopr_robot.training import RunConfig, TrainingData

Floats = NDArray[np.float64]
LEFT_OUT = 5
"""Without a validation split, every fifth demonstration is left out of the nearest ones, to compare with."""
BEYOND = 0.01
GAP_STARTS = 512
"""Plans that are begun on held-out demonstrations."""


class Demonstrations:
    """What a run was trained on, as the measure of what its policy visits.

    Args:
        config, data: of the run.

    Raises:
        UserError: no observation is a vector, or there is but one demonstration.
    """

    def __init__(self, config: RunConfig, data: TrainingData) -> None:
        observations, self.action_key = data.spec.observations, config.data.action
        self.keys = [key for key, each in observations.items() if len(each.shape) == 1]
        if not self.keys:
            raise UserError(
                f"no observation of the policy is a vector ({', '.join(observations)}): there is no distance to measure"
            )
        store = Store.open(config.data.store or "")
        shown = data.train.episodes
        held_out = data.validation.episodes if data.validation is not None else shown[::LEFT_OUT]
        shown = np.setdiff1d(shown, held_out)
        if not len(shown):
            raise UserError(f"{store.path} holds one demonstration: two are needed to say how far apart they are")
        seen = [store.episode(int(index), [*self.keys, self.action_key]) for index in shown]
        states = np.concatenate([self.states(episode) for episode in seen])
        self.scale = _scale(states)
        self.action_scale = _scale(np.concatenate([episode[self.action_key] for episode in seen]).astype(np.float64))
        self._tree = KDTree(states / self.scale)
        self.held_out = [store.episode(int(index), [*observations, self.action_key]) for index in held_out]
        self.unit = 1.0
        apart = np.concatenate([self.distance(self.states(episode)) for episode in self.held_out])
        self.unit = float(np.median(apart)) or 1.0  # demonstrations that repeat one another leave standard deviations
        self.apart = apart / self.unit
        """Divergence of the held-out demonstrations, every step of all, ``[T]``."""

    def states(self, arrays: Mapping[str, np.ndarray]) -> Floats:
        """Observations of N copies or steps as states ``[N, D]``."""
        return np.concatenate([np.asarray(arrays[key], np.float64) for key in self.keys], axis=1)

    def distance(self, states: Floats) -> Floats:
        """Divergence of states ``[N, D]``: ``[N]``."""
        nearest, _ = self._tree.query(states / self.scale)
        return nearest / np.sqrt(states.shape[1]) / self.unit

    def action_gap(self, foreseen: np.ndarray, executed: np.ndarray) -> Floats:
        """Gap of actions ``[..., A]``: ``[...]``."""
        return np.sqrt(np.square((foreseen - executed) / self.action_scale).mean(axis=-1))


def _scale(values: Floats) -> Floats:
    """Standard deviation of every column; 1 for one that does not change."""
    spread = values.std(axis=0)
    return np.where(spread > 1e-6 * np.maximum(1.0, np.abs(values).max(axis=0)), spread, 1.0)


class Foreseeing(torch.nn.Module):
    """A policy that acts as before and shows its whole plans: ``act`` gives ``[B, H - To + 1, A]``, of which Ta are executed."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        spec = replace(policy.spec, n_action_steps=policy.horizon - policy.n_obs_steps + 1)
        self.planner = make_policy(asdict(policy.config) | {"n_action_steps": spec.n_action_steps}, spec)
        self.planner.load_state_dict(policy.state_dict())
        self.planner.to(next(policy.parameters()).device).eval()
        self.n_obs_steps, self.n_action_steps = policy.n_obs_steps, policy.n_action_steps
        self.observations, self.action_dim = policy.observations, policy.action_dim

    @staticmethod
    def possible(policy: Policy) -> bool:
        """Whether plans reach beyond what is executed, and do not depend on earlier ones."""
        further = policy.n_action_steps < policy.horizon - policy.n_obs_steps + 1
        return further and not getattr(policy, "remembers", False)

    def act(self, observation: Mapping[str, torch.Tensor], generator: Any) -> torch.Tensor:
        return self.planner.act(observation, generator)


@dataclass
class Trace:
    """What is kept of one episode.

    Attributes:
        states: ``[T + 1][D]``, the initial one first.
        gaps: action gap of every step; NaN where nothing was foreseen.
        cut: of every step, whether the action was beyond its bounds, by more than a hundredth of their distance.
        plan: what the present plan says from the next step on, ``[K, A]``.
        foreseen: what the plan before it says, likewise.
    """

    states: list[Floats]
    gaps: list[float] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    plan: np.ndarray | None = None
    foreseen: np.ndarray | None = None


class Tracer:
    """An observer of a rollout that keeps a :class:`Trace` of every episode."""

    def __init__(self, demonstrations: Demonstrations) -> None:
        self.demonstrations = demonstrations
        self.traces: dict[int, Trace] = {}

    def __call__(
        self,
        env: VectorEnv,
        copies: Mapping[int, Episode],
        observation: Mapping[str, np.ndarray],
        executed: np.ndarray | None,
        planned: np.ndarray | None,
    ) -> None:
        states = self.demonstrations.states(observation)
        space = env.single_action_space
        assert isinstance(space, Box)
        for copy, episode in copies.items():
            if executed is None or planned is None:
                self.traces[episode.job.episode] = Trace([states[copy]])
                continue
            trace, wanted = self.traces[episode.job.episode], planned[copy]
            plan = np.clip(wanted, space.low, space.high)
            if trace.plan is None or len(plan) > len(trace.plan):  # a chunk begins
                trace.foreseen = trace.plan
            gap = np.nan
            if trace.foreseen is not None and len(trace.foreseen):
                gap = float(self.demonstrations.action_gap(trace.foreseen[0], executed[copy]))
                trace.foreseen = trace.foreseen[1:]
            trace.plan = plan[1:]
            trace.gaps.append(gap)
            beyond = np.abs(wanted[0] - plan[0]) > BEYOND * (space.high - space.low)
            trace.cut.append(bool(beyond.any()))
            trace.states.append(states[copy])


@torch.inference_mode()
def gaps_on_demonstrations(policy: Policy, demonstrations: Demonstrations, batch_size: int = 128) -> Floats:
    """The action gap without feedback: two plans, Ta steps apart, both begun on a held-out demonstration; ``[N]``.

    Part of it is the policy's own noise: its two plans are drawn independently, as in a rollout.
    """
    planner, ta, to = Foreseeing(policy).planner, policy.n_action_steps, policy.n_obs_steps
    overlap = min(ta, planner.n_action_steps - ta)
    episodes = demonstrations.held_out
    starts = [(e, t) for e, each in enumerate(episodes) for t in range(len(each[demonstrations.action_key]) - ta)]
    chosen = np.linspace(0, len(starts) - 1, min(GAP_STARTS, len(starts))).round().astype(int)
    generator = torch.Generator(next(policy.parameters()).device).manual_seed(0)

    def plans(begin: Sequence[tuple[int, int]]) -> np.ndarray:
        """``[B, H - To + 1, A]``"""
        seen = [np.maximum(np.arange(t - to + 1, t + 1), 0) for _, t in begin]
        batch = {}
        for key in policy.observations:
            steps = np.stack([episodes[e][key][rows] for (e, _), rows in zip(begin, seen, strict=True)])
            value = torch.from_numpy(steps)
            batch[key] = (value if value.dtype == torch.uint8 else value.float()).to(generator.device)
        return planner.act(batch, generator).cpu().numpy()

    found = []
    for first in range(0, len(chosen), batch_size):
        begin = [starts[index] for index in chosen[first : first + batch_size]]
        foreseen = plans(begin)[:, ta : ta + overlap]
        then = plans([(e, t + ta) for e, t in begin])[:, :overlap]
        found.append(demonstrations.action_gap(foreseen, then).ravel())
    return np.concatenate(found) if found else np.zeros(0)


def along(values: Sequence[Floats], steps: Sequence[int]) -> list[dict[str, Any]]:
    """Quartiles over the episodes that are still under way, at every step that one reached: ``[{step, episodes, q25, median, q75}]``.

    Args:
        values: of every episode, from step 0 on, ``[T]``; NaN where there is none.
        steps: which.
    """
    points = []
    for step in steps:
        there = np.array([each[step] for each in values if len(each) > step and np.isfinite(each[step])])
        if len(there):
            points.append({"step": int(step), "episodes": len(there), **quartiles(there)})
    return points


def quartiles(values: Floats) -> dict[str, float]:
    """``{q25, median, q75}``."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"q25": float(low), "median": float(middle), "q75": float(high)}

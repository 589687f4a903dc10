"""The policy: normalisation, encoder, objective and network behind ``loss`` and ``act``."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.encoders import StateEncoder
from dopr_robot.policies.networks import NETWORKS
from dopr_robot.policies.normalization import Mode, Normalizer
from dopr_robot.policies.objectives import OBJECTIVES, Objective, Sizes
from dopr_robot.policies.objectives.sampling import Generators
from dopr_robot.policies.options import options
from dopr_robot.policies.spec import PolicySpec

Batch = Mapping[str, Any]
"""``{"observation": {key: [B, To, ...]}, "action": [B, H, A]}``, torch tensors in the environment's units."""


class Policy(nn.Module, ABC):
    """What training and evaluation know of a policy.

    Observations and actions are in the environment's units both ways; normalisation is inside. A subclass gives :meth:`_loss` and
    :meth:`_sample` on normalised tensors.

    Args:
        spec: what it sees and does.
        config: the dataclass that made it; goes into the checkpoint.
        normalization: how statistics become affine maps.
    """

    def __init__(self, spec: PolicySpec, config: Any, normalization: Mode = "minmax") -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        shapes = {key: each.shape for key, each in spec.observations.items()}
        if "action" in shapes:
            raise UserError("an observation can not be called 'action': rename it in the store")
        self.normalizer = Normalizer({**shapes, "action": spec.action.shape}, normalization)

    @property
    def n_obs_steps(self) -> int:
        """To."""
        return self.spec.n_obs_steps

    @property
    def horizon(self) -> int:
        """H."""
        return self.spec.horizon

    @property
    def n_action_steps(self) -> int:
        """Ta."""
        return self.spec.n_action_steps

    @property
    def action_dim(self) -> int:
        """A."""
        return self.spec.action_dim

    @property
    def observations(self) -> dict[str, tuple[int, ...]]:
        """Shape of one step of every observation that is read."""
        return {key: each.shape for key, each in self.spec.observations.items()}

    @property
    def task(self) -> str | None:
        """Gymnasium id of the task it was trained for."""
        return self.spec.task

    def fit_normalizer(self, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Take the statistics of the training split: ``{key: {min, max, mean, std}}`` for every observation and ``action``."""
        self.normalizer.fit(statistics)

    @property
    def fits(self) -> bool:
        """Whether :meth:`fit` has to see the training split before the first step."""
        return False

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take what is found in the training split and not by gradient, after :meth:`fit_normalizer`. Nothing, for most policies."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a batch, and its parts by name (detached)."""
        observation = self._normalized(batch["observation"])
        action = self.normalizer.normalize("action", batch["action"])
        terms = self._loss(observation, action)
        return sum(terms.values(), start=action.new_zeros(())), {name: term.detach() for name, term in terms.items()}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, so that wrappers such as DistributedDataParallel see it."""
        return self.loss(batch)

    @torch.no_grad()
    def act(self, observation: Mapping[str, Tensor], generator: Generators = None) -> Tensor:
        """Actions to execute, ``[B, Ta, A]``.

        Args:
            observation: the newest To steps of every key, ``[B, To, ...]``.
            generator: source of the noise; with a list of B, row b depends on the b-th alone.

        Raises:
            UserError: a key is missing or has another shape than the policy was made for.
        """
        self._check(observation)
        actions = self._sample(self._normalized(observation), generator)
        first = self.n_obs_steps - 1
        return self.normalizer.denormalize("action", actions[:, first : first + self.n_action_steps])

    @abstractmethod
    def _loss(self, observation: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        """The loss's terms by name; the loss is their sum."""

    @abstractmethod
    def _sample(self, observation: dict[str, Tensor], generator: Generators) -> Tensor: ...

    def _normalized(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: self.normalizer.normalize(key, observation[key]) for key in self.spec.observations}

    def _check(self, observation: Mapping[str, Tensor]) -> None:
        for key, spec in self.spec.observations.items():
            if key not in observation:
                raise UserError(f"observation {key!r} is missing: the policy reads {', '.join(self.spec.observations)}")
            expected = (self.n_obs_steps, *spec.shape)
            found = tuple(observation[key].shape)
            if found[1:] != expected:
                raise UserError(f"observation {key!r} has shape {list(found)}, the policy expects {['B', *expected]}")


@dataclass
class PairConfig:
    """A policy made of an objective and a network, each with options of its own."""

    name: str = MISSING
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    normalization: str = "minmax"
    objective: Any = field(default_factory=dict)
    network: Any = field(default_factory=dict)


class PairPolicy(Policy):
    """Objective x network: every pair exists by combination.

    Args:
        spec: what it sees and does.
        config: names and options of objective and network.
    """

    def __init__(self, spec: PolicySpec, config: PairConfig) -> None:
        normalization: Literal["minmax", "meanstd", "none"] = config.normalization  # type: ignore[assignment]
        super().__init__(spec, config, normalization)
        objective = OBJECTIVES[config.objective["name"]]
        network = NETWORKS[config.network["name"]]
        self.encoder = StateEncoder(spec.observations)
        sizes = Sizes(spec.action_dim, spec.horizon, self.encoder.output_dim, spec.n_obs_steps)
        self.objective: Objective = objective.build(
            options(objective.config, config.objective, "policy.objective"), sizes
        )
        self.network = network.build(
            options(network.config, config.network, "policy.network"),
            input_dim=self.objective.input_dim,
            output_dim=self.objective.output_dim,
            horizon=spec.horizon,
            condition_dim=self.objective.condition_dim,
            n_obs_steps=spec.n_obs_steps,
        )

    @property
    def fits(self) -> bool:
        return self.objective.fits

    def fit(self, batches: Iterable[Batch]) -> None:
        if self.fits:
            actions = torch.cat([self.normalizer.normalize("action", batch["action"]) for batch in batches])
            self.objective.fit(actions)

    def _loss(self, observation: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        return self.objective.loss(self.network, action, self.encoder(observation))

    def _sample(self, observation: dict[str, Tensor], generator: Generators) -> Tensor:
        return self.objective.sample(self.network, self.encoder(observation), generator)

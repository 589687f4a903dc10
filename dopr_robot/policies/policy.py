"""The policy: normalisation, encoder, objective and network behind ``loss`` and ``act``."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.acting import Acting, ActingConfig, Memory
from dopr_robot.policies.encoders import Encoder, EncoderConfig, reads_image
from dopr_robot.policies.networks import NETWORKS
from dopr_robot.policies.normalization import Normalizer
from dopr_robot.policies.objectives import OBJECTIVES, Held, Limits, Objective, Sizes
from dopr_robot.policies.objectives.sampling import Generators
from dopr_robot.policies.options import options
from dopr_robot.policies.representation import ActionsConfig, Representation
from dopr_robot.policies.scaling import hardly_moved
from dopr_robot.policies.spec import ArraySpec, PolicySpec

Batch = Mapping[str, Any]
"""``{"observation": {key: [B, To, ...]}, "action": [B, H, A]}``, torch tensors in the environment's units."""


@dataclass
class PolicyConfig:
    """Options that every policy has.

    Args:
        n_obs_steps, horizon, n_action_steps: To, H and Ta, see :class:`~dopr_robot.policies.spec.PolicySpec`.
        normalization: ``minmax``, ``meanstd`` or ``none``, for all keys or as ``{key or "action": mode}`` (minmax for the others).
        rotations: ``{key or "action": {index of the first entry: kind}}``, see
            :class:`~dopr_robot.policies.representation.Representation`; networks see them in six numbers.
        actions: absolute, delta or relative.
        acting: how plans become actions.
    """

    name: str = MISSING
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    normalization: Any = "minmax"
    rotations: Any = field(default_factory=dict)
    actions: ActionsConfig = field(default_factory=ActionsConfig)
    acting: ActingConfig = field(default_factory=ActingConfig)


class Policy(nn.Module, ABC):
    """What training and evaluation know of a policy.

    Observations and actions are in the environment's units both ways; normalisation, rotations and the action's convention are
    inside. A subclass gives :meth:`_loss` and :meth:`_sample` on normalised tensors.

    Args:
        spec: what it sees and does.
        config: the dataclass that made it; goes into the checkpoint. Options of :class:`PolicyConfig` that it lacks have their
            defaults.
        untouched: observations that are not normalised; images never are.

    Attributes:
        changed: what it does otherwise than its checkpoint says, beside options of ``acting``: ``{"n_action_steps": 4}``.
    """

    def __init__(self, spec: PolicySpec, config: Any, untouched: Collection[str] = ()) -> None:
        super().__init__()
        self.spec = spec
        self.config = config
        if "action" in spec.observations:
            raise UserError("an observation can not be called 'action': rename it in the store")
        common = PolicyConfig()
        self.representation = Representation(
            spec, getattr(config, "rotations", common.rotations), getattr(config, "actions", common.actions)
        )
        self.acting = Acting(getattr(config, "acting", common.acting), spec, self.representation)
        self.images = [key for key, each in spec.observations.items() if reads_image(key, each)]
        shapes = {
            key: shape
            for key, shape in self.representation.shapes.items()
            if key not in untouched and key not in self.images
        }
        self.normalizer = Normalizer(shapes, getattr(config, "normalization", common.normalization))
        self.changed: dict[str, Any] = {}
        self._has_statistics = False

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
        """Ta: actions that one call of :meth:`act` gives."""
        return self.acting.n_action_steps

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

    @property
    def task_options(self) -> dict[str, Any]:
        """Of that task, as it was trained for."""
        return self.spec.task_options

    @property
    def remembers(self) -> bool:
        """Whether :meth:`act` has to be given the episodes' memory."""
        return self.acting.remembers

    @property
    def fits(self) -> bool:
        """Whether :meth:`fit` has to see the training split before the first step."""
        return self.representation.covered > 0

    def fit_normalizer(self, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Take the statistics of the training split: ``{key: {min, max, mean, std}}`` for every observation and ``action``."""
        found = self.representation.statistics(statistics)
        # What is predicted of actions that are not absolute has a range of its own, which fit() finds.
        self.normalizer.fit(
            found, [key for key in self.normalizer.keys if key != "action" or not self.representation.covered]
        )

    def hardly_moved(self, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, list[int]]:
        """By key, the entries (as the network reads them) that hardly moved and are not stretched to the full range."""
        found, modes = self.representation.statistics(statistics), self.normalizer.modes
        still = {key: hardly_moved(found[key], mode) for key, mode in modes.items() if mode != "none"}
        return {key: entries for key, entries in still.items() if entries}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take what is found in the training split and not by gradient, after :meth:`fit_normalizer`. Nothing, for most policies.

        A subclass that overrides this gets encoded, normalised actions from :meth:`_fit_actions`.
        """
        if self.fits:
            self._fit_actions(batches)

    def _fit_actions(self, batches: Iterable[Batch]) -> Tensor:
        """All actions as the network is to predict them, normalised ``[N, H, A']``; their statistics are taken where need be."""
        encoded = torch.cat(
            [self.representation.encode(batch["action"], self._checked(batch["observation"])) for batch in batches]
        )
        if self.representation.covered:
            self.normalizer.fit({"action": self.representation.action_statistics(encoded)}, ["action"])
        return self.normalizer.normalize("action", encoded)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a batch, and its parts by name (detached).

        Raises:
            UserError: a key is missing or has another shape or dtype than the policy was made for.
            RuntimeError: :meth:`fit_normalizer` was not called.
        """
        self._check_statistics()
        observation = self._checked(batch["observation"])
        expected = (self.horizon, self.action_dim)
        if tuple(batch["action"].shape[1:]) != expected:
            raise UserError(f"actions have shape {list(batch['action'].shape)}, the policy expects {['B', *expected]}")
        encoded = self.representation.encode(batch["action"], observation)
        action = self.normalizer.normalize("action", encoded)
        terms = self._loss(self._normalized(observation), action)
        return sum(terms.values(), start=action.new_zeros(())), {name: term.detach() for name, term in terms.items()}

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, so that wrappers such as DistributedDataParallel see it."""
        return self.loss(batch)

    @torch.no_grad()
    def act(
        self, observation: Mapping[str, Tensor], generator: Generators = None, memory: Memory | None = None
    ) -> Tensor:
        """Actions to execute, ``[B, Ta, A]``.

        Args:
            observation: the newest To steps of every key, ``[B, To, ...]``.
            generator: source of the noise; with a list of B, row b depends on the b-th alone.
            memory: one dict an episode, empty at its beginning and the same at all its calls; needed where :attr:`remembers`. None:
                every call is an episode's first.

        Raises:
            UserError: a key is missing or has another shape or dtype than the policy was made for.
            RuntimeError: :meth:`fit_normalizer` was not called.
        """
        self._check_statistics()
        observation = self._checked(observation)
        rows = len(next(iter(observation.values())))
        if memory is not None and len(memory) != rows:
            raise UserError(f"{len(memory)} memories for a batch of {rows}: give one a row")
        like = self.normalizer.get_buffer("scale:action")
        under_way, held = self.acting.under_way(memory, like), None
        if under_way is not None:
            plans, mask = under_way
            encoded = self.representation.encode(plans, observation)
            held = Held(self.normalizer.normalize("action", encoded), mask)
        # Inference mode saves 7 % of a flow transformer's plan, which is many small operations.
        with torch.inference_mode(), self.acting.on_threads(self._work(rows)):
            predicted = self._sample(self._normalized(observation), generator, held)
        predicted = predicted.clone()  # an ordinary tensor again
        found = self.representation.decode(self.normalizer.denormalize("action", predicted), observation)
        if under_way is not None:  # to the bit, and for objectives that can hold nothing
            found = torch.where(mask, plans, found)
        return self.acting.actions(found, memory)

    def _work(self, rows: int) -> int:
        """How large a plan is: rows times parameters; what reads images is large, whatever its parameters."""
        return 2**63 if self.images else rows * sum(each.numel() for each in self.parameters())

    @abstractmethod
    def _loss(self, observation: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        """The loss's terms by name; the loss is their sum."""

    @abstractmethod
    def _sample(self, observation: dict[str, Tensor], generator: Generators, held: Held | None) -> Tensor:
        """Actions ``[B, H, A']`` as the network predicts them, normalised."""

    def _normalized(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        read = {key: self.representation.read(key, observation[key]) for key in self.spec.observations}
        return {
            key: self.normalizer.observe(key, value) if key in self.normalizer.keys else value
            for key, value in read.items()
        }

    def _check_statistics(self) -> None:
        if not self._has_statistics:  # once, since looking costs a round trip to the device
            self.normalizer.check()
            self._has_statistics = True

    def _checked(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is read, images as uint8 and everything else (flags among it) as floats."""
        found = {}
        for key, spec in self.spec.observations.items():
            if key not in observation:
                raise UserError(f"observation {key!r} is missing: the policy reads {', '.join(self.spec.observations)}")
            expected = (self.n_obs_steps, *spec.shape)
            value = observation[key]
            if tuple(value.shape[1:]) != expected:
                raise UserError(
                    f"observation {key!r} has shape {list(value.shape)}, the policy expects {['B', *expected]}"
                )
            if key in self.images and value.dtype != torch.uint8:
                raise UserError(f"observation {key!r} is an image of {value.dtype}, the policy expects torch.uint8")
            found[key] = value if key in self.images or value.is_floating_point() else value.float()
        return found


@dataclass
class PairConfig(PolicyConfig):
    """A policy made of encoders, an objective and a network, each with options of its own."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    objective: Any = field(default_factory=dict)
    network: Any = field(default_factory=dict)


class PairPolicy(Policy):
    """Objective x network: every pair exists by combination.

    Args:
        spec: what it sees and does.
        config: names and options of objective and network.
    """

    def __init__(self, spec: PolicySpec, config: PairConfig) -> None:
        super().__init__(spec, config, untouched=config.encoder.embed)
        objective = OBJECTIVES[config.objective["name"]]
        network = NETWORKS[config.network["name"]]
        shapes = self.representation.shapes
        self.encoder = Encoder(
            {key: ArraySpec(shapes[key], each.dtype) for key, each in spec.observations.items()}, config.encoder
        )
        sizes = Sizes(shapes["action"][0], spec.horizon, self.encoder.output_dim, spec.n_obs_steps)
        of_objective = options(objective.config, config.objective, "policy.objective")
        of_network = options(network.config, config.network, "policy.network")
        self.config = replace(
            config,
            # The file of pretrained weights has done its work: a checkpoint must not ask for it.
            encoder=replace(config.encoder, weights=None),
            # In full, so that a checkpoint keeps its meaning where a default changes.
            objective=asdict(of_objective),
            network=asdict(of_network),
        )
        self.objective: Objective = objective.build(of_objective, sizes)
        self.network = network.build(
            of_network,
            input_dim=self.objective.input_dim,
            output_dim=self.objective.output_dim,
            horizon=spec.horizon,
            condition_dim=self.objective.condition_dim,
            n_obs_steps=spec.n_obs_steps,
        )
        self._compiled: tuple[Callable[..., Tensor], ...] = ()

    @property
    def fits(self) -> bool:
        return super().fits or self.objective.fits

    def fit(self, batches: Iterable[Batch]) -> None:
        """Take what the objective finds in the training split (BeT's bins)."""
        if self.fits:
            self.objective.fit(self._fit_actions(batches))

    def _loss(self, observation: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        return self.objective.loss(self.network, action, self.encoder(observation))

    def _sample(self, observation: dict[str, Tensor], generator: Generators, held: Held | None) -> Tensor:
        mode = self.acting.config.compile
        if mode is not None and not self._compiled:
            # A function in a tuple, so that the compiled module is no second child; training keeps the network as it is.
            self._compiled = (torch.compile(self.network.forward, mode=mode),)
        network: Any = self._compiled[0] if self._compiled else self.network
        limits = Limits(*self.normalizer.limits("action"))
        return self.objective.sample(network, self.encoder(observation), generator, limits, held)

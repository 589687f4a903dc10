"""robomimic's behaviour cloning, from the package itself: its networks and losses in our training, checkpoints and evaluation."""

import json
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopr_robot.errors import MissingExtraError, UserError
from dopr_robot.policies.objectives import Held
from dopr_robot.policies.objectives.sampling import Generators, categorical, normal
from dopr_robot.policies.policy import Batch, Policy, PolicyConfig
from dopr_robot.policies.spec import PolicySpec
from dopr_robot.policies.torchvision import make_importable


@dataclass
class RobomimicConfig(PolicyConfig):
    """Options of :class:`Robomimic`.

    Args:
        file: a robomimic JSON config to take ``algo`` and ``observation`` from, or null. What it says becomes part of the run's
            configuration and of the checkpoint; its observation keys are those of ``data.observations``.
        robomimic: the sections ``algo`` and ``observation`` of such a config, over robomimic's defaults.
    """

    n_obs_steps: int = 1
    horizon: int = 1
    n_action_steps: int = 1
    file: str | None = None
    robomimic: Any = field(default_factory=dict)


LOW_NOISE = 1e-4
"""Standard deviation of robomimic's low-noise evaluation."""

GMM = {"enabled": True, "num_modes": 5, "min_std": 1e-4, "low_noise_eval": True}
# The sizes of robomimic's study (Mandlekar et al., 2021) for states, and of its transformer's template.
BC: dict[str, Any] = {"algo": {"actor_layer_dims": [1024, 1024]}}
BC_RNN_GMM: dict[str, Any] = {
    "algo": {"actor_layer_dims": [], "gmm": GMM, "rnn": {"enabled": True, "hidden_dim": 400, "num_layers": 2}}
}
BC_TRANSFORMER_GMM: dict[str, Any] = {
    "algo": {
        "actor_layer_dims": [],
        "gmm": GMM,
        "transformer": {
            "enabled": True,
            "embed_dim": 512,
            "num_layers": 6,
            "num_heads": 8,
            "supervise_all_steps": True,
        },
    }
}


class Robomimic(Policy):
    """An algorithm of robomimic's BC family: BC, BC-GMM, BC-RNN(-GMM), BC-Transformer(-GMM).

    It sees a window of To steps, predicts the action of each, and executes the newest one: To = H, Ta = 1. robomimic's own rollouts
    carry a recurrent state and clear it every ``rnn.horizon`` steps; here every action comes from the last To observations, which is
    what training sees.

    Raises:
        MissingExtraError: robomimic is not installed.
        UserError: another algorithm, an unknown option, or steps that do not fit.
    """

    def __init__(self, spec: PolicySpec, config: RobomimicConfig) -> None:
        sections = _sections(config.robomimic, config.file)
        super().__init__(spec, replace(config, file=None, robomimic=sections))
        if spec.horizon != spec.n_obs_steps or spec.n_action_steps != 1:
            raise UserError(
                f"robomimic's algorithms predict the action of each observed step: policy.horizon={spec.horizon} has to equal "
                f"policy.n_obs_steps={spec.n_obs_steps}, and policy.n_action_steps={spec.n_action_steps} has to be 1"
            )
        vectors = [key for key in spec.observations if key not in self.images]
        shapes: dict[str, list[int]] = {key: list(self.representation.shapes[key]) or [1] for key in vectors}
        for key in self.images:
            height, width, channels = spec.observations[key].shape
            shapes[key] = [channels, height, width]
        action_dim = self.representation.shapes["action"][0]
        # In a tuple, since the algorithm is no module: its networks are.
        self._algorithm = (_make_algorithm(sections, vectors, self.images, shapes, action_dim, spec.n_obs_steps),)
        self.nets = self._algorithm[0].nets
        # Ours to apply: left to the network, it would make the validation loss one of standard deviations of 1e-4.
        network = self.nets["policy"]
        self.low_noise = bool(getattr(network, "low_noise_eval", False))
        network.low_noise_eval = False

    def fit_normalizer(self, statistics: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        super().fit_normalizer(statistics)
        self._check_reach()

    def fit(self, batches: Iterable[Batch]) -> None:
        super().fit(batches)
        self._check_reach()

    def _check_reach(self) -> None:
        """Raise a UserError where the networks, which end in tanh, can not answer what was demonstrated."""
        low, high = self.normalizer.limits("action")
        if (reach := max(-low.min().item(), high.max().item())) > 1 + 1e-5:
            raise UserError(
                f"robomimic's networks answer within [-1, 1] and the demonstrations' actions reach {reach:.3g} under "
                f"policy.normalization={self.normalizer.modes['action']}: set policy.normalization={{action: minmax}}"
            )

    def _inputs(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Observations as robomimic takes them: images as float ``[..., C, h, w]`` in [0, 1], scalars as vectors."""
        made = {}
        for key, value in observation.items():
            if key in self.images:
                made[key] = value.movedim(-1, -3).float() / 255
            else:
                made[key] = value if value.dim() > 2 else value[..., None]
        return made

    def _loss(self, observation: dict[str, Tensor], action: Tensor) -> dict[str, Tensor]:
        (algorithm,) = self._algorithm
        algorithm.device = action.device
        batch = algorithm.process_batch_for_training({"obs": self._inputs(observation), "actions": action})
        losses = algorithm._compute_losses(algorithm._forward_training(batch), batch)
        return {"robomimic": losses["action_loss"]}

    def _sample(self, observation: dict[str, Tensor], generator: Generators, held: Held | None) -> Tensor:
        del held
        inputs, network = self._inputs(observation), self.nets["policy"]
        sequential = self._algorithm[0].algo_config.rnn.enabled or self._algorithm[0].algo_config.transformer.enabled
        if not sequential:
            inputs = {key: value[:, 0] for key, value in inputs.items()}
        stochastic = hasattr(network, "forward_train")
        action = self._draw(network.forward_train(inputs), generator) if stochastic else network(inputs)
        return action if sequential else action[:, None]

    def _draw(self, distribution: Any, generator: Generators) -> Tensor:
        """A sample of robomimic's Gaussian or mixture ``[B, ..., A]``, row b by the b-th generator."""
        if hasattr(distribution, "mixture_distribution"):
            chosen = categorical(distribution.mixture_distribution.probs, generator)[..., None, None]
            component = distribution.component_distribution.base_dist
            mean, std = (each.take_along_dim(chosen, dim=-2).squeeze(-2) for each in (component.loc, component.scale))
        else:
            mean, std = distribution.base_dist.loc, distribution.base_dist.scale
        return mean + (LOW_NOISE if self.low_noise else std) * normal(mean.shape, generator, like=mean)


def _sections(given: Mapping[str, Any], file: str | None) -> dict[str, Any]:
    """The sections that count, of a file or as given."""
    if file is None:
        return dict(given)
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"policy.file={file} does not exist: name a robomimic JSON config") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"policy.file={file} is not JSON ({error})") from None
    if not isinstance(content, dict) or content.get("algo_name") != "bc":
        name = content.get("algo_name") if isinstance(content, dict) else None
        raise UserError(
            f"policy.file={file} is for algo_name {name!r}: of robomimic's algorithms the family 'bc' is supported"
        )
    return {key: content[key] for key in ("algo", "observation") if key in content}


def _make_algorithm(
    sections: Mapping[str, Any],
    vectors: list[str],
    images: list[str],
    shapes: Mapping[str, list[int]],
    action_dim: int,
    n_obs_steps: int,
) -> Any:
    make_importable()
    try:
        with redirect_stdout(StringIO()):  # it greets
            from robomimic.algo import algo_factory
            from robomimic.config import config_factory
            from robomimic.utils import obs_utils
    except ImportError:
        raise MissingExtraError("a policy of robomimic's", "robomimic") from None
    config = config_factory("bc")
    try:
        with config.values_unlocked():
            config.update(dict(sections))
            for modality in list(config.observation.modalities.obs):
                config.observation.modalities.obs[modality] = []
            config.observation.modalities.obs.low_dim = vectors
            config.observation.modalities.obs.rgb = images
            for modality in list(config.observation.modalities.goal):
                config.observation.modalities.goal[modality] = []
    except RuntimeError as error:  # an unknown key, in a locked tree
        raise UserError(f"policy.robomimic: {' '.join(str(error).split())}") from None
    if config.algo.vae.enabled:
        raise UserError(
            "policy.robomimic: algo.vae draws from torch's global generator, so its episodes would not come back"
        )
    if config.algo.transformer.enabled:
        with config.values_unlocked():
            config.algo.transformer.context_length = n_obs_steps
    # robomimic keeps which keys are images in a global table, which only the making of networks reads here.
    with redirect_stdout(StringIO()):
        obs_utils.initialize_obs_utils_with_config(config)
        return algo_factory("bc", config, dict(shapes), action_dim, torch.device("cpu"))

"""Denoising diffusion, with diffusers' schedulers for the noise and for the way back."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.errors import UserError
from dopr_robot.policies.networks.planning import at_times
from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes, choose
from dopr_robot.policies.objectives.sampling import Generators, normal
from dopr_robot.policies.options import ObjectiveOptions

SAMPLERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler", "dpm_solver": "DPMSolverMultistepScheduler"}
SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")  # those that all three know
PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass
class DiffusionConfig(ObjectiveOptions):
    """Options of :class:`Diffusion`. Schedule, prediction and clipping are Diffusion Policy's; it samples with 100 DDPM steps.

    Args:
        prediction: what the network answers: ``epsilon`` (the noise), ``sample`` or ``v_prediction``.
        train_steps: length of the noise schedule.
        sampler: ``ddim``, ``ddpm`` or ``dpm_solver`` (DPM-Solver++ of order 2).
        steps: network calls when acting.
        clip: hold every estimate of the clean sample within the demonstrations' range of actions, so many times as wide (1 under
            minmax is Diffusion Policy's), or null.
        time_steps: the network is handed step n of the schedule as time ``n / time_steps``, of which its features are those of
            ``1000 t``. At 1000 they are those of n itself, as Diffusion Policy's are, however long the schedule is. Checkpoints of
            formats 1 and 2 were trained with ``train_steps`` here.
    """

    of_acting = ("sampler", "steps", "clip")
    name: str = "diffusion"
    prediction: str = "epsilon"
    train_steps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    sampler: str = "ddim"
    steps: int = 10
    clip: float | None = 1.0
    time_steps: int = 1000


class Diffusion(Objective):
    """DDPM training (Ho et al., 2020) and a sampler of choice (DDIM: Song et al., 2021; DPM-Solver++: Lu et al., 2022)."""

    def __init__(self, config: DiffusionConfig, sizes: Sizes) -> None:
        super().__init__(sizes, input_dim=sizes.action_dim, output_dim=sizes.action_dim)
        choose("prediction", config.prediction, PREDICTIONS)
        choose("sampler", config.sampler, tuple(SAMPLERS))
        choose("beta_schedule", config.beta_schedule, SCHEDULES)
        if config.steps > config.train_steps:
            raise UserError(f"objective.steps={config.steps} is more than train_steps={config.train_steps}")
        self.config = config

    @cached_property
    def _training_schedule(self) -> Any:
        return self._scheduler("ddpm")

    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the prediction."""
        schedule = self._training_schedule
        noise = torch.randn_like(action)
        step = torch.randint(0, self.config.train_steps, (len(action),), device=action.device)
        noisy = schedule.add_noise(action, noise, step)
        target = {
            "epsilon": lambda: noise,
            "sample": lambda: action,
            "v_prediction": lambda: schedule.get_velocity(action, noise, step),
        }[self.config.prediction]()
        answer = network(noisy, self._time(step, action), condition)
        return {"diffusion": nn.functional.mse_loss(answer, target)}

    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """Denoise from noise to an action sequence ``[B, H, A]``, normalised.

        Held actions are kept at each step's noise level (Lugmayr et al., 2022).
        """
        scheduler = self._scheduler(self.config.sampler, limits)
        scheduler.set_timesteps(self.config.steps, device=condition.device)
        # DDPM draws fresh noise at every step; the others answer with the noise of the start alone.
        options = {"generator": generator} if self.config.sampler == "ddpm" else {}
        shape = (len(condition), self.sizes.horizon, self.sizes.action_dim)
        noise = normal(shape, generator, like=condition)
        x = noise * scheduler.init_noise_sigma
        answer = at_times(network, self._time(scheduler.timesteps, x), condition)
        for number, step in enumerate(scheduler.timesteps):
            if held is not None:
                x = held.over(x, self._training_schedule.add_noise(held.action, noise, step.expand(len(x))))
            x = scheduler.step(answer(x, number), step, x, **options).prev_sample
        x = x if self.config.clip is None else limits.clip(x, self.config.clip)
        return x if held is None else held.over(x)

    def _time(self, step: Tensor, like: Tensor) -> Tensor:
        return step.to(like.dtype) / self.config.time_steps

    def _scheduler(self, sampler: str, limits: Limits | None = None) -> Any:
        import diffusers  # takes seconds to import, so only a diffusion policy pays for it

        clip = None if limits is None else self.config.clip
        # The solver is spaced as DDIM is: the other spacings begin at the last step, where the noise schedule leaves so little of the
        # sample that a small error of the network becomes a large one.
        solver = {"algorithm_type": "dpmsolver++", "solver_order": 2, "timestep_spacing": "leading"}
        scheduler = getattr(diffusers, SAMPLERS[sampler])(
            num_train_timesteps=self.config.train_steps,
            beta_schedule=self.config.beta_schedule,
            prediction_type=self.config.prediction,
            thresholding=clip is not None,
            **(solver if sampler == "dpm_solver" else {"clip_sample": False}),
        )
        if limits is not None and clip is not None:
            # All three hand their estimate to this method, and clip to one number for all dimensions otherwise.
            scheduler._threshold_sample = partial(limits.clip, factor=clip)
        return scheduler

"""Flow matching: learn the velocity of a straight path from noise to data, then integrate it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dopr_robot.policies.networks.planning import at_times
from dopr_robot.policies.objectives.objective import Held, Limits, Objective, Sizes, choose
from dopr_robot.policies.objectives.sampling import Generators, normal
from dopr_robot.policies.options import ObjectiveOptions

# Explicit Runge-Kutta methods: the points inside a step at which the velocity is taken, and their weights in the sum.
# Each point lies on the line of the velocity before it.
INTEGRATORS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "euler": ((0.0,), (1.0,)),
    "midpoint": ((0.0, 0.5), (0.0, 1.0)),
    "heun": ((0.0, 1.0), (0.5, 0.5)),
}


@dataclass
class FlowConfig(ObjectiveOptions):
    """Options of :class:`FlowMatching`.

    Args:
        time: where training looks: ``uniform`` on [0, 1], or ``beta``, 1 - Beta(1.5, 1) stretched to [0, 0.999], which
            looks more at noisy samples (pi0, Black et al., 2024, appendix B).
        integrator: ``euler``, ``midpoint`` or ``heun``.
        steps: integration steps when acting; network calls are steps times the integrator's stages.
        clip: hold the actions that come out within the demonstrations' range, so many times as wide, or null.
    """

    of_acting = ("integrator", "steps", "clip")
    name: str = "flow"
    time: str = "uniform"
    integrator: str = "euler"
    steps: int = 10
    clip: float | None = None


class FlowMatching(Objective):
    """Conditional flow matching on the linear path (Lipman et al., 2023; Liu et al., 2023).

    With noise e and data x, the path is ``x_t = (1 - t) e + t x`` for t in [0, 1] and its velocity ``x - e``; the loss is
    the mean squared error of the predicted velocity.
    """

    def __init__(self, config: FlowConfig, sizes: Sizes) -> None:
        super().__init__(sizes, input_dim=sizes.action_dim, output_dim=sizes.action_dim)
        choose("time", config.time, ("uniform", "beta"))
        choose("integrator", config.integrator, tuple(INTEGRATORS))
        self.config = config

    def loss(self, network: nn.Module, action: Tensor, condition: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the velocity."""
        noise = torch.randn_like(action)
        time = torch.rand(len(action), device=action.device, dtype=action.dtype)
        if self.config.time == "beta":
            # Beta(1.5, 1) has the distribution function x^1.5, so its quantile function is a power.
            time = 0.999 * (1 - time ** (1 / 1.5))
        t = time[:, None, None]
        velocity = network((1 - t) * noise + t * action, time, condition)
        return {"flow": nn.functional.mse_loss(velocity, action - noise)}

    def sample(
        self, network: nn.Module, condition: Tensor, generator: Generators, limits: Limits, held: Held | None = None
    ) -> Tensor:
        """Integrate from noise at t = 0 to an action sequence at t = 1: ``[B, H, A]``, normalised.

        Held actions are kept on the straight path from their noise, where training saw such actions.
        """
        points, weights = INTEGRATORS[self.config.integrator]
        shape = (len(condition), self.sizes.horizon, self.sizes.action_dim)
        x = noise = normal(shape, generator, like=condition)
        step, stages = 1.0 / self.config.steps, len(points)
        times = [(index + point) * step for index in range(self.config.steps) for point in points]
        answer = at_times(network, x.new_tensor(times), condition)
        for index in range(self.config.steps):
            velocity, total = None, x  # the sum of the weighted velocities is taken into x as it comes
            for stage, (point, weight) in enumerate(zip(points, weights, strict=True)):
                number = index * stages + stage
                at = x if velocity is None else torch.add(x, velocity, alpha=point * step)
                if held is not None:
                    at = held.over(at, (1 - times[number]) * noise + times[number] * held.action)
                velocity = answer(at, number)
                total = torch.add(total, velocity, alpha=weight * step) if weight else total
            x = total
        x = x if self.config.clip is None else limits.clip(x, self.config.clip)
        return x if held is None else held.over(x)

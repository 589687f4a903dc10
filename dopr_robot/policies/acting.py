"""From plans to actions: receding horizon, temporal ensembling, and plans that are computed while the last one runs.

The last two need what an episode's earlier calls gave. It lives in the episode's *memory*, a dict that whoever runs the episode keeps
beside the episode's generator, hands to every call of ``act``, and begins empty. So policies hold no state of episodes, and rows of a
batch have nothing to do with one another.
"""

from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dopr_robot.errors import UserError
from dopr_robot.policies.compiling import check_compiler
from dopr_robot.policies.products import fast_products
from dopr_robot.policies.representation import Representation
from dopr_robot.policies.spec import PolicySpec

Memory = Sequence[MutableMapping[str, Any]]
"""One dict an episode, a row of the batch each."""

ONE_THREAD = 16_000_000
"""Between the default networks (0.8 to 4.6 million parameters) and the published U-Nets (from 65 million). The default flow transformer
plans in 14.0 ms on one idle core and in 16.9 on two, and on two that others want too in a median of 388."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass
class ActingConfig:
    """How plans become actions; recorded in the checkpoint, and an argument of ``load_policy`` for another choice.

    Args:
        ensemble: plan at every step and execute the weighted mean of all plans for it (ACT's temporal ensembling); ``n_action_steps``
            is then 1.
        decay: of the ensemble: the weight of the plan number i, the oldest first, is ``exp(-decay * i)``. ACT's value.
        delay: steps that pass while a plan is computed. They are the last plan's, and the new plan is drawn to continue them where the
            objective can (diffusion and flow hold them fixed).
        compile: mode of ``torch.compile`` for the network when acting, or null: ``default``, ``reduce-overhead`` (CUDA graphs on a
            GPU), ``max-autotune``.
        threads: CPU threads that a plan takes at most, of those that torch has; null: one where rows times parameters are at most
            :data:`ONE_THREAD` and no images are read. Threads of small operations wait for one another, and for every other program.
    """

    ensemble: bool = False
    decay: float = 0.01
    delay: int = 0
    compile: str | None = None
    threads: int | None = None


class Acting:
    """What :class:`ActingConfig` says, for one policy.

    Raises:
        UserError: options that contradict each other, or a delay for which the horizon leaves no actions.
    """

    def __init__(self, config: ActingConfig, spec: PolicySpec, representation: Representation) -> None:
        self.config = config
        self.spec = spec
        self.representation = representation
        if config.compile is not None and config.compile not in COMPILE_MODES:
            raise UserError(f"policy.acting.compile={config.compile!r} is none of {', '.join(COMPILE_MODES)}")
        if config.compile is not None:
            check_compiler("policy.acting.compile", "null")
        if config.delay < 0:
            raise UserError(f"policy.acting.delay={config.delay} has to be at least 0")
        if config.threads is not None and config.threads < 1:
            raise UserError(f"policy.acting.threads={config.threads} has to be at least 1")
        if config.ensemble and config.delay:
            raise UserError("policy.acting: ensemble and delay exclude each other: an ensemble waits for its plans")
        if config.decay < 0:
            raise UserError(f"policy.acting.decay={config.decay} has to be at least 0")
        if config.delay > spec.n_action_steps:
            raise UserError(
                f"policy.acting.delay={config.delay} is more than n_action_steps={spec.n_action_steps}: a plan has to be done "
                "before the next is begun"
            )
        longest = spec.horizon - spec.n_obs_steps + 1
        if spec.n_action_steps + config.delay > longest:
            raise UserError(
                f"policy.acting.delay={config.delay} after n_action_steps={spec.n_action_steps} is beyond the plan: together "
                f"at most horizon - n_obs_steps + 1 = {longest}"
            )

    @property
    def n_action_steps(self) -> int:
        """Actions that one call gives."""
        return 1 if self.config.ensemble else self.spec.n_action_steps

    @property
    def remembers(self) -> bool:
        """Whether calls have to be given the episodes' memory."""
        return self.config.ensemble or self.config.delay > 0

    @contextmanager
    def on_threads(self, work: int) -> Iterator[None]:
        """Torch's number of CPU threads while a plan is computed that is ``work`` large (see :class:`ActingConfig`).

        A large one takes the products that fit the processor, which it costs 0.3 ms to ask for: of the published U-Net one call on two
        threads is computed in 15 ms, and in 28 without.
        """
        given, large = torch.get_num_threads(), work > ONE_THREAD
        most = self.config.threads or (given if large else 1)
        with fast_products() if large else nullcontext():
            if given <= most:
                yield
                return
            torch.set_num_threads(most)
            try:
                yield
            finally:
                torch.set_num_threads(given)

    def under_way(self, memory: Memory | None, like: Tensor) -> tuple[Tensor, Tensor] | None:
        """What earlier plans say about this call's steps ``[B, H, A]``, and the mask ``[B, H, 1]`` of those that are under way.

        None where nothing is.
        """
        if memory is None or not self.config.delay or not any("plan" in each for each in memory):
            return None
        shape = (self.spec.horizon, self.spec.action_dim)
        plans = torch.zeros(len(memory), *shape, dtype=like.dtype, device=like.device)
        mask = torch.zeros(len(memory), self.spec.horizon, 1, dtype=torch.bool, device=like.device)
        first = self.spec.n_obs_steps - 1
        for row, each in enumerate(memory):
            if "plan" in each:
                rest = each["plan"][self.spec.n_action_steps :].to(plans)
                plans[row, : len(rest)] = rest
                plans[row, len(rest) :] = rest[-1]
                mask[row, first : first + self.config.delay] = True
        return plans, mask

    def actions(self, plans: Tensor, memory: Memory | None) -> Tensor:
        """Actions to execute ``[B, Ta, A]`` of new plans ``[B, H, A]``, with the episodes' memory brought up to date."""
        first = self.spec.n_obs_steps - 1
        if self.config.ensemble:
            return self._mean(plans[:, first:], memory)
        if memory is not None and self.config.delay:
            for each, plan in zip(memory, plans, strict=True):
                each["plan"] = plan.clone()
        return plans[:, first : first + self.spec.n_action_steps]

    def _mean(self, plans: Tensor, memory: Memory | None) -> Tensor:
        """Means are taken of the network's form, in which rotations can be averaged: ``[B, H - To + 1, A] -> [B, 1, A]``."""
        plans = self.representation.read("action", plans)
        means = []
        for row, plan in enumerate(plans):
            each = {} if memory is None else memory[row]
            # Oldest first; of each plan what begins with the present step.
            each["plans"] = [old[1:] for old in each.get("plans", []) if len(old) > 1] + [plan.clone()]
            now = torch.stack([old[0] for old in each["plans"]])
            weights = torch.exp(-self.config.decay * torch.arange(len(now), dtype=now.dtype, device=now.device))
            means.append((weights[:, None] * now).sum(0) / weights.sum())
        return self.representation.write(torch.stack(means)[:, None])

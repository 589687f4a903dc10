"""One step: statistics of the layers that are due, their inverses formed anew, gradients multiplied."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim.batch import BatchInverse, factorise, parts_of
from dopr_robot.optim.checks import WarnOnce
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.finite import FiniteCheck
from dopr_robot.optim.groups import Groups
from dopr_robot.optim.inverses import form_inverses, in_chunks
from dopr_robot.optim.multiply import precondition_
from dopr_robot.optim.order import is_preconditioned, mark_preconditioned
from dopr_robot.optim.owners import borrowed, hand_out
from dopr_robot.optim.sketch import Sketch
from dopr_robot.optim.turns import has_turn


class Refresh:
    """What the inputs of one step say, of the factors that are due; nothing is changed before :meth:`commit`.

    Args:
        due: factors that have inputs.
        stat_decay, rank, process_group: the preconditioner's.

    Attributes:
        statistics: what has to be finite.
        waits: whether there is no inverse yet to go on with on CUDA, where the answer is not waited for.
    """

    def __init__(
        self,
        due: Sequence[Factor],
        groups: Groups,
        finite: FiniteCheck,
        *,
        stat_decay: float,
        rank: int | str,
        process_group: Any = None,
    ) -> None:
        self.groups, self.finite, self.stat_decay, self.rank = groups, finite, stat_decay, rank
        self.process_group = process_group
        self.sketches = [Sketch(f, 0.0 if f.form == "sketch" else stat_decay) for f in due if f.sketched]
        grams: dict[Any, Tensor] = {}
        self.solves = {factor: BatchInverse(factor, grams) for factor in due if factor.solved}
        self.kept = [factor for factor in due if not factor.solved and not factor.sketched]
        self.moments = {factor: factor.batch_moments() for factor in self.kept if factor.mine}
        traces = [solve.trace for solve in self.solves.values()] + [sketch.trace for sketch in self.sketches]
        self.statistics = [*traces, *(moment for parts in self.moments.values() for moment in parts.values())]
        dampings = [self._damping(factor) for factor in self.solves]
        # What is factorised together, which is when the first of its layers is multiplied.
        self.parts = {solve: part for part in parts_of(list(self.solves.values()), dampings) for solve in part.solves()}
        self.waits = any(not factor.ready for factor in due if not factor.solved)

    def commit(self, step: int, warn: WarnOnce) -> None:
        """Take the statistics up, and form the inverses of what is kept: a part at a time, and what a part is made of is let go."""
        self.warn = warn
        formed_anew = [*self.kept, *(sketch.factor for sketch in self.sketches)]
        self.statistics.clear()
        for part in in_chunks(sorted(self.moments, key=lambda factor: (self._damping(factor), factor.dim))):
            for factor in part:
                self._take(factor, factor.average(self.moments.pop(factor), self.stat_decay))
            for damping, same in groupby(part, self._damping):
                for factor, raised in form_inverses(list(same), damping, self.rank):
                    self._tell(factor, raised)
            for factor in part:
                factor.keep()
        while self.sketches:
            sketch = self.sketches.pop()
            formed, raised = sketch.form(self._damping(sketch.factor))
            self._take(sketch.factor, formed)
            self._tell(sketch.factor, raised)
            sketch.factor.keep()
        hand_out(self.kept, self.rank, self.process_group)
        for factor in (*formed_anew, *self.solves):
            factor.refreshed = step

    def _damping(self, factor: Factor) -> float:
        return self.groups.damping(factor.weight) if factor.damping is None else factor.damping

    def _tell(self, factor: Factor, raised: Tensor) -> None:
        if not raised.is_cuda and bool(raised.any()):
            self.warn(
                f"the second moment of {factor.name} could not be factorised with damping {self._damping(factor):g}: it was raised"
            )

    def _take(self, factor: Factor, new: dict[str, Tensor]) -> None:
        factor.state |= {
            key: self.finite.unless_bad(factor.value(key) if key in factor.state else value, value)
            for key, value in new.items()
        }
        if not factor.compare:  # with this step's own S
            factor.sums, factor.rows = {}, []

    def multiply(self, active: Sequence[Factor], step: int) -> list[nn.Parameter]:
        """Multiply the gradients of ``active`` by their inverses, in place. Returns whose were."""
        turned: list[nn.Parameter] = []
        for factor in active:
            gradient, solve = factor.weight.grad, self.solves.get(factor)
            if gradient is None or not (factor.ready or solve) or is_preconditioned(gradient):
                continue
            turn = solve is None or factor.last is None or has_turn(factor, self.groups, step)
            looked_at = factor.refreshed == step and turn
            if solve is not None and looked_at:
                factor.last = solve
            exact = None
            if looked_at and factor.compare and factor.matrix and factor.diagonal is None and factor.bias is None:
                factor.compare, exact = False, BatchInverse(factor) if solve is None else None
                factor.cosine = torch.ones(())
                if exact is not None:
                    factorise([exact], [self._damping(factor)])
            if solve is not None:
                self._factorise(factor, solve)
            with borrowed(factor, self.rank, self.process_group):
                precondition_(factor, solve, measure=looked_at, exact=exact)
            if solve is not None:
                self._release(factor)
            turned += [factor.weight] if factor.bias is None else [factor.weight, factor.bias]
        return turned

    def _factorise(self, factor: Factor, solve: BatchInverse) -> None:
        if solve.raised is None:
            self.parts.pop(solve).factorise()
        assert solve.raised is not None
        self._tell(factor, solve.raised)

    def _release(self, factor: Factor) -> None:
        """Let go of what a factor solved with."""
        solve, factor.sums, factor.rows = self.solves.pop(factor), {}, []
        self.parts.pop(solve, None)
        solve.release()


def finish(turned: Sequence[nn.Parameter], max_update_norm: float | None) -> None:
    """Scale what was multiplied down to a norm, and remember that it was."""
    if max_update_norm is not None and turned:
        nn.utils.clip_grad_norm_(turned, max_update_norm)
    for parameter in turned:
        mark_preconditioned(parameter.grad)

"""Activation-wise preconditioning of a model's gradients, for any optimizer."""

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dopr_robot.optim.batch import BatchInverse
from dopr_robot.optim.capture import AttentionEnd, AttentionRecorder, Recorder
from dopr_robot.optim.checks import check_preconditioning
from dopr_robot.optim.coverage import Coverage, find_factors, plain_name
from dopr_robot.optim.distributed import average_over_ranks, ranks, refuse_sharded
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.finite import FiniteCheck
from dopr_robot.optim.inverses import form_inverses
from dopr_robot.optim.masks import TokenMasks
from dopr_robot.optim.memory import memory_bytes, planned_bytes
from dopr_robot.optim.sketch import Sketch, fit_cost, settle_rank
from dopr_robot.optim.spectrum import Spectrum, spectrum_of
from dopr_robot.optim.substitute import Substitution, SubstitutionEnd, may_substitute

REPLACED = (
    "the model's weights were replaced after the optimizer was made (another layer, to_empty, load_state_dict(assign=True), "
    "parallelize_module)"
)
Damping = float | Callable[[int], float]


class ActivationPreconditioner:
    r"""Multiplies the gradient of every supported weight by the damped inverse second moment of the weight's inputs.

    For a layer with gradient G ``[out, in]`` and inputs :math:`z_1 .. z_n` since the last step (every token or position is one):

    .. math::
        S = \tfrac1n \sum_i z_i z_i^\top, \qquad
        M = G\,\bigl(S + \text{damping} \cdot \tfrac{\operatorname{tr} S}{d_{in}} I\bigr)^{-1}

    M replaces G in ``weight.grad``. Source: Double Preconditioning, arXiv 2606.06418; theory in arXiv 2502.01763.

    Args:
        model: the model whose forward is to be watched. Where it is wrapped (DDP), the wrapped one serves as well.
        form: what S is. ``"batch"``: of this step's inputs alone, as in the paper, exact at every step, with nothing to keep; by the
            smaller of a ``d x d`` and an ``n x n`` matrix, see :mod:`dopr_robot.optim.batch`. ``"average"``: a running average, and its
            whole inverse. ``"low_rank"``: the average, of which a few leading directions are treated one by one. ``"sketch"``,
            ``"average_sketch"``: this step's S or the average by leading directions alone, without a ``d x d`` matrix, see
            :mod:`dopr_robot.optim.sketch`. ``"auto"``: ``"batch"`` in a layer that has more inputs than a step brings vectors (d > n, found
            out at the first step), else ``"average"``.
        damping: relative to the mean eigenvalue of S; positive; a number, or a function of the step (counted from 0).
        stat_decay: of an averaged S, the weight of the past at each refresh.
        update_every: an averaged S and its inverse are formed anew at every ``update_every``-th step. The layers take turns.
        warmup_steps: for so many steps only gather statistics and leave the gradients as they are.
        conv: ``"sua"`` (the channels' second moment, for every kernel tap) or ``"unfold"`` (exact, of patches).
        include: glob patterns; only weights with a name that matches one (``"encoder.*"``) are preconditioned.
        exclude: glob patterns of weights that are left alone.
        max_dim: an S of more inputs than this is taken in blocks on the diagonal; where that cannot be, the layer is left to the base.
        max_cost: the share of a layer's own forward and backward, in multiplications, that preconditioning may cost. Where the exact form
            is dearer, a sketch of the same S takes its place from the first step on, with as many directions as that pays for.
        include_bias: precondition biases too, as the weight of an input that is always 1 (homogeneous coordinate).
        rank: with ``"low_rank"`` and the sketches, treat so many leading directions of S one by one and the others by their mean
            eigenvalue, in layers with more than 128 inputs; ``"auto"``: ``max(16, inputs // 32)``.
        max_tokens: form S from so many tokens, spread over the batch (whole images and sequences that hold so many); None: all.
        max_nonfinite: raise after so many steps in a row with NaN or inf in gradients or statistics.
        state_dtype: ``"bfloat16"``: keep averaged moments and inverses in half the memory; they are computed with in float32.
        offload: keep what only a refresh needs (the averaged moments) in the CPU's memory.
        in_backward: where this step's S is inverted by the dual form, have the backward give ``weight.grad`` M in place of G, by the very
            product that G would have cost: cheaper, and as exact. Until ``step()`` it has the length of G, so that clipping by the norm,
            loss scales and accumulation do what they did; but who reads its entries before, or changes them one by one, meets M.
        parameters: the parameters that may be preconditioned; None: all of the model's.
        process_group: the ranks over which statistics are averaged where ``torch.distributed`` is initialised; None: all; False: none.

    Raises:
        ValueError: for a value out of range, or a model without a supported layer.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        # docs/optimizer.md has the reason of every default. Measured on PushT (U-Net, 100 steps, benchmarks/optimizer_defaults.py),
        # held-out loss 0.208 with stat_decay 0.9 and 0.217 with 0, 0.212 refreshing at every step, 0.209 with the whole inverse.
        # damping is chosen by rollouts, not by this loss (0.196 at 1, 0.231 at 0.01).
        form: str = "auto",
        damping: Damping = 0.1,
        stat_decay: float = 0.9,
        update_every: int = 10,
        warmup_steps: int = 0,
        conv: str = "sua",
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        include_bias: bool = False,
        rank: int | str = "auto",
        max_tokens: int | None = None,
        max_nonfinite: int = 10,
        max_dim: int | None = 8192,
        max_cost: float | None = None,
        state_dtype: torch.dtype | str | None = None,
        offload: bool = False,
        in_backward: bool = False,
        parameters: Iterable[nn.Parameter] | None = None,
        process_group: Any = None,
    ) -> None:
        check_preconditioning(
            form=form,
            damping=damping,
            stat_decay=stat_decay,
            update_every=update_every,
            warmup_steps=warmup_steps,
            conv=conv,
            rank=rank,
            max_tokens=max_tokens,
            max_nonfinite=max_nonfinite,
            max_dim=max_dim,
            max_cost=max_cost,
            state_dtype=state_dtype,
        )
        lazy = [name for name, p in model.named_parameters() if isinstance(p, nn.UninitializedParameter)]
        if lazy:
            raise ValueError(f"{lazy[0]} has no shape yet: run the lazy model once before making the optimizer")
        refuse_sharded(model)
        self.model = model
        self.damping = damping
        self.stat_decay = stat_decay
        self.update_every = update_every
        self.warmup_steps = warmup_steps
        self.rank = rank
        self.max_tokens = max_tokens
        self.max_cost = max_cost
        self.state_dtype = torch.bfloat16 if state_dtype == "bfloat16" else state_dtype
        self.offload = offload
        self.in_backward = in_backward and max_tokens is None
        self.process_group = process_group
        self.step = 0
        self.finite = FiniteCheck(max_nonfinite, self._warn_once)
        self._warned: set[str] = set()
        self._masks = TokenMasks()
        self._hooks: list[Any] = []
        self._attached: list[Any] = []
        self.form = form
        self._choice: dict[str, Any] = {
            "form": form,
            "conv": conv,
            "include_bias": include_bias,
            "max_dim": max_dim,
            "include": include,
            "exclude": exclude,
        }
        self.factors, self._left = find_factors(model, **self._choice, parameters=parameters)
        self._parameters = list(model.parameters())
        if not self.factors:
            reasons = "; ".join(sorted(set(self._left.values()))[:3])
            raise ValueError(
                f"{type(model).__name__} has no layer to precondition ({reasons or 'it has no parameters'})"
            )
        self._prepare()

    def _prepare(self) -> None:
        """Tell the factors how to keep their state, give each its turn, and watch the model."""
        for factor in self.factors:
            factor.state_dtype, factor.offload = self.state_dtype, self.offload
        self._stagger()
        self._register_hooks()

    def precondition_(self, *, wait: bool = False) -> bool:
        """Replace the gradients G by M, in place, and forget the inputs since the last call.

        Returns:
            False where a gradient or a statistic is not finite: then nothing was changed, and the step is to be left out. On CUDA
            that is not waited for unless ``wait`` says so: ``found_inf`` [1.0 or 0.0] says it on the device, to a base that looks there
            before it steps (torch's fused ones); statistics stay as they were and gradients become 0.

        Raises:
            RuntimeError: without a forward or a backward since the last call, and after ``max_nonfinite`` bad steps in a row.
        """
        self._check_order()
        with torch.no_grad():
            due = average_over_ranks(
                self.factors, [factor for factor in self.factors if factor.seen], self.process_group
            )
            for factor in due:
                if factor.form == "auto":
                    factor.form = "batch" if factor.rows else "average"
                if self.max_cost is not None and factor.refreshed < 0:
                    fit_cost(factor, self.max_cost, self.update_every)
                settle_rank(factor, self.rank)
            sketches = [
                Sketch(factor, 0.0 if factor.form == "sketch" else self.stat_decay) for factor in due if factor.sketched
            ]
            solves = {factor: factor.early or BatchInverse(factor) for factor in due if factor.solved}
            kept = [factor for factor in due if not factor.solved and not factor.sketched]
            moments = [factor.batch_moments() for factor in kept]
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            traces = [each.trace for each in (*solves.values(), *sketches)]
            statistics = [*traces, *(moment for parts in moments for moment in parts.values())]
            bad = self.finite.bad([*gradients, *statistics], self.factors[0].weight.device)
            # On CUDA the answer would have to be waited for: it stays there, except at a layer's first refresh.
            self.finite.found_inf = (
                bad if bad.is_cuda and not wait and all(factor.ready for factor in due if not factor.solved) else None
            )
            if self.found_inf is None and bool(bad):
                self._begin_step(self.step)
                self.finite.skip()
                return False
            self._refresh(kept, moments, solves, sketches)
            if self.step >= self.warmup_steps:
                self._apply(solves)
            self.finite.count(gradients, self.step)
        self._begin_step(self.step + 1)
        return True

    def forget_inputs(self) -> None:
        """Forget the inputs since the last step, whose step is left out."""
        self._begin_step(self.step)

    def attach(self, optimizer: Optimizer) -> "ActivationPreconditioner":
        """Precondition before every step of ``optimizer``, which is otherwise used as before."""

        def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(callable(argument) for argument in (*args[1:], *kwargs.values())):
                raise RuntimeError(
                    "an attached preconditioner cannot see gradients made inside a closure: use DoPr, or no closure"
                )
            if not self.precondition_(wait=True):
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None  # a step over no gradients changes nothing

        self._attached.append(optimizer.register_step_pre_hook(before_step))
        return self

    def detach(self) -> None:
        """Remove every hook from the model and from the optimizers that this was attached to."""
        for handle in (*self._hooks, *self._attached):
            handle.remove()
        self._hooks, self._attached = [], []

    def token_mask(self, *masks: Tensor) -> AbstractContextManager[None]:
        """Leave padding out of S for forwards in this context.

        Each mask is bool, true where a token counts, shaped as the tokens of the layers that it is meant for (``[B, T]``). A layer
        with tokens of another shape takes all of them. An attention module's inputs are matched batch first.

        Raises:
            ValueError: where a mask fitted no layer that was recorded.
        """
        return self._masks.given(masks)

    def allow(self, parameters: Iterable[nn.Parameter]) -> None:
        """Precondition these parameters from the next forward on; the ones preconditioned so far keep their statistics."""
        known = {factor.name: factor for factor in self.factors}
        factors, self._left = find_factors(self.model, **self._choice, parameters=parameters)
        self._parameters = list(self.model.parameters())
        self.factors = [known.get(factor.name, factor) for factor in factors]
        for handle in self._hooks:
            handle.remove()
        self._hooks = []
        self._prepare()
        self._begin_step(self.step)

    def coverage(self) -> Coverage:
        """Every parameter of the model: preconditioned and how, or left to the base and why."""
        return Coverage.of(self.model, self.factors, self._left, started=self.step > 0)

    def spectrum(self) -> dict[str, Spectrum]:
        """For each layer its condition number, effective rank, the share of the gradient that was turned, and how near its form of S comes
        to this step's own: that costs a solve, at each layer's next refresh after a call, so the first call has None there.
        """
        for factor in self.factors:
            factor.compare = True
        return {factor.name: spectrum_of(factor) for factor in self.factors if factor.ready or factor.last is not None}

    def log_spectrum(self, writer: Any, step: int | None = None) -> None:
        """Write :meth:`spectrum` to a TensorBoard ``SummaryWriter``, under ``dopr/<figure>/<layer>``."""
        for name, spectrum in self.spectrum().items():
            for figure, value in spectrum._asdict().items():
                if value is None:
                    continue
                writer.add_scalar(f"dopr/{figure}/{name}", value, self.step if step is None else step)

    def memory_usage(self, tokens: int | None = None) -> dict[str, int]:
        """Bytes held for each layer, and in all under ``"total"``.

        Args:
            tokens: what will be held, at a step that brings so many input vectors, instead of what is: for a model that has not been
                trained yet, which may be on the meta device. The inputs on their way to the step are counted at every layer that takes
                its turn in that step.
        """
        if tokens is None:
            usage = {factor.name: memory_bytes(factor) for factor in self.factors}
        else:
            n = min(tokens, self.max_tokens or tokens)
            usage = {
                factor.name: planned_bytes(factor, n, self.rank, at_work=factor.phase == 0) for factor in self.factors
            }
        return usage | {"total": sum(usage.values())}

    def state_dict(self) -> dict[str, Any]:
        """Step, counters, and for each layer its form, and of an averaged S the moments, the inverse and the step of its last refresh."""
        self.finite.read()
        return {
            "version": 2,
            "step": self.step,
            "skipped": self.finite.skipped,
            "skipped_in_a_row": self.finite.in_a_row,
            "factors": {
                factor.name: {
                    "form": factor.form,
                    "refreshed": factor.refreshed,
                    "turned": factor.turned,
                    **factor.state,
                }
                for factor in self.factors
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left, under other options as far as they allow: what does not fit is formed anew.

        Raises ValueError where the layers are others.
        """
        saved = {plain_name(name): values for name, values in state["factors"].items()}
        known, given = {factor.name for factor in self.factors}, set(saved)
        if known != given:
            raise ValueError(
                f"the state is another model's: {len(given - known)} layers are not here ({', '.join(sorted(given - known)[:3])}), "
                f"{len(known - given)} are missing ({', '.join(sorted(known - given)[:3])})"
            )
        self.finite.skipped, self.finite.in_a_row = int(state["skipped"]), int(state["skipped_in_a_row"])
        anew = [factor.name for factor in self.factors if not factor.load(saved[factor.name], self.rank)]
        if anew:
            warnings.warn(
                f"the state was saved under other options (form, rank, conv or include_bias): {len(anew)} layers "
                f"({', '.join(anew[:3])}) form their inverse anew at the next step",
                stacklevel=3,
            )
        self._begin_step(int(state["step"]))

    def _check_order(self) -> None:
        gradients = [factor.weight.grad for factor in self.factors if factor.weight.grad is not None]
        if not gradients:
            if self._replaced():
                raise RuntimeError(f"{REPLACED}: make the base and DoPr after that")
            raise RuntimeError("no gradient to precondition: run the model, then loss.backward(), before step()")
        if not any(factor.seen or factor.ready for factor in self.factors):
            raise RuntimeError(
                "gradients without a forward: no layer has seen an input that a gradient came back for. Are they of another copy of the "
                "model, or was it run, or compiled and run (torch.compiler.reset() then), before this optimizer was made?"
            )
        if self.step % 100 == 1 and (gone := self._replaced()):
            self._warn_once(f"{REPLACED}, of {len(gone)} layers ({', '.join(gone[:3])}): they are not preconditioned")
        if all(getattr(gradient, "_preconditioned_at", -1) == gradient._version for gradient in gradients):
            raise RuntimeError(
                "the gradients are those of the last step, preconditioned already: zero them, then run forward and backward "
                "(inside the closure, where there is one) before step()"
            )
        unseen = [
            factor.name
            for factor in self.factors
            if factor.weight.grad is not None and not factor.seen and factor.refreshed < 0
        ]
        if unseen:
            self._warn_once(
                f"{len(unseen)} weights got a gradient but their layers saw no input ({', '.join(unseen[:3])}): they are left to the base "
                "optimizer. Is the weight used without calling its module?"
            )

    def _replaced(self) -> list[str]:
        """Names of the weights that are not in the model any more."""
        here = set(self.model.parameters())
        return [factor.name for factor in self.factors if factor.weight not in here]

    def _refresh(
        self,
        kept: list[Factor],
        moments: list[dict[str, Tensor]],
        solves: dict[Factor, BatchInverse],
        sketches: list[Sketch],
    ) -> None:
        damping = self._damping()
        for factor, parts in zip(kept, moments, strict=True):
            moved = factor.average(parts, self.stat_decay)
            factor.state |= {
                key: self.finite.unless_bad(factor.value(key) if key in factor.state else new, new)
                for key, new in moved.items()
            }
        strengthened = form_inverses(kept, damping, self.rank)
        strengthened += [(factor, solve.factorise(damping)) for factor, solve in solves.items()]
        for sketch in sketches:
            formed, raised = sketch.form(damping)
            state = sketch.factor.state
            state |= {
                key: self.finite.unless_bad(sketch.factor.value(key) if key in state else new, new)
                for key, new in formed.items()
            }
            strengthened.append((sketch.factor, raised))
        for factor, raised in strengthened:
            if not raised.is_cuda and bool(raised.any()):
                self._warn_once(
                    f"the second moment of {factor.name} could not be factorised with damping {damping:g}: it was raised"
                )
        for factor in (*kept, *(sketch.factor for sketch in sketches)):
            factor.keep()
        for factor in (*kept, *solves, *(sketch.factor for sketch in sketches)):
            factor.refreshed = self.step

    def _apply(self, solves: dict[Factor, BatchInverse]) -> None:
        for factor in self.factors:
            gradient, solve = factor.weight.grad, solves.get(factor)
            if (
                gradient is None
                or not (factor.ready or solve)
                or getattr(gradient, "_preconditioned_at", -1) == gradient._version
            ):
                continue
            looked_at = factor.refreshed == self.step and (solve is None or self._has_turn(factor, self.step))
            if solve is not None and looked_at:
                factor.last = solve
            exact = None
            if (
                looked_at
                and factor.compare
                and factor.matrix is not None
                and factor.diagonal is None
                and factor.bias is None
            ):
                factor.compare, exact = False, BatchInverse(factor) if solve is None else None
                factor.cosine = torch.ones(())
                if exact is not None:
                    exact.factorise(self._damping())
            factor.precondition_(solve, measure=looked_at and factor.early is None, exact=exact)
            if looked_at and factor.early is not None:
                factor.turned = factor.early.turned()
            factor.alone = solve is not None and solve.d is not None and len(factor.rows) == 1
            if solve is not None:
                solve.release()
            gradient._preconditioned_at = gradient._version  # type: ignore[attr-defined]

    def _damping(self) -> float:
        damping = self.damping(self.step) if callable(self.damping) else self.damping
        if not 0 < damping < math.inf:
            raise ValueError(f"damping(step={self.step}) gave {damping}: it must be a positive number")
        return damping

    def _has_turn(self, factor: Factor, step: int) -> bool:
        return step % self.update_every == factor.phase

    @property
    def skipped(self) -> int:
        """Steps left out for NaN or inf."""
        return self.finite.skipped

    @property
    def found_inf(self) -> Tensor | None:
        """[1.0 or 0.0] on the device: whether the step just preconditioned is to be left out; None where that was known here."""
        return self.finite.found_inf

    def _begin_step(self, step: int) -> None:
        self.step = step
        for factor in self.factors:
            if factor.seen or factor.due:
                factor.clear()
            # An embedding's frequencies cost nothing, and a rare token is known only at the step that brings it.
            factor.due = not factor.ready or factor.fresh or factor.matrix is None or self._has_turn(factor, step)
            factor.substitutes = (
                self.in_backward and factor.alone and step >= self.warmup_steps and ranks(self.process_group) == 1
            )

    def _stagger(self) -> None:
        """Spread the refreshes over ``update_every`` steps: the costliest first, each to the step that has least to do."""
        load = [0] * self.update_every
        for factor in sorted(self.factors, key=lambda factor: -factor.cost):
            factor.phase = load.index(min(load))
            load[factor.phase] += factor.cost

    def _register_hooks(self) -> None:
        by_module: dict[nn.Module, dict[str, Recorder]] = {}
        for factor in self.factors:
            for layer in factor.layers:
                role = getattr(layer, "role", "input")
                by_module.setdefault(layer.module, {})[role] = Recorder(
                    factor, layer, self._masks.find, self.max_tokens
                )
        for module, recorders in by_module.items():
            if isinstance(module, nn.MultiheadAttention):
                hook = AttentionRecorder(module, recorders)
                self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                end = AttentionEnd(hook)
                self._hooks.append(module.register_forward_hook(end, with_kwargs=True, always_call=True))
            elif self.in_backward and may_substitute(recorders["input"].factor):
                begin = Substitution(recorders["input"], self._damping)
                self._hooks.append(module.register_forward_pre_hook(begin, with_kwargs=True))
                self._hooks.append(
                    module.register_forward_hook(SubstitutionEnd(begin), with_kwargs=True, always_call=True)
                )
            else:
                self._hooks.append(module.register_forward_hook(recorders["input"], with_kwargs=True))

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)

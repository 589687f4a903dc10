"""Activation-wise preconditioning of a model's gradients, for any optimizer."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dopr_robot.optim.capture import Beginning, Recorder
from dopr_robot.optim.checks import WarnOnce, check_preconditioning
from dopr_robot.optim.coverage import Coverage, find_factors, plain_name, reason_to_leave_stack
from dopr_robot.optim.distributed import average_over_ranks, same_on_all_ranks
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.finite import FiniteCheck
from dopr_robot.optim.groups import Damping, Groups, check_damping
from dopr_robot.optim.kinds import STACK, kind_of
from dopr_robot.optim.layers import Experts
from dopr_robot.optim.masks import TokenMasks
from dopr_robot.optim.memory import usage_of
from dopr_robot.optim.order import check_order
from dopr_robot.optim.owners import assign_owners, with_shares
from dopr_robot.optim.role_rules import find_input_layers
from dopr_robot.optim.sharding import agree, local, refuse_unknown_sharding
from dopr_robot.optim.sketch import settle_rank
from dopr_robot.optim.sources import (
    Hooks,
    Models,
    Parameters,
    as_named,
    find_names,
    one_model,
    record_inputs,
    watch_modules,
)
from dopr_robot.optim.spectrum import Spectrum, spectra_of, write_spectrum
from dopr_robot.optim.stacks import UNSEEN, Use
from dopr_robot.optim.state import VERSION, by_weight, counters_of, gathered_entry, is_entry, pack, unpack, unpack_all
from dopr_robot.optim.step import Refresh, finish
from dopr_robot.optim.turns import is_due, share_turns

_AUTO_COST = 0.5  # of "auto": a flow transformer's step is then 1.41 of its base's (docs/optimizer.md)


class ActivationPreconditioner:
    r"""Multiplies the gradient of every supported weight by the damped inverse second moment of the weight's inputs.

    For a layer with gradient G ``[out, in]`` and inputs z₁ … zₙ since the last step (every token or position is one):

        S = 1/n Σ zᵢ zᵢᵀ
        M = G (S + damping · tr(S)/d_in · I)⁻¹

    M replaces G in ``weight.grad``. Source: Double Preconditioning, arXiv 2606.06418; theory in arXiv 2502.01763.

    Args:
        model: the model whose forward is to be watched; a list or a dict of several. Where it is wrapped (DDP), the wrapped one serves as
            well. None: the uses of ``parameters`` are found in the modules that run.
        form: what S is. ``"batch"``: of this step's inputs alone, as in the paper, exact at every step, with nothing to keep; by the
            smaller of a ``d x d`` and an ``n x n`` matrix, see :mod:`dopr_robot.optim.batch`. ``"average"``: a running average, and its
            whole inverse. ``"low_rank"``: the average, of which a few leading directions are treated one by one. ``"sketch"``,
            ``"average_sketch"``: this step's S or the average by leading directions alone, without a ``d x d`` matrix, see
            :mod:`dopr_robot.optim.sketch`. ``"auto"``: ``"batch"`` within ``max_cost=0.5``.
        damping: relative to the mean eigenvalue of S; positive; the smaller, the steeper the model gets along inputs that hardly vary in
            the data: where these decide, that is what wins, and where the data do not tell what they are good for it costs success. To
            be searched by rollouts, over 0.1, 1 and 10 (docs/choosing.md). A number, a function of the step (counted from 0), or
            ``{"schedule": "cosine" | "linear" | "geometric", "from": ..., "to": ..., "steps": ...}``. ``damping``, ``update_every`` and
            ``precondition`` (false: leave the gradients of this group alone) may stand in a param group, and be changed there.
        input_damping: of the layers that take the model's own inputs (observations, noisy actions, tokens; by
            :func:`~dopr_robot.optim.role_rules.find_input_layers`), whatever group they are in; None: as ``damping``. With 0.1 there and
            1 elsewhere it was level with 0.1 everywhere where that gains most, at about half of its losses at most (docs/evidence.md).
        stat_decay: of an averaged S, the weight of the past at each refresh.
        update_every: an averaged S and its inverse are formed anew at every ``update_every``-th step. The layers take turns.
        warmup_steps: for so many steps only gather statistics and leave the gradients as they are.
        conv: ``"sua"`` (the channels' second moment, for every kernel tap) or ``"unfold"`` (exact, of patches).
        include: glob patterns; only weights with a name that matches one (``"encoder.*"``) are preconditioned.
        exclude: glob patterns of weights that are left alone.
        max_dim: an S of more inputs than this is taken in blocks on the diagonal; where that cannot be, the layer is left to the base.
        max_cost: of ``"batch"``, the share of a layer's own forward and backward, in multiplications, that preconditioning may cost. Where
            it is dearer, S is formed of as many of the inputs, spread over the batch, as that pays for, see
            :mod:`dopr_robot.optim.budget`.
        include_bias: precondition biases too, as the weight of an input that is always 1 (homogeneous coordinate).
        rank: with ``"low_rank"`` and the sketches, treat so many leading directions of S one by one and the others by their mean
            eigenvalue, in layers with more than 128 inputs; ``"auto"``: ``max(16, inputs // 32)``.
        max_tokens: form S from so many tokens, spread over the batch (whole images and sequences that hold so many); None: all.
        max_nonfinite: raise after so many steps in a row with NaN or inf in gradients or statistics.
        max_update_norm: scale the preconditioned gradients M down where their joint Euclidean norm is larger. Clipping G before the step
            scales M by the same factor, but knows nothing of S: where S has small eigenvalues M may be long though G is short.
        state_dtype: ``"bfloat16"``: keep averaged moments and inverses in half the memory; they are computed with in float32.
        offload: keep what only a refresh needs (the averaged moments) in the CPU's memory.
        owned: of averaged forms, what of a layer whose weight is sharded one rank alone keeps: ``"moments"`` (it forms the inverse, and
            all hold that) or ``"inverses"`` too, which then are sent at every step, see :mod:`dopr_robot.optim.owners`.
        parameters: the parameters that may be preconditioned, or ``(name, parameter)``; None: all of the model's.
        process_group: the ranks over which statistics are averaged where ``torch.distributed`` is initialised; None: all; False: none.

    Raises:
        ValueError: for a value out of range, or a model without a supported layer.
    """

    model: nn.Module | Parameters

    def __init__(
        self,
        model: Models | None = None,
        *,
        # docs/optimizer.md has the reason of every default. Measured on PushT (U-Net, 100 steps, benchmarks/optimizer_defaults.py),
        # held-out loss 0.208 with stat_decay 0.9 and 0.217 with 0, 0.212 refreshing at every step, 0.209 with the whole inverse.
        # damping is chosen by rollouts, as is form (docs/evidence.md); this loss agrees (0.196 at 1, 0.231 at 0.01).
        form: str = "batch",
        damping: Damping = 1.0,
        input_damping: float | None = None,
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
        max_update_norm: float | None = None,
        max_dim: int | None = 8192,
        max_cost: float | None = None,
        state_dtype: torch.dtype | str | None = None,
        offload: bool = False,
        owned: str = "moments",
        parameters: Iterable[nn.Parameter | tuple[str, nn.Parameter]] | None = None,
        process_group: Any = None,
    ) -> None:
        check_preconditioning(
            form=form,
            stat_decay=stat_decay,
            warmup_steps=warmup_steps,
            conv=conv,
            rank=rank,
            max_tokens=max_tokens,
            max_nonfinite=max_nonfinite,
            max_dim=max_dim,
            max_cost=max_cost,
            state_dtype=state_dtype,
            max_update_norm=max_update_norm,
            owned=owned,
        )
        if model is None and parameters is None:
            raise ValueError("without a model, the parameters that are to be preconditioned have to be given")
        if model is None and input_damping is not None:
            raise ValueError(
                f"input_damping={input_damping!r} needs the model: parameters alone do not say which layers take its inputs"
            )
        given = None if parameters is None else as_named(parameters)
        whole = one_model(model)
        self.model = Parameters(given or []) if whole is None else whole
        self._named = {p: name for name, p in (self.model.named_parameters() if given is None else given)}
        lazy = [name for name, p in self.model.named_parameters() if isinstance(p, nn.UninitializedParameter)]
        if lazy:
            raise ValueError(f"{lazy[0]} has no shape yet: run the lazy model once before making the optimizer")
        if whole is not None:
            refuse_unknown_sharding(whole, process_group)
        self.form = form
        self.stat_decay = stat_decay
        self.warmup_steps = warmup_steps
        self.rank = rank
        self.max_tokens = max_tokens
        self.max_update_norm = max_update_norm
        self.input_damping = None if input_damping is None else check_damping(input_damping, "input_damping")
        self.max_cost = _AUTO_COST if form == "auto" and max_cost is None else max_cost
        self.state_dtype = torch.bfloat16 if isinstance(state_dtype, str) else state_dtype
        self.offload = offload
        self.owned = owned
        self.process_group = process_group
        self.step = 0
        self.warn = WarnOnce()
        self.finite = FiniteCheck(max_nonfinite, self.warn)
        self._masks = TokenMasks()
        self._choice: dict[str, Any] = {"form": form, "conv": conv, "include_bias": include_bias, "max_dim": max_dim}
        self._choice |= {"include": include, "exclude": exclude}
        if isinstance(self.model, Parameters):
            find_names(self.model, include, exclude)
        self.groups = Groups(damping=damping, update_every=update_every, precondition=True)
        self.groups.follow([{"params": list(self._named)}], anew=True)
        self.factors: list[Factor] = []
        self._left: dict[str, str] = {}
        self._waiting: dict[nn.Parameter, Mapping[str, Any]] = {}
        self._stacks: dict[nn.Parameter, Use] = {}
        self._watch()
        if not self.factors and not isinstance(self.model, Parameters) and UNSEEN not in self._left.values():
            raise ValueError(self.nothing_found())

    def _watch(self) -> None:
        """Look for layers, and have their inputs recorded."""
        self._hooks, self._finder, self._attached = Hooks(self), Hooks(self), Hooks(self)
        if isinstance(self.model, Parameters):
            self._finder.add(watch_modules(self))
        self._find()

    def stack_used(self, layer: Experts, why: str | None) -> Recorder | None:
        """A module multiplies by a stack of matrices, in a way not known before; ``why``: it is to be left all the same.

        Returns the recorder of its inputs, if there is to be any. The model is running, and a sharded one has other weights meanwhile:
        so only this one is looked at.
        """
        weight = layer.weight
        if weight not in self._named:
            return None
        self._stacks[weight] = why or layer.transposed
        name = self._names[weight]
        self.factors = [factor for factor in self.factors if factor.weight is not weight]
        why = why or reason_to_leave_stack(name, layer, self._choice)
        if why is not None:
            self._left[name] = why
            return None
        self._left.pop(name, None)
        factor = self._kept(None, self._settled(Factor(name, [layer], self.form)))
        self.factors.append(factor)
        share_turns(self.factors, self.groups)
        factor.due = is_due(factor, self.groups, self.step)
        return Recorder(factor, layer, self._masks.find, self.max_tokens)

    def _settled(self, factor: Factor) -> Factor:
        factor.max_cost, factor.state_dtype, factor.offload = self.max_cost, self.state_dtype, self.offload
        factor.damping = self.input_damping if factor.weight in self._inputs else None
        settle_rank(factor, self.rank)
        return factor

    def _find(self) -> None:
        """Make factors of the weights that are to be preconditioned; the ones that are so already keep their statistics."""
        known = {factor.weight: factor for factor in self.factors}
        self._names = {parameter: plain_name(name) for name, parameter in self.model.named_parameters()}
        bare = isinstance(self.model, Parameters)
        self._inputs: set[nn.Parameter] = set()
        if self.input_damping is not None and not isinstance(self.model, Parameters):
            self._inputs = find_input_layers(self.model)
        self._grows = bare or any(kind_of(module) is STACK for module in self.model.modules())
        found, self._left = find_factors(
            self.model, **self._choice, stacks=self._stacks, parameters=list(self._named), must_match=not bare
        )
        self.factors = [self._kept(known.get(factor.weight), self._settled(factor)) for factor in found]
        share_turns(self.factors, self.groups)
        for factor in self.factors:
            if factor.weight not in known:
                factor.due = is_due(factor, self.groups, self.step)
        self._hooks.remove()
        self._hooks.add(*record_inputs(self, self.factors, self._masks.find, self.max_tokens))

    def _kept(self, old: Factor | None, new: Factor) -> Factor:
        if old is not None and [layer.module for layer in old.layers] == [layer.module for layer in new.layers]:
            old.name = new.name
            return old
        saved = self._waiting.pop(new.weight, None) if old is None else pack(old, self.counters())
        if saved is not None:
            unpack(new, saved, self.rank)
        if old is None:
            return new
        old.extend(new)  # calls that wait for their gradient know the old one
        return old

    def meet(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A module begins to run, with ``args``, that was not seen before: look for uses of the parameters in it."""
        assert isinstance(self.model, Parameters)
        if self.model.meet(module):
            refuse_unknown_sharding(module, self.process_group)
            self._find()
            for hook in module._forward_pre_hooks.values() if args else ():
                if isinstance(hook, Beginning):  # which torch calls from the next forward on
                    hook(module, args, {})

    def nothing_found(self) -> str:
        """Why there is nothing to precondition."""
        reasons = "; ".join(sorted(set(self._left.values()))[:3])
        return f"{type(self.model).__name__} has no layer to precondition ({reasons or 'it has no parameters'})"

    def precondition_(self, *, wait: bool = False) -> bool:
        """Replace the gradients G by M, in place, and forget the inputs since the last call.

        Returns:
            False where a gradient or a statistic is not finite: then nothing was changed, and the step is to be left out. On CUDA
            that is not waited for unless ``wait`` says so: ``found_inf`` [1.0 or 0.0] says it on the device, to a base that looks there
            before it steps (torch's fused ones); statistics stay as they were and gradients become 0.

        Raises:
            RuntimeError: without a forward or a backward since the last call, and after ``max_nonfinite`` bad steps in a row.
        """
        device = next(iter(self._named)).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):  # a step inside of autocast would be rounded
            return self._precondition(wait)

    def _precondition(self, wait: bool) -> bool:
        self.groups.advance(self.step)
        assign_owners(self.factors, self.owned, self.process_group)
        active = [factor for factor in self.factors if self.groups.of(factor.weight)["precondition"]]
        with_gradient = [p for p in self._named if p.grad is not None]
        gradients = [local(p.grad) for p in with_gradient if p.grad is not None]
        if not check_order(self, active, gradients):
            return True
        if self._grows:
            same_on_all_ranks(active, self.process_group)
        due = average_over_ranks(active, [factor for factor in active if factor.seen], self.process_group)
        refresh = Refresh(
            due,
            self.groups,
            self.finite,
            stat_decay=self.stat_decay,
            rank=self.rank,
            process_group=self.process_group,
        )
        bad = self.finite.bad([*gradients, *refresh.statistics], gradients[0].device)
        bad = agree(bad, with_gradient, self.process_group)
        # On CUDA the answer would have to be waited for: it stays there, except at a layer's first refresh.
        self.finite.found_inf = bad if bad.is_cuda and not wait and not refresh.waits else None
        if self.found_inf is None and bool(bad):
            self._begin_step(self.step)
            self.finite.skip()
            return False
        refresh.commit(self.step, self.warn)
        if self.step >= self.warmup_steps:
            finish(refresh.multiply(active, self.step), self.max_update_norm)
        self.finite.count(gradients, self.step)
        self._begin_step(self.step + 1)
        return True

    def forget_inputs(self) -> None:
        """Forget the inputs since the last step, whose step is left out."""
        self._begin_step(self.step)

    def attach(self, optimizer: Optimizer) -> "ActivationPreconditioner":
        """Precondition before every step of ``optimizer``, which is otherwise used as before; options of its groups are heeded."""
        self.groups.follow(optimizer.param_groups, self.step, anew=True)
        self._find()

        def before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if any(callable(argument) for argument in (*args[1:], *kwargs.values())):
                raise RuntimeError(
                    "an attached preconditioner cannot see gradients made inside a closure: use DoPr, or no closure"
                )
            self.groups.follow(optimizer.param_groups, self.step)
            if not self.precondition_(wait=True):
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None  # a step over no gradients changes nothing

        self._attached.add(optimizer.register_step_pre_hook(before_step))
        return self

    def detach(self) -> None:
        """Remove every hook from the model and from the optimizers that this was attached to."""
        for hooks in (self._hooks, self._finder, self._attached):
            hooks.remove()

    def token_mask(self, *masks: Tensor) -> AbstractContextManager[None]:
        """Leave padding out of S for forwards in this context.

        Each mask is bool, true where a token counts, shaped as the tokens of the layers that it is meant for (``[B, T]``). A layer
        with tokens of another shape takes all of them. An attention module's inputs are matched batch first.

        Raises:
            ValueError: where a mask fitted no layer that was recorded.
        """
        return self._masks.given(masks)

    def allow(self, parameters: Iterable[nn.Parameter | tuple[str, nn.Parameter]]) -> None:
        """Precondition these parameters too, from the next forward on."""
        named = as_named(parameters)
        self._named |= {p: name for name, p in named if p not in self._named}
        if isinstance(self.model, Parameters):
            self.model.add(named)
        self._find()
        self._begin_step(self.step)

    def coverage(self) -> Coverage:
        """Every parameter: preconditioned and how, or left to the base and why."""
        off = {factor.weight for factor in self.factors if not self.groups.of(factor.weight)["precondition"]}
        others = [(name, p) for p, name in self._named.items() if p not in set(self.model.parameters())]
        return Coverage.of(self.model, self.factors, self._left, started=self.step > 0, off=off, others=others)

    def spectrum(self) -> dict[str, Spectrum]:
        """For each layer its condition number, effective rank, the share of the gradient that was turned, and how near its form of S comes
        to this step's own: that costs a solve, at each layer's next refresh after a call, so the first call has None there.
        Where weights are sharded all ranks call it.
        """
        for factor in self.factors:
            factor.compare = True
        return spectra_of([f for f in self.factors if f.ready or f.last is not None], self.process_group)

    def log_spectrum(self, writer: Any, step: int | None = None) -> None:
        """Write :meth:`spectrum` to a TensorBoard ``SummaryWriter``, under ``dopr/<figure>/<layer>``."""
        write_spectrum(self.spectrum(), writer, self.step if step is None else step)

    def memory_usage(self, tokens: int | None = None) -> dict[str, int]:
        """Bytes held for each layer, and in all under ``"total"``.

        Args:
            tokens: what will be held, at a step that brings so many input vectors, instead of what is: for a model that has not been
                trained yet, which may be on the meta device. The inputs on their way to the step are counted at every layer that takes
                its turn in that step.
        """
        n = None if tokens is None else min(tokens, self.max_tokens or tokens)
        return usage_of(self.factors, n, self.rank)

    def counters(self) -> dict[str, int]:
        """Steps taken, and left out."""
        self.finite.read()
        return {"step": self.step, "skipped": self.finite.skipped, "skipped_in_a_row": self.finite.in_a_row}

    def take_up(self, entries: Mapping[nn.Parameter, Mapping[str, Any]], stacklevel: int = 3) -> None:
        """Take up entries of weights, see :mod:`dopr_robot.optim.state`, under other options as far as they allow: what does not fit is
        formed anew, with a warning.

        A weight without an entry begins afresh; an entry of a weight that no module was seen to use is kept until one is.
        """
        entries = {p: entry for p, entry in entries.items() if is_entry(entry)}
        counters = counters_of(entries)
        self.finite.skipped, self.finite.in_a_row = counters["skipped"], counters["skipped_in_a_row"]
        assign_owners(self.factors, self.owned, self.process_group)
        here = {factor.weight for factor in self.factors}
        self._waiting = {p: entry if p in here else gathered_entry(entry) for p, entry in entries.items()}
        unpack_all(self.factors, self._waiting, self.form, self.rank, stacklevel=stacklevel + 1)
        self._begin_step(counters["step"])

    def state_dict(self) -> dict[str, Any]:
        """The entries by the weights' names, for a preconditioner that is used alone."""
        counters = self.counters()
        entries = {factor.name: self.shared(pack(factor, counters), factor) for factor in self.factors}
        return {"version": VERSION, "factors": entries}

    def shared(self, entry: Mapping[str, Any], factor: Factor) -> dict[str, Any]:
        """An entry of a state, with what one rank alone keeps shared out among all, who have to call this together."""
        return with_shares(entry, factor, self.rank, self.process_group)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where :meth:`state_dict` left, that of former releases included. Raises ValueError where the layers are others."""
        self.take_up(by_weight(self.factors, state), stacklevel=4)

    def __getstate__(self) -> dict[str, Any]:
        """All but the hooks: a copy or a pickle has its own, on its own model (which is copied with it)."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_hooks", "_finder", "_attached")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.groups.index()
        self._watch()

    @property
    def skipped(self) -> int:
        """Steps left out for NaN or inf."""
        return self.finite.skipped

    @property
    def found_inf(self) -> Tensor | None:
        """[1.0 or 0.0] on the device: whether the step just preconditioned is to be left out; None where that was known here."""
        return self.finite.found_inf

    def said_of_damping(self) -> str:
        """``damping=...`` of the groups, and of the input layers where they have one of their own."""
        inputs = "" if self.input_damping is None else f", input_damping={self.input_damping:g}"
        return f"damping={self.groups!r}{inputs}"

    def _begin_step(self, step: int) -> None:
        self.step = self.groups.step = step
        for factor in self.factors:
            if factor.seen or factor.due:
                factor.clear()
            factor.due = is_due(factor, self.groups, step)

    def __repr__(self) -> str:
        return f"ActivationPreconditioner(form={self.form!r}, {self.said_of_damping()}, {len(self.factors)} weights)"

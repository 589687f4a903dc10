"""DoPr: any optimizer, fed with activation-preconditioned gradients."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dopr_robot.optim.coverage import Coverage
from dopr_robot.optim.groups import PER_GROUP, named
from dopr_robot.optim.preconditioner import ActivationPreconditioner
from dopr_robot.optim.sharding import is_sharded
from dopr_robot.optim.sources import Models, one_model
from dopr_robot.optim.spectrum import Spectrum
from dopr_robot.optim.state import KEY, by_weight, is_entry, pack, room
from dopr_robot.optim.untraced import Uncompiled

_OPTIONS = frozenset(inspect.signature(ActivationPreconditioner).parameters) - {"model", "parameters", *PER_GROUP}


class DoPr(Uncompiled):
    """Double preconditioning: ``base`` steps along activation-preconditioned gradients.

        S = 1/n Σ zᵢ zᵢᵀ
        M = G (S + damping · tr(S)/d_in · I)⁻¹
        W ← (1 − η λ) W − η base(M)

    It is an optimizer like any other: its ``param_groups`` and ``state`` are the base's own, so schedulers, ``GradScaler``, clipping and
    ``accelerate.prepare`` act on both. Source: arXiv 2606.06418.

    Args:
        base: the optimizer that takes the step. Its groups may have ``damping``, ``update_every`` and ``precondition`` of their own.
        model: the model whose forward is to be watched, or a list or dict of several. Parameters of the base that are not the model's are
            left to it. None: the uses of the base's parameters are found in the modules that run.
        **options: of :class:`ActivationPreconditioner`, which says what each does. Their defaults, and where these are from (measured in
            docs/optimizer.md):

            - ``form="batch"``: this step's S, exact. From success in rollouts.
            - ``damping=1.0``: from rollouts: ahead of the base on average over Meta-World's tasks and over ours. 0.1 gains more on
              Meta-World, and loses most of the success in some settings (docs/evidence.md).
            - ``input_damping=None``: as ``damping``. 0.1 there has what 0.1 everywhere gains on Meta-World and in a flow transformer, and
              about half of its losses at most.
            - ``stat_decay=0.9``, ``update_every=10``: of an average. From held-out losses on PushT, and from cost.
            - ``rank="auto"``: ``max(16, inputs // 32)`` directions. From cost, at a held-out loss that was the whole inverse's.
            - ``max_cost=None``: a sample of the inputs is cheaper, and its success spreads more from seed to seed; ``"auto"`` takes 0.5.
            - ``conv="sua"``: patches multiply the cost by the kernel's cube. Grosse & Martens, 2016.
            - ``include_bias=False``: as in the paper.
            - ``warmup_steps=0``: the first batch counts whole, so that S is usable at once.
            - ``include=None``, ``exclude=None``: all weights of supported layers.
            - ``max_dim=8192``: an S of 256 MiB.
            - ``max_tokens=None``: forming S from all tokens is 1 to 6 % of a step.
            - ``max_nonfinite=10``: one bad batch is no failure, ten in a row are a run that has diverged.
            - ``max_update_norm=None``, ``state_dtype=None``, ``offload=False``: none of it unless asked for.
            - ``owned="moments"``: of sharded weights, without more traffic than if all ranks kept all.
            - ``process_group=None``: all ranks.

    Raises:
        ValueError: for an option out of range, a model without a supported layer, a base over parameters none of which is the model's, or
            a base that calls its closure itself (LBFGS).

    >>> model = nn.Linear(3, 2)
    >>> optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=3e-4), model)
    >>> model(torch.randn(8, 3)).square().mean().backward()
    >>> optimizer.step(); optimizer.zero_grad()
    """

    def __init__(self, base: Optimizer, model: Models | None = None, **options: Any) -> None:
        if isinstance(base, DoPr):
            raise ValueError("the base is a DoPr already: give the optimizer inside it, base.base")
        if not isinstance(base, Optimizer):
            raise TypeError(
                f"the base is a {type(base).__name__}: give an optimizer, like torch.optim.AdamW(model.parameters())"
            )
        _refuse_closures(base)
        for key in PER_GROUP:
            if key in base.defaults:
                raise ValueError(
                    f"{type(base).__name__} has an option {key} of its own, which would be taken for DoPr's"
                )
        for group in base.param_groups:
            _check_group(group, base.defaults)
        whole = one_model(model)
        _refuse_strangers(base, whole)
        self.base = base
        self.preconditioner = ActivationPreconditioner(whole, parameters=named(base.param_groups), **options)
        self.preconditioner.groups.follow(base.param_groups, anew=True)
        super().__init__(base.param_groups, base.defaults)
        self._share()
        self.preconditioner.allow([])

    def _share(self) -> None:
        """One list of groups and one state for both: whoever changes them changes the base's."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        self.defaults = self.base.defaults
        self.preconditioner.groups.follow(self.param_groups, self.preconditioner.step)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Precondition the gradients and let the base step.

        ``closure`` reruns forward and backward and returns the loss; it is called once, before. A step with NaN or inf in gradients or
        activations is left out. Raises RuntimeError without a forward and backward since the last step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # A base that cannot look on the device whether a step is to be left out would move by momentum and decay: it waits for the answer.
        # (A fused one of sharded weights would be given DTensors and a plain answer.)
        sharded = any(is_sharded(p) for group in self.param_groups for p in group["params"])
        looks_itself = getattr(self.base, "_step_supports_amp_scaling", False) and not sharded
        if self.preconditioner.precondition_(wait=not looks_itself):
            self._base_step(self.preconditioner.found_inf)
            self._keep_entries()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, and the inputs that they are made of."""
        self.base.zero_grad(set_to_none)
        self.preconditioner.forget_inputs()

    def _base_step(self, found_inf: Tensor | None) -> None:
        """Step the base; a fused one looks itself, on the device, whether the step is to be left out."""
        if found_inf is None:
            self.base.step()
            return
        self.base.grad_scale, self.base.found_inf = None, found_inf  # type: ignore[attr-defined]
        try:
            self.base.step()
        finally:
            del self.base.grad_scale, self.base.found_inf  # type: ignore[attr-defined]

    def _keep_entries(self) -> None:
        """See to it that ``state[p]`` has its part of ours: once the base has made its own, since it looks whether there is any."""
        for factor in self.preconditioner.factors:
            if factor.weight.grad is None and not self.state.get(factor.weight):
                continue
            entry = self.state[factor.weight].setdefault(KEY, {})
            if factor.state:
                entry["average"] = factor.state
            elif not entry and (space := room(factor, self.preconditioner.rank)):
                entry["average"] = space
        if not self.preconditioner.factors:  # a dry step before any module ran: places for what may be loaded
            for _, parameter in named(self.param_groups):
                if parameter.grad is not None and parameter.dim() > 1:
                    self.state[parameter].setdefault(KEY, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; its weights are preconditioned from the next forward on."""
        param_group = {**param_group, "params": _listed(param_group["params"])}
        if not hasattr(self, "param_groups") or self.param_groups is not self.base.param_groups:
            super().add_param_group(param_group)  # torch's own __init__ goes through the base's groups
            return
        _check_group(param_group, self.base.defaults)
        before = len(self.param_groups)
        self.base.add_param_group(param_group)
        self._share()
        self.preconditioner.allow(
            list(named(self.param_groups))[sum(len(g["params"]) for g in self.param_groups[:before]) :]
        )

    def state_dict(self) -> dict[str, Any]:
        """The base's; ``state[p]["activation"]`` is the preconditioner's part, see :mod:`dopr_robot.optim.state`."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        if self.state:  # with a place for every parameter, which torch.distributed.checkpoint asks for
            for _, parameter in named(self.param_groups):
                self.state[parameter]
        counters = self.preconditioner.counters()
        for factor in self.preconditioner.factors:
            if KEY in self.state.get(factor.weight, {}):
                self.state[factor.weight][KEY].update(pack(factor, counters))
        state = self.base.state_dict()
        if owned := {factor.weight: factor for factor in self.preconditioner.factors if factor.owner is not None}:
            places = [place for group in state["param_groups"] for place in group["params"]]
            for place, (_, parameter) in zip(places, named(self.param_groups), strict=True):
                part = state["state"].get(place, {})
                # A dict of its own, since that in the state is what we work with.
                if parameter in owned and KEY in part:
                    state["state"][place] = {**part, KEY: self.preconditioner.shared(part[KEY], owned[parameter])}
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left; training then goes on bit for bit.

        A state of the bare base is taken up too, and statistics begin afresh; so is one of a former release, which had the
        preconditioner's part beside ``state`` and ``param_groups``.
        """
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        former = state_dict.pop(KEY, None)
        ours = {
            key: part[KEY] for key, part in state_dict["state"].items() if isinstance(part, Mapping) and KEY in part
        }
        places = [key for group in state_dict["param_groups"] for key in group["params"]]
        entries = {} if former is None else by_weight(self.preconditioner.factors, former)
        # torch casts a state to its weight's type, which statistics do not have.
        bare = {
            key: {k: v for k, v in part.items() if k != KEY} if key in ours else part
            for key, part in state_dict["state"].items()
        }
        self.base.load_state_dict({**state_dict, "state": bare})
        self._share()
        parameters = dict(zip(places, (p for _, p in named(self.param_groups)), strict=True))
        entries |= {parameters[key]: entry for key, entry in ours.items() if key in parameters and is_entry(entry)}
        self.preconditioner.take_up(entries, stacklevel=4)
        for parameter, entry in entries.items():
            self.state[parameter][KEY] = dict(entry)
        self._keep_entries()
        for done in self._optimizer_load_state_dict_post_hooks.values():
            done(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "preconditioner": self.preconditioner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"defaults": state["base"].defaults, **state})
        self._share()

    def forget_inputs(self) -> None:
        """Leave the forwards since the last step out of the statistics: for a loop that leaves a step out itself."""
        self.preconditioner.forget_inputs()

    def coverage(self) -> Coverage:
        """Every parameter: preconditioned and how, or left to the base and why. ``print`` it."""
        return self.preconditioner.coverage()

    def spectrum(self) -> dict[str, Spectrum]:
        """Each layer's condition number, effective rank, and the share of the gradient that preconditioning turned."""
        return self.preconditioner.spectrum()

    def log_spectrum(self, writer: Any, step: int | None = None) -> None:
        """Write :meth:`spectrum` to a TensorBoard writer."""
        self.preconditioner.log_spectrum(writer, step)

    def memory_usage(self, tokens: int | None = None) -> dict[str, int]:
        """Bytes that preconditioning holds for each layer, and ``"total"``; the base's own state comes on top. ``tokens``: what it will
        hold at a step of so many input vectors, see :meth:`ActivationPreconditioner.memory_usage`.
        """
        return self.preconditioner.memory_usage(tokens)

    def token_mask(self, *masks: Tensor) -> Any:
        """Leave padding out of the statistics of forwards in this context, see :meth:`ActivationPreconditioner.token_mask`."""
        return self.preconditioner.token_mask(*masks)

    def __repr__(self) -> str:
        """One line: the base with its rates, what S is, and how much is covered."""
        preconditioner, report = self.preconditioner, self.coverage()
        covered = f"{len(preconditioner.factors)} weights, {report.matrix_share:.1%} of the entries of matrices"
        numbers = ", ".join(
            f"{key}={'|'.join(dict.fromkeys(f'{float(group[key]):g}' for group in self.param_groups))}"
            for key in ("lr", "weight_decay", "momentum")
            if all(isinstance(group.get(key), int | float | Tensor) for group in self.param_groups)
        )
        return (
            f"DoPr({type(self.base).__name__}({numbers}), form={preconditioner.form!r}, {preconditioner.said_of_damping()}; "
            f"{covered}; step {preconditioner.step})"
        )


def _refuse_closures(base: Optimizer) -> None:
    closure = inspect.signature(type(base).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(base).__name__} evaluates the loss anew inside its step, by gradients that DoPr does not see: take another base"
        )


def _refuse_strangers(base: Optimizer, model: nn.Module | None) -> None:
    here, parameters = set() if model is None else set(model.parameters()), [p for _, p in named(base.param_groups)]
    if model is not None and not any(p in here for p in parameters):
        raise ValueError(
            f"none of the {len(parameters)} parameters of {type(base).__name__} (the first has shape {tuple(parameters[0].shape)}) is "
            f"{type(model).__name__}'s: make the base from model.parameters()"
        )


def _check_group(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError for an option of ours that a group can not have by itself; one among the base's ``defaults`` is the base's."""
    odd = sorted(_OPTIONS & set(group) - set(defaults))
    if odd:
        raise ValueError(
            f"{odd[0]} is no option of a param group: those are {', '.join(PER_GROUP)}; give it to DoPr, for all groups"
        )


def _listed(params: Any) -> list[Any]:
    """What a group's ``params`` may be, as a list: one tensor, an iterable of them, or of ``(name, tensor)``. An iterator is used up."""
    return [params] if isinstance(params, Tensor) else list(params)

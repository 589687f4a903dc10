"""DoPr: any optimizer, fed with activation-preconditioned gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dopr_robot.optim.coverage import Coverage
from dopr_robot.optim.preconditioner import ActivationPreconditioner
from dopr_robot.optim.spectrum import Spectrum


class DoPr(Optimizer):
    r"""Double preconditioning: ``base`` steps along activation-preconditioned gradients.

    .. math::
        S &= \tfrac1n \sum_i z_i z_i^\top \\
        M &= G\,\bigl(S + \text{damping} \cdot \tfrac{\operatorname{tr} S}{d_{in}} I\bigr)^{-1} \\
        W &\leftarrow (1 - \eta\lambda) W - \eta\,\text{base}(M)

    It is an optimizer like any other: its ``param_groups`` and ``state`` are the base's own, so schedulers, ``GradScaler``, clipping and
    ``accelerate.prepare`` act on both. Source: arXiv 2606.06418.

    Args:
        base: the optimizer that takes the step, over parameters of ``model``.
        model: the model whose forward is to be watched.
        **options: of :class:`ActivationPreconditioner`: ``form, damping, stat_decay, update_every, warmup_steps, conv, include, exclude,
            include_bias, rank, max_tokens, max_nonfinite, process_group``.

    Raises:
        ValueError: for an option out of range, a model without a supported layer, or a base over parameters that are not the model's.

    >>> model = nn.Linear(3, 2)
    >>> optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=3e-4), model, damping=0.1)
    >>> model(torch.randn(8, 3)).square().mean().backward()
    >>> optimizer.step(); optimizer.zero_grad()
    """

    def __init__(self, base: Optimizer, model: nn.Module, **options: Any) -> None:
        if isinstance(base, DoPr):
            raise ValueError("the base is a DoPr already: give the optimizer inside it, base.base")
        parameters = [p for group in base.param_groups for p in group["params"]]
        strangers = _not_of(model, parameters)
        if strangers:
            raise ValueError(
                f"{len(strangers)} of the {len(parameters)} parameters of {type(base).__name__} (the first has shape {strangers[0]}) are "
                f"not {type(model).__name__}'s: make the base from model.parameters()"
            )
        self.base = base
        self.preconditioner = ActivationPreconditioner(model, parameters=parameters, **options)
        super().__init__(base.param_groups, base.defaults)
        self._share()

    def _share(self) -> None:
        """One list of groups and one state for both: whoever changes them changes the base's."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        self.defaults = self.base.defaults

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
        looks_itself = getattr(self.base, "_step_supports_amp_scaling", False)
        if self.preconditioner.precondition_(wait=not looks_itself):
            self._base_step(self.preconditioner.found_inf)
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; its weights are preconditioned from the next forward on."""
        param_group = {**param_group, "params": _listed(param_group["params"])}
        if not hasattr(self, "param_groups") or self.param_groups is not self.base.param_groups:
            super().add_param_group(param_group)  # torch's own __init__ goes through the base's groups
            return
        strangers = _not_of(self.preconditioner.model, _tensors(param_group["params"]))
        if strangers:
            raise ValueError(
                f"the group has {len(strangers)} parameters that are not the model's (the first has shape {strangers[0]})"
            )
        self.base.add_param_group(param_group)
        self.preconditioner.allow(p for group in self.param_groups for p in group["params"])

    def state_dict(self) -> dict[str, Any]:
        """The base's state, and the preconditioner's under ``"activation"``."""
        return {**self.base.state_dict(), "activation": self.preconditioner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` left; training then goes on bit for bit."""
        if "activation" not in state_dict:
            raise ValueError("the state has no part 'activation': it was saved by an optimizer other than DoPr")
        self.preconditioner.load_state_dict(state_dict["activation"])
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "activation"})
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

    def memory_usage(self) -> dict[str, int]:
        """Bytes that preconditioning holds for each layer, and ``"total"``; the base's own state comes on top."""
        return self.preconditioner.memory_usage()

    def token_mask(self, *masks: Tensor) -> Any:
        """Leave padding out of the statistics of forwards in this context, see :meth:`ActivationPreconditioner.token_mask`."""
        return self.preconditioner.token_mask(*masks)

    def __repr__(self) -> str:
        return f"DoPr({self.base!r}, {self.preconditioner!r})"


def _listed(params: Any) -> list[Any]:
    """What a group's ``params`` may be, as a list: one tensor, an iterable of them, or of ``(name, tensor)``. An iterator is used up."""
    return [params] if isinstance(params, Tensor) else list(params)


def _tensors(params: list[Any]) -> list[Tensor]:
    return [entry[1] if isinstance(entry, tuple) else entry for entry in params]


def _not_of(model: nn.Module, parameters: list[Tensor]) -> list[tuple[int, ...]]:
    """Shapes of the parameters that are not the model's."""
    known = {id(p) for p in model.parameters()}
    return [tuple(p.shape) for p in parameters if id(p) not in known]

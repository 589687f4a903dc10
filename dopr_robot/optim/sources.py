"""Where the uses of weights are found: in a model that is given, or in the modules that run."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dopr_robot.optim.capture import MaskFinder, Recorder
from dopr_robot.optim.coverage import plain_name, select
from dopr_robot.optim.factors import Factor
from dopr_robot.optim.groups import PLACE
from dopr_robot.optim.kinds import STACK, kind_of
from dopr_robot.optim.stacks import watch_stacks
from dopr_robot.optim.untraced import untraced

Models = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]


class Parameters:
    """Stands for the model where there is none: parameters, and the modules that were seen to run with them.

    A parameter that came without a name is called by the class of the outermost module that it ran in and its name there.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self._names = {parameter: name for name, parameter in named}
        self.given = not any(name.startswith(PLACE) for name in self._names.values())
        self._modules: dict[nn.Module, None] = {}
        self._met: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_met": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _met=weakref.WeakSet())

    def meet(self, root: nn.Module) -> bool:
        """Take note of a module that runs, and of those inside it. Returns whether one of them has a parameter of ours."""
        found = False
        for module in root.modules():
            if module in self._met:
                continue
            self._met.add(module)
            if any(parameter in self._names for parameter in module._parameters.values() if parameter is not None):
                self._modules[module] = None
                found = True
        if found and not self.given:
            taken = set(self._names.values())
            for name, parameter in root.named_parameters():
                called = f"{type(root).__name__}.{name}"
                if self._names.get(parameter, "").startswith(PLACE) and called not in taken:
                    self._names[parameter] = called
        return found

    def knows(self, module: nn.Module) -> bool:
        """Whether a module was seen before."""
        return module in self._met

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Like a module's."""
        return ((name, parameter) for parameter, name in self._names.items())

    def parameters(self) -> Iterator[nn.Parameter]:
        """Like a module's."""
        return iter(self._names)

    def modules(self) -> Iterator[nn.Module]:
        """The modules that have a parameter of ours and were seen to run, or are part of one that was."""
        return iter(self._modules)

    def add(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Further parameters; modules are looked at anew as they run."""
        for name, parameter in named:
            self._names.setdefault(parameter, name)
        self._met.clear()


def as_named(parameters: Iterable[nn.Parameter | tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
    """Parameters with names without wrappers' prefixes, or where they have none with their places."""
    return [
        (plain_name(each[0]), each[1]) if isinstance(each, tuple) else (f"{PLACE}0, parameter {place}", each)
        for place, each in enumerate(parameters)
    ]


def find_names(model: Parameters, include: Iterable[str] | None, exclude: Iterable[str] | None) -> None:
    """Raise ValueError where patterns are given and names are not, or a pattern matches no name."""
    if (include or exclude) and not model.given:
        raise ValueError("include and exclude need names: make the base from named_parameters(), or give the model")
    select([name for name, _ in model.named_parameters()], include, exclude)


def one_model(models: Models | None) -> nn.Module | None:
    """Several models as one, under whose names theirs stand; one as it is."""
    if isinstance(models, Mapping):
        return nn.ModuleDict(models)
    if models is None or isinstance(models, nn.Module):
        return models
    if not all(isinstance(each, nn.Module) for each in models):
        raise ValueError("the model must be a module, a list or a dict of modules, or None")
    return nn.ModuleList(models)


class Hooks:
    """Handles of hooks; removed when their owner goes, since none of the hooks holds it."""

    def __init__(self, owner: Any) -> None:
        self._handles: list[Any] = []
        weakref.finalize(owner, _remove, self._handles).atexit = False

    def add(self, *handles: Any) -> None:
        """Keep ``handles``."""
        self._handles.extend(handles)

    def remove(self) -> None:
        """Remove all of them."""
        _remove(self._handles)


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def record_inputs(owner: Any, factors: Sequence[Factor], find_mask: MaskFinder, max_tokens: int | None) -> list[Any]:
    """Have the inputs of the modules of ``owner.model`` that use the factors' weights recorded; returns the handles."""
    by_module: dict[nn.Module, dict[str, Recorder]] = {}
    for factor in factors:
        for layer in factor.layers:
            by_module.setdefault(layer.module, {})[layer.role] = Recorder(factor, layer, find_mask, max_tokens)
    handles = watch_stacks(owner, (each for each in owner.model.modules() if kind_of(each) is STACK), by_module)
    for module, recorders in by_module.items():
        kind = kind_of(module)
        if kind is not None and kind.watch is not None:
            handles += kind.watch(module, recorders)
    return handles


def watch_modules(owner: Any) -> Any:
    """Tell ``owner.meet`` of every module that begins to run and that it does not know; returns the handle."""
    reference = weakref.ref(owner)

    @untraced
    def before(module: nn.Module, args: Any) -> None:
        owner = reference()
        if owner is not None and not owner.model.knows(module):
            owner.meet(module, args)

    return register_module_forward_pre_hook(before)

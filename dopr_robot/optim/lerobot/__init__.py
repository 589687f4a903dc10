"""DoPr by name in LeRobot; importing this registers it.

``lerobot-train --optimizer.discover_packages_path=dopr_robot.optim.lerobot --optimizer.type=dopr_adamw --use_policy_training_preset=false
--scheduler.type=...``: each ``dopr_<base>`` that needs no more than parameters, with every option of
:func:`dopr_robot.optim.optimizer_options`, and ``grad_clip_norm``, by which LeRobot's loop clips G. Needs LeRobot.
"""

import inspect
from dataclasses import field, fields, make_dataclass
from typing import Any

from lerobot.optim.optimizers import OptimizerConfig
from torch.optim import Optimizer

from dopr_robot.optim.factory import make_optimizer, optimizer_options
from dopr_robot.optim.preconditioner import ActivationPreconditioner

NAMES = ("dopr_sgd", "dopr_adam", "dopr_adamw", "dopr_signum", "dopr_lion")
# What a command line can give; the others are as the preconditioner says.
_TYPES: dict[str, Any] = {
    "damping": float | dict[str, Any],
    "include": list[str] | None,
    "exclude": list[str] | None,
    "betas": tuple[float, float],
}


def _register(name: str) -> type[OptimizerConfig]:
    signature = inspect.signature(ActivationPreconditioner).parameters

    def build(self: OptimizerConfig, params: Any) -> Optimizer:
        """The optimizer over ``params``, of any kind that LeRobot's policies give but a dict of several optimizers'."""
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "grad_clip_norm"}
        return make_optimizer(name, params, **options)

    described = []
    for key, default in {**optimizer_options(name), "grad_clip_norm": 10.0}.items():
        declared = signature[key].annotation if key in signature else type(default)
        value = tuple(default) if isinstance(default, list) else default
        described.append((key, _TYPES.get(key, declared), field(default=value)))
    made = make_dataclass(
        f"{name.title().replace('_', '')}Config", described, bases=(OptimizerConfig,), namespace={"build": build}
    )
    OptimizerConfig.register_subclass(name)(made)
    return made


CONFIGS = {name: _register(name) for name in NAMES}

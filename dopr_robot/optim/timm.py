"""DoPr by name in timm's factory; importing this registers it.

``timm.optim.create_optimizer_v2(model, "dopradamw", lr=..., damping=...)``: timm takes what stands before an underscore for a
wrapper, so the names are ``dopr<base>``. Needs timm.
"""

from functools import partial

from timm.optim import OptimInfo
from timm.optim._optim_factory import default_registry

from dopr_robot.optim.factory import make_optimizer, optimizer_options

NAMES = ("dopr_sgd", "dopr_adam", "dopr_adamw", "dopr_signum", "dopr_lion")

for name in NAMES:
    options = optimizer_options(name)
    default_registry.register(
        OptimInfo(
            name=name.replace("_", ""),
            opt_class=partial(make_optimizer, name),
            description=f"{name.removeprefix('dopr_')} under double preconditioning",
            has_eps="eps" in options,
            has_momentum="momentum" in options,
            has_betas="betas" in options,
        )
    )

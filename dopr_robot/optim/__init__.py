"""DoPr, the optimizer, and its bases. Needs torch and nothing else of this package.

>>> from dopr_robot.optim import DoPr
>>> optimizer = DoPr(torch.optim.AdamW(model.parameters(), lr=3e-4), model)  # doctest: +SKIP
"""

from dopr_robot.optim.coverage import Coverage
from dopr_robot.optim.dopr import DoPr
from dopr_robot.optim.factory import (
    DoPrAdamW,
    make_optimizer,
    optimizer_names,
    optimizer_options,
    parameter_groups,
    saved_options,
)
from dopr_robot.optim.muon import AdaMuon, Muon, newton_schulz
from dopr_robot.optim.packaged import missing_package, schedule_free
from dopr_robot.optim.preconditioner import ActivationPreconditioner
from dopr_robot.optim.roles import Roles, muon_roles
from dopr_robot.optim.signs import Lion, Signum
from dopr_robot.optim.spectrum import Spectrum

__all__ = [
    "ActivationPreconditioner",
    "AdaMuon",
    "Coverage",
    "DoPr",
    "DoPrAdamW",
    "Lion",
    "Muon",
    "Roles",
    "Signum",
    "Spectrum",
    "make_optimizer",
    "missing_package",
    "muon_roles",
    "newton_schulz",
    "optimizer_names",
    "optimizer_options",
    "parameter_groups",
    "saved_options",
    "schedule_free",
]

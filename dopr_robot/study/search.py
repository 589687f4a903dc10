"""Hyperparameters that are tried for every optimizer: a whole grid, or as many seeded draws for each."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.settings import convert
from dopr_robot.study.naming import entry_name, label

Candidate = dict[str, Any]
"""Options of an optimizer, ``lr`` among them, under which it is tried."""


@dataclass
class Search:
    """A space of hyperparameters, drawn from with the same budget for every optimizer.

    What an optimizer does not have (``damping`` of ``adamw``), and what its entry sets itself, is left out of its space. Options that two
    optimizers have in common get the same draws, so that arms differ in the optimizer alone.

    Args:
        space: ``{option: values}``. Values are a list; ``{low: 1e-4, high: 1e-2}``, even in the logarithm; or ``{within: 10}``: a factor of
            10 either side of the optimizer's own default, which suits learning rates that differ by optimizer.
        budget: candidates of each optimizer, by Latin hypercube sampling (every option's range is covered evenly, however few there
            are); None: every combination, of lists alone.
        seed: of the draws.

    Raises:
        UserError: no ``lr``, a range that is none, or a grid over a range.

    >>> Search({"lr": {"low": 0.001, "high": 0.1}}, budget=2).candidates("adamw")
    [{'lr': 0.00116}, {'lr': 0.0194}]
    """

    space: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if "lr" not in self.space:
            raise UserError("search.space has no lr: {lr: {low: 1e-4, high: 1e-2}}")
        if self.budget is not None and self.budget < 1:
            raise UserError(f"search.budget={self.budget} has to be at least 1")
        for name, values in self.space.items():
            self._check(name, values)

    def _check(self, name: str, values: Any) -> None:
        where = f"search.space.{name}"
        if isinstance(values, Mapping):
            bounds = {key: convert(value, float, f"{where}.{key}") for key, value in values.items()}
            if set(bounds) == {"low", "high"} and 0 < bounds["low"] < bounds["high"]:
                pass
            elif set(bounds) != {"within"} or bounds["within"] <= 1:
                raise UserError(f"{where}={dict(values)}: {{low: 1e-4, high: 1e-2}}, {{within: 10}}, or a list")
            if self.budget is None:
                raise UserError(f"{where} is a range, of which search.budget says how many are drawn")
        elif not isinstance(values, list) or not values:
            raise UserError(f"{where}={values!r} has to be a list, {{low: 1e-4, high: 1e-2}} or {{within: 10}}")
        elif len({str(value) for value in values}) < len(values):
            raise UserError(f"{where} names one twice: {values}")
        if name == "lr" and isinstance(values, list) and min(convert(values, list[float], where)) <= 0:
            raise UserError(f"{where}={values}: positive ones")

    def candidates(self, entry: Any) -> list[Candidate]:
        """What is tried for an entry of ``optimizers``, the least learning rate first."""
        defaults = option_defaults(entry)
        own = entry if isinstance(entry, Mapping) else {}
        space = {name: values for name, values in self.space.items() if name in defaults and name not in own}
        if "lr" not in space:
            raise UserError(f"{label(entry)} sets lr itself: search.space.lr is for it")
        if self.budget is None:
            found = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
        else:
            columns = [self._draws(name, values, defaults[name]) for name, values in space.items()]
            found = [dict(zip(space, values, strict=True)) for values in zip(*columns, strict=True)]
        return sorted(found, key=lambda candidate: candidate["lr"])

    def _draws(self, name: str, values: Any, default: Any) -> list[Any]:
        assert self.budget is not None
        # One generator an option: what two optimizers have in common is drawn alike for both. One share in every stratum.
        rng = _generator(self.seed, name)
        shares = (rng.permutation(self.budget) + rng.random(self.budget)) / self.budget
        if isinstance(values, list):
            return [values[int(share * len(values))] for share in shares]
        if "within" in values:
            low, high = default / values["within"], default * values["within"]
        else:
            low, high = values["low"], values["high"]
        return [float(f"{low * math.exp(share * math.log(high / low)):.3g}") for share in shares]


def option_defaults(entry: Any) -> dict[str, Any]:
    """Options of an entry of ``optimizers`` with their defaults. Raises UnknownNameError."""
    from dopr_robot.optim import optimizer_names, optimizer_options

    name = entry_name(entry)
    if name not in optimizer_names():
        raise UnknownNameError("optimizer", name, optimizer_names())
    return optimizer_options(name)


def check_known(space: Mapping[str, Any], entries: list[Any]) -> None:
    """Raises UnknownNameError where an option of the space is none of any optimizer."""
    known = {name for entry in entries for name in option_defaults(entry)}
    for name in space:
        if name not in known:
            raise UnknownNameError("option in search.space", name, known)


def _generator(seed: int, name: str) -> Any:
    import numpy as np

    return np.random.default_rng([seed, zlib.crc32(name.encode())])

"""What activation preconditioning remembers of a weight, as it lies in an optimizer's ``state[p]["activation"]``.

Tensors alone, so that whoever writes an optimizer's state (torch.distributed.checkpoint, safetensors, a pickle) writes this too:

- ``version``: of this form, 3.
- ``form``: place in ``FORMS`` of the layer's form of S.
- ``step``, ``skipped``, ``skipped_in_a_row``: counters of the whole, the same for each weight.
- ``refreshed``: the step at which S was formed last, -1: never. ``turned``: see ``Factor``.
- ``average``: of an averaged S, the moments and the inverse, or of a sketch its directions, see ``Factor.state``; absent where there
  are none.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dopr_robot.optim.checks import FORMS
from dopr_robot.optim.coverage import plain_name
from dopr_robot.optim.factors import Factor, rank_of
from dopr_robot.optim.layers import PackedProjection
from dopr_robot.optim.sharding import gathered
from dopr_robot.optim.sketch import settle_rank

KEY = "activation"
VERSION = 3
Counters = dict[str, int]
_COUNTERS = ("step", "skipped", "skipped_in_a_row")


def pack(factor: Factor, counters: Counters) -> dict[str, Any]:
    """The entry of one weight; its ``average`` is the factor's own dict, so that it is always as new as that."""
    numbers = {"version": VERSION, "form": FORMS.index(factor.form), "refreshed": factor.refreshed, **counters}
    entry: dict[str, Any] = {name: torch.tensor(number) for name, number in numbers.items()}
    entry["turned"] = torch.as_tensor(factor.turned, dtype=torch.float32)
    if factor.state:
        entry["average"] = factor.state
    return entry


def is_entry(entry: Any) -> bool:
    """Whether this is what :func:`pack` made. Raises ValueError for one of a version that is not known here."""
    if not isinstance(entry, Mapping) or "version" not in entry:
        return False
    if int(entry["version"]) > VERSION:
        raise ValueError(
            f"the activation state is of version {int(entry['version'])} and this release reads up to {VERSION}: take a newer release"
        )
    return True


def unpack(factor: Factor, entry: Mapping[str, Any], rank: int | str) -> bool:
    """Take up an entry, on the weight's device. Returns whether all of it was of use: an inverse in another form is left out, moments of
    another size are too, and both are formed anew.
    """
    form, refreshed = FORMS[int(entry["form"])], int(entry["refreshed"])
    held = {} if refreshed < 0 else entry.get("average", {})
    tensors = {key: gathered(value.to(factor.weight.device, factor.dtype, copy=True)) for key, value in held.items()}
    factor.refreshed, factor.turned, factor.state = refreshed, float(entry["turned"]), tensors
    if factor.sketched and factor.form == form and "inside" in tensors:
        factor.rank = tensors["basis"].shape[-1]
    settle_rank(factor, rank)
    if factor.solved:
        factor.state, factor.refreshed = {}, refreshed if form == "batch" else -1
        return form == "batch"
    if isinstance(factor.matrix, PackedProjection) and tensors:
        factor.matrix.groups = next(tensor.shape[0] for tensor in tensors.values() if tensor.dim() == 3)
    if refreshed < 0:
        return True
    if factor.sketched:
        fits = form == factor.form and "inside" in tensors and tensors["basis"].shape[-2] == factor.dim
        if not fits:
            factor.state, factor.refreshed = {}, -1
        factor.keep()
        return fits
    sides = {"matrix": factor.matrix, "diagonal": factor.diagonal}
    fitting = {key: tensors[key] for key, side in sides.items() if side and key in tensors}
    sized = bool(tensors) and all(tensor.shape[-1] == sides[key].dim for key, tensor in fitting.items())  # type: ignore[union-attr]
    kept = tensors["basis"].shape[-1] if "basis" in tensors and factor.diagonal is None else None
    fits = kept == (rank_of(factor.dim, rank) if factor.form == "low_rank" else None)
    whole = sized and fits and form != "batch"
    if not whole:
        factor.state, factor.refreshed = fitting if sized else {}, -1
    factor.keep()
    return whole


def unpack_all(
    factors: Sequence[Factor], entries: dict[Any, Mapping[str, Any]], form: str, rank: int | str, stacklevel: int
) -> None:
    """Take up each factor's entry, and leave the others in ``entries``; without one it begins afresh. Warns of what did not fit."""
    anew = []
    for factor in factors:
        entry = entries.pop(factor.weight, None)
        if entry is None:
            factor.forget(form)
            settle_rank(factor, rank)
            continue
        if not unpack(factor, entry, rank):
            anew.append(factor.name)
        factor.leave_to_owner()
    if anew:
        warnings.warn(
            f"the state was saved under other options (form, rank, conv or include_bias): {len(anew)} layers "
            f"({', '.join(anew[:3])}) form their inverse anew at the next step",
            stacklevel=stacklevel,
        )


def gathered_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with all of what ranks hold parts of."""
    return {**entry, "average": {key: gathered(value) for key, value in entry.get("average", {}).items()}}


def counters_of(entries: Mapping[Any, Mapping[str, Any]]) -> Counters:
    """The counters of the entry that is furthest: a weight that had no gradient lately may lag behind."""
    latest = max(entries.values(), key=lambda entry: int(entry["step"]), default=None)
    return {name: 0 if latest is None else int(latest[name]) for name in _COUNTERS}


def by_weight(factors: Sequence[Factor], state: Mapping[str, Any]) -> dict[nn.Parameter, dict[str, Any]]:
    """The entries of a state that names its layers, of any version. Raises ValueError where the layers are others."""
    saved = state["factors"] if state.get("version", 1) >= VERSION else _from_names(state)
    known = {factor.name: factor.weight for factor in factors}
    if set(known) != set(saved):
        more, less = sorted(set(saved) - set(known)), sorted(set(known) - set(saved))
        raise ValueError(
            f"the state is another model's: {len(more)} layers are not here ({', '.join(more[:3])}), "
            f"{len(less)} are missing ({', '.join(less[:3])})"
        )
    return {known[name]: entry for name, entry in saved.items()}


def _from_names(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries by plain name of a state of version 1 or 2, which lay beside ``state`` and ``param_groups``."""
    entries = {}
    for name, saved in state["factors"].items():
        tensors = {key: value for key, value in saved.items() if key not in ("form", "refreshed", "turned")}
        form = saved.get("form") or ("low_rank" if "left" in tensors else "average")
        entries[plain_name(name)] = {
            "version": torch.tensor(VERSION),
            "form": torch.tensor(FORMS.index(form)),
            "refreshed": torch.tensor(int(saved["refreshed"])),
            "turned": torch.as_tensor(saved["turned"], dtype=torch.float32),
            **{key: torch.tensor(int(state[key])) for key in _COUNTERS},
            "average": tensors,
        }
    return entries


def room(factor: Factor, rank: int | str) -> dict[str, Tensor]:
    """Zeros of the shapes that :attr:`Factor.state` will have on this rank, for a loader that fills what is there in place. Nothing where
    the form is not known yet, or keeps nothing."""
    options: dict[str, Any] = {"dtype": factor.dtype, "device": factor.weight.device}
    shapes = shapes_of(factor, rank)
    return {
        key: factor.kept(key, torch.zeros(shape, **options))
        for key, shape in shapes.items()
        if not factor.alone(key) or factor.mine
    }


def shapes_of(factor: Factor, rank: int | str) -> dict[str, tuple[int, ...]]:
    """The shapes that :attr:`Factor.state` will have on all ranks together, always in the same order."""
    if factor.form == "batch":
        return {}
    groups, d = factor.groups, factor.dim
    kept = rank_of(d, rank) if factor.form == "low_rank" else factor.rank
    shapes: dict[str, tuple[int, ...]] = {}
    if factor.diagonal is not None:
        rows = factor.diagonal.dim
        shapes["diagonal"] = (rows,)
        if factor.matrix is None:
            shapes["inverse"] = (rows,)
        else:
            shapes |= {"matrix": (1, d, d), "basis": (d, d), "eigenvalues": (d,), "damped": (rows,)}
    elif factor.sketched and kept is not None:
        shapes |= {"basis": (groups, d, kept), "left": (groups, d, kept), "inside": (groups, kept, kept)}
        shapes |= {"scale": (groups,), "rest": (groups,)}
    elif kept is None:
        shapes |= {"matrix": (groups, d, d), "inverse": (groups, d, d)}
    else:
        shapes |= {"matrix": (groups, d, d), "basis": (groups, d, kept), "left": (groups, d, kept), "scale": (groups,)}
    return shapes

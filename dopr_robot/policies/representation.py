"""What the environment says in numbers, and how the network reads and answers it: rotations and the action's convention.

The one place where either is converted. What was chosen is part of the policy's options and so of its checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dopr_robot.errors import UnknownNameError, UserError
from dopr_robot.policies.rotations import SIZES, from_matrix, matrix_from_6d, matrix_to_6d, to_matrix
from dopr_robot.policies.spec import PolicySpec

CONVENTIONS = ("absolute", "delta", "relative")
Statistics = Mapping[str, Mapping[str, np.ndarray]]


@dataclass
class ActionsConfig:
    """How the network predicts actions that are targets to the environment.

    Args:
        convention: ``absolute`` (as the store has them), ``relative`` (to the newest observation, where the executed chunk starts) or
            ``delta`` (each to the one before it, the first to the newest observation).
        reference: observations that, one after the other, are what the action's first entries are targets of (joint positions for
            joint targets; position and orientation for poses). Entries beyond them, such as a gripper's, stay absolute. A rotation is
            compared in the reference's frame, positions in the world's.
    """

    convention: str = "absolute"
    reference: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Segment:
    """Neighbouring entries of a vector: a rotation, or plain numbers (``kind`` None)."""

    start: int
    stop: int
    kind: str | None

    @property
    def tags(self) -> str:
        """One letter an entry of the network's form."""
        return "r" * 6 if self.kind else "p" * (self.stop - self.start)


class Representation:
    """Converts between the environment's vectors and the network's.

    Args:
        spec: what the environment says.
        rotations: ``{key or "action": {index of the first entry: kind}}``; the kinds are those of
            :data:`~dopr_robot.policies.rotations.SIZES`. Networks see each as six numbers.
        actions: the action's convention.

    Raises:
        UserError: a rotation that does not fit its vector, or a reference that does not fit the action.
    """

    def __init__(self, spec: PolicySpec, rotations: Mapping[str, Mapping[Any, str]], actions: ActionsConfig) -> None:
        specs = {**spec.observations, "action": spec.action}
        for key in rotations:
            if key not in specs:
                raise UnknownNameError("key in policy.rotations", key, specs)
        self.segments = {key: _segments(key, specs[key].size, rotations[key]) for key in rotations}
        self.shapes: dict[str, tuple[int, ...]] = {
            key: (len(self._tags(key, each.size)),) if key in rotations else each.shape for key, each in specs.items()
        }
        self.n_obs_steps = spec.n_obs_steps
        self.convention, self.reference = actions.convention, list(actions.reference)
        self.action_tags = self._tags("action", spec.action.size)
        self.covered = 0
        if self.convention not in CONVENTIONS:
            raise UserError(f"policy.actions.convention={self.convention!r} is none of {', '.join(CONVENTIONS)}")
        if self.convention != "absolute":
            self._check_reference(spec)

    def _tags(self, key: str, size: int) -> str:
        return "".join(segment.tags for segment in self.segments.get(key, ())) or "p" * size

    def _check_reference(self, spec: PolicySpec) -> None:
        if spec.action_meaning.get("absolute") is False:
            raise UserError(
                f"policy.actions.convention={self.convention}: the store says that its actions are changes already: "
                "use absolute, which leaves them as they are"
            )
        if not self.reference:
            raise UserError(
                f"policy.actions.convention={self.convention} needs policy.actions.reference=[...]: the observations that "
                "actions are targets of"
            )
        for key in self.reference:
            if key not in spec.observations:
                raise UnknownNameError("observation in policy.actions.reference", key, spec.observations)
        tags = "".join(self._tags(key, spec.observations[key].size) for key in self.reference)
        if not self.action_tags.startswith(tags):
            raise UserError(
                f"policy.actions.reference={self.reference} does not fit the action entry by entry: they are {tags}, the "
                f"action is {self.action_tags} (p: a number, r: of a rotation)"
            )
        self.covered = len(tags)

    def read(self, key: str, value: Tensor) -> Tensor:
        """The network's form of one observation or of absolute actions: ``[..., *shape] -> [..., *shapes[key]]``."""
        if key not in self.segments:
            return value
        flat = value if key == "action" else value.reshape(*value.shape[:2], -1)
        parts = []
        for segment in self.segments[key]:
            part = flat[..., segment.start : segment.stop]
            parts.append(matrix_to_6d(to_matrix(part, segment.kind)) if segment.kind else part)
        return torch.cat(parts, dim=-1)

    def write(self, action: Tensor) -> Tensor:
        """The environment's form of absolute actions ``[..., A']``: ``[..., A]``."""
        if "action" not in self.segments:
            return action
        parts, at = [], 0
        for segment in self.segments["action"]:
            part = action[..., at : at + len(segment.tags)]
            parts.append(from_matrix(matrix_from_6d(part), segment.kind) if segment.kind else part)
            at += len(segment.tags)
        return torch.cat(parts, dim=-1)

    def encode(self, action: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """What the network is to predict: ``[B, H, A]`` in the environment's numbers to ``[B, H, A']``."""
        target = self.read("action", action)
        if not self.covered:
            return target
        seen, mine = self._seen(observation), target[..., : self.covered]
        before = torch.cat([seen, mine[:, self.n_obs_steps - 1 : -1]], dim=1)
        base = seen[:, -1:].expand_as(mine) if self.convention == "relative" else before
        return torch.cat([self._difference(mine, base), target[..., self.covered :]], dim=-1)

    def decode(self, predicted: Tensor, observation: Mapping[str, Tensor]) -> Tensor:
        """The inverse of :meth:`encode`."""
        if not self.covered:
            return self.write(predicted)
        seen, mine = self._seen(observation), predicted[..., : self.covered]
        if self.convention == "relative":
            mine = self._sum(mine, seen[:, -1:].expand_as(mine))
        else:
            steps: list[Tensor] = []
            for t in range(mine.shape[1]):
                steps.append(self._sum(mine[:, t], seen[:, t] if t < self.n_obs_steps else steps[-1]))
            mine = torch.stack(steps, dim=1)
        return self.write(torch.cat([mine, predicted[..., self.covered :]], dim=-1))

    def statistics(self, given: Statistics) -> dict[str, Mapping[str, np.ndarray]]:
        """Statistics of the network's form: six numbers of a rotation lie in [-1, 1] and are left as they are."""
        made = dict(given)
        for key, segments in self.segments.items():
            if key in given:
                made[key] = {
                    name: np.concatenate(
                        [
                            np.full(6, {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0}[name])
                            if segment.kind
                            else np.asarray(given[key][name]).reshape(-1)[segment.start : segment.stop]
                            for segment in segments
                        ]
                    )
                    for name in ("min", "max", "mean", "std")
                }
        return made

    def action_statistics(self, encoded: Tensor) -> dict[str, np.ndarray]:
        """Statistics of encoded actions ``[N, H, A']``."""
        flat = encoded.reshape(-1, encoded.shape[-1]).double()
        found = {"min": flat.amin(0), "max": flat.amax(0), "mean": flat.mean(0), "std": flat.std(0, correction=0)}
        plain = {"min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0}
        rotation = torch.tensor([tag == "r" for tag in self.action_tags], device=flat.device)
        return {
            name: torch.where(rotation, torch.full_like(value, plain[name]), value).cpu().numpy()
            for name, value in found.items()
        }

    def _seen(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The references in the network's form ``[B, To, covered]``."""
        return torch.cat(
            [self.read(key, observation[key].reshape(*observation[key].shape[:2], -1)) for key in self.reference],
            dim=-1,
        )

    def _difference(self, target: Tensor, base: Tensor) -> Tensor:
        return self._blockwise(target, base, lambda a, b: a - b, lambda a, b: b.mT @ a)

    def _sum(self, change: Tensor, base: Tensor) -> Tensor:
        return self._blockwise(change, base, lambda a, b: a + b, lambda a, b: b @ a)

    def _blockwise(self, a: Tensor, b: Tensor, numbers: Any, rotations: Any) -> Tensor:
        parts, at = [], 0
        tags = self.action_tags[: self.covered]
        while at < len(tags):
            width = 6 if tags[at] == "r" else len(tags[at:]) - len(tags[at:].lstrip("p"))
            x, y = a[..., at : at + width], b[..., at : at + width]
            if tags[at] == "r":
                parts.append(matrix_to_6d(rotations(matrix_from_6d(x), matrix_from_6d(y))))
            else:
                parts.append(numbers(x, y))
            at += width
        return torch.cat(parts, dim=-1)


def _segments(key: str, size: int, rotations: Mapping[Any, str]) -> tuple[_Segment, ...]:
    segments, at = [], 0
    for start, kind in sorted((int(start), kind) for start, kind in rotations.items()):  # JSON has text keys alone
        if kind not in SIZES:
            raise UnknownNameError(f"rotation in policy.rotations.{key}", kind, SIZES)
        stop = start + SIZES[kind]
        if start < at or stop > size:
            raise UserError(
                f"policy.rotations.{key}: a {kind} at {start} takes entries {start} to {stop - 1}, which {key}'s {size} entries "
                "and the other rotations do not leave free"
            )
        if start > at:
            segments.append(_Segment(at, start, None))
        segments.append(_Segment(start, stop, kind))
        at = stop
    if at < size:
        segments.append(_Segment(at, size, None))
    return tuple(segments)

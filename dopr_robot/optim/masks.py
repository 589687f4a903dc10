"""Padding that is to be left out of the statistics."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class TokenMasks:
    """The masks of the forwards that run now."""

    def __init__(self) -> None:
        self._masks: Sequence[Tensor] = ()
        self._used: set[int] = set()
        self._asked = False

    @contextmanager
    def given(self, masks: Sequence[Tensor]) -> Iterator[None]:
        """Hold ``masks`` for forwards in this context. Raises ValueError where one fitted no layer that was recorded."""
        self._masks, self._used, self._asked = masks, set(), False
        try:
            yield
            unused = [tuple(mask.shape) for index, mask in enumerate(masks) if index not in self._used]
            if unused and self._asked:
                raise ValueError(
                    f"the mask of shape {unused[0]} fits the tokens of no layer: give one shaped [B, T] like the input"
                )
        finally:
            self._masks = ()

    def find(self, tokens: torch.Size) -> Tensor | None:
        """The mask for tokens of a shape, or None."""
        self._asked = True
        for index, mask in enumerate(self._masks):
            if mask.shape == tokens:
                self._used.add(index)
                return mask
        return None

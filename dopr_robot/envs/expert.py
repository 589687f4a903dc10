"""What a task's expert has to be."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Expert(Protocol):
    """What acts for every copy of a batched task, reading the simulator's state. Made from the environment."""

    noise: NDArray[np.float64]
    """Standard deviation of the noise injected on each entry of the action, ``[A]``."""

    def act(self) -> NDArray[np.float64]:
        """Clean actions, ``[N, A]``."""
        ...


@runtime_checkable
class RememberingExpert(Protocol):
    """An expert that has to be told when an episode begins."""

    def begin(self, copy: int, seed: int) -> dict[str, Any]:
        """Called after the copy's reset; what is to be noted about the episode."""
        ...

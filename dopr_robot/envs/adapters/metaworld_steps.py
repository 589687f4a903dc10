"""Meta-World's control step in about four fifths of the time, the same to the bit.

Two of the package's functions are replaced, each by the same arithmetic on the same numbers: without copies, and without arrays of one
number.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray


def quicken(env: Any) -> None:
    """Let the package's environment observe and reward quickly; the reward's part is one for all environments of the process."""
    from metaworld.envs import sawyer_assembly_peg_v3  # the one module that imports the function by its name
    from metaworld.utils import reward_utils

    if not hasattr(reward_utils.tolerance, "__wrapped__"):
        quick = _tolerance(reward_utils.tolerance, reward_utils._sigmoids)
        reward_utils.tolerance = sawyer_assembly_peg_v3.tolerance = quick
    env._get_curr_obs_combined_no_goal = _frame(env)


def _tolerance(whole: Callable[..., Any], sigmoids: Callable[..., Any]) -> Callable[..., Any]:
    """The package's ``tolerance`` of a number outside NumPy's ``where``, which every reward asks for up to ten times."""

    @wraps(whole)
    def tolerance(
        x: Any, bounds: Any = (0.0, 0.0), margin: Any = 0.0, sigmoid: str = "gaussian", value_at_margin: float = 0.1
    ) -> Any:
        lower, upper = bounds
        if not isinstance(x, float) or lower > upper or not margin > 0:  # an array, a step, or an error
            return whole(x, bounds, margin, sigmoid, value_at_margin)
        if lower <= x <= upper:
            return 1.0
        distance = lower - x if x < lower else x - upper
        return float(sigmoids(np.float64(distance / margin), value_at_margin, sigmoid))

    return tolerance


def _frame(env: Any) -> Callable[[], NDArray[np.float64]]:
    """The package's ``_get_curr_obs_combined_no_goal``: hand, gripper's opening, and place and turn of every object, ``[18]``."""
    hand, right, left = (env.model.body(name).id for name in ("hand", "rightclaw", "leftclaw"))

    def frame() -> NDArray[np.float64]:
        places, frame = env.data.xpos, np.zeros(4 + env._obs_obj_max_len)
        gap = places[right] - places[left]
        frame[:3], frame[3] = places[hand], min(max(np.sqrt(gap.dot(gap)) / 0.1, 0.0), 1.0)
        positions, quaternions = env._get_pos_objects(), env._get_quat_objects()
        for thing in range(len(positions) // 3):
            at = 4 + 7 * thing
            frame[at : at + 3] = positions[3 * thing : 3 * thing + 3]
            frame[at + 3 : at + 7] = quaternions[4 * thing : 4 * thing + 4]
        return frame

    return frame

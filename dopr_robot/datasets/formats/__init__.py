"""Other people's formats, one file each, found by name in :data:`FORMATS`.

A package outside this one adds a format by naming, in the entry-point group ``dopr_robot.formats``, a function that calls
``FORMATS.register(name, Format(...))``.
"""

from dopr_robot.datasets.formats import d4rl, dapg, diffusion_policy, lerobot, minari, robomimic, robosuite
from dopr_robot.datasets.formats.conversion import convert
from dopr_robot.datasets.formats.format import FORMATS, Format, find_format

__all__ = [
    "FORMATS",
    "Format",
    "convert",
    "d4rl",
    "dapg",
    "diffusion_policy",
    "find_format",
    "lerobot",
    "minari",
    "robomimic",
    "robosuite",
]

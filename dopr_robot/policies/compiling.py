"""What ``torch.compile`` asks of a machine."""

import os
import shutil

from dopr_robot.errors import UserError


def check_compiler(setting: str, off: str) -> None:
    """Raise UserError without a C++ compiler for ``torch.compile``, where torch itself ends in a traceback.

    Args:
        setting: the setting that asks for it.
        off: its value that does not.

    ``CXX``, else ``g++``, is looked for, as torch does.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(
            f"{setting} needs a C++ compiler and {compiler} is not there: apt-get install g++, or {setting}={off}"
        )

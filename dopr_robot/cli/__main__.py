"""``python -m dopr_robot.cli`` is ``dopr``."""

import sys

from dopr_robot.cli import main

sys.exit(main())

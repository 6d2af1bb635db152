"""``python -m sb3_pmpo``: the command line."""

import sys

from sb3_pmpo.tools.cli import main

sys.exit(main())

"""`python -m rquant`: the command `rquant`."""

import sys

from .cli import main

sys.exit(main())

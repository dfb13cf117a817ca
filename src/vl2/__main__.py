"""`python -m vl2` is the command `vl2`."""

import sys

from vl2.cli import main

sys.exit(main())

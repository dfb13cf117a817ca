"""`torchrun -m vl2.cli` is the command `vl2` on many ranks."""

import sys

from vl2.cli import main

sys.exit(main())

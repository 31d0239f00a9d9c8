"""`python -m pia`: the same as the command `pia`."""

from __future__ import annotations

import sys

from pia.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m dino_lab` is `dino-lab`."""

from __future__ import annotations

import sys

from dino_lab.cli.app import main

if __name__ == "__main__":
    sys.exit(main())

"""`dino-lab`, and `python -m dino_lab`, as a process of its own."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from dino_lab.cli.app import main


def program() -> NoReturn:
    """The command line; the process ends with its exit code.

    Importing torch and timm makes millions of objects, none of them garbage, and looking for some takes as
    long as the import: so nobody looks until a verb that works for long (run, eval) says so, nor at the end.
    """
    # Large pages for large tensors: otherwise touching a batch of crops for the first time costs half as much
    # as making them. Torch reads it when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    gc.disable()
    code = main()
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    program()

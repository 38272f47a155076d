"""What BENCHMARKS.md is printed from: `python -m benchmarks`, or a part: `python -m benchmarks.step`."""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as `dino-lab` does, before torch is imported

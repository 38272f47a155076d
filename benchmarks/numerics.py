"""How far the DINO step is from the paper's formulas written out in plain Python numbers."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.report import section, table

# The written-out formulas are shared with the tests, which are no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference.compare import relative_errors  # type: ignore[import-not-found]

NAMES = {"loss": "loss", "targets": "target", "center": "centre", "teacher": "teacher (EMA)"}


def main() -> str:
    """Relative errors with 0 and 3 local crops."""
    rows = []
    for local_crops in (0, 3):
        errors = relative_errors(local_crops)
        rows.append([local_crops, *(f"{errors[name]:.1e}" for name in NAMES)])
    text = table(["local crops", *NAMES.values()], rows)
    text += "\n\nLargest difference over 4 steps, relative to the largest value, float64. Asked: under 1e-6."
    return section("DINO step against the formulas written out", "python -m benchmarks.numerics", text)


if __name__ == "__main__":
    print(main())

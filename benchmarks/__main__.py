"""Print every benchmark and write BENCHMARKS.md. Measure with nothing else running."""

from __future__ import annotations

from pathlib import Path

from benchmarks import (
    augment,
    checkpoint,
    knn,
    numerics,
    packed,
    page,
    pipeline,
    quickstart,
    startup,
    step,
    sweep,
    together,
)

HEAD = """# Benchmarks

Printed by `make bench`; each part also by its own command. Medians with their range; what is compared runs
interleaved in one process or one call.

That a run killed with -9 ends with the same weights, bit for bit, is tested: `tests/training/test_resume.py`.
Methods, ablations and what attention finds have tables of their own: `docs/methods.md`,
`docs/ablations/`, `docs/attention.md`.

Where there is a GPU, `python -m benchmarks.augment`, `.step` and `.together` measure on it; no figure of
one is here yet.
"""


def main() -> None:
    """Run all parts one after the other."""
    modules = (
        quickstart,
        numerics,
        augment,
        packed,
        pipeline,
        step,
        together,
        startup,
        checkpoint,
        sweep,
        knn,
        page,
    )
    parts = [module.main() for module in modules]
    text = "\n".join([HEAD, *parts])
    Path("BENCHMARKS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""What BENCHMARKS.md is printed from: `python -m benchmarks`, or a part: `python -m benchmarks.step`."""

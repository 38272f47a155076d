"""A seeded slice of benchmarks/fuzz.py: whatever is read, the answer is a UserError or none."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import Fuzz, failure


@pytest.mark.parametrize(("kind", "count"), [("specs", 60), ("settings", 120), ("sweeps", 4), ("runs", 30)])
def test_damaged_input_is_answered_with_a_line(kind: str, count: int, tmp_path: Path) -> None:
    fuzz = Fuzz(tmp_path, seed=1)
    cases = [fuzz.case(kind, number) for number in range(count)]
    found = {number: failure(call) for number, (_, call) in enumerate(cases)}
    assert {number: said for number, said in found.items() if said is not None} == {}


def test_the_fuzz_sees_it() -> None:
    def broken() -> None:
        raise RecursionError("too deep")

    assert (failure(broken) or "").startswith("RecursionError: too deep (")
    assert failure(lambda: bytearray(1)) is None

"""A run that was killed while torch.compile built a library does not stop the next one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dino_lab.building.compiled_libraries import remove_unfinished


def a_library() -> bytes:
    """Some library that is whole."""
    found = Path(torch._C.__file__).read_bytes()
    if not found.startswith(b"\x7fELF"):
        pytest.skip("libraries of this system are not in ELF")
    return found


def test_libraries_that_were_cut_go_and_others_stay(tmp_path: Path) -> None:
    whole = a_library()
    cut = {0: "a", 10: "b", 64: "c", len(whole) // 2: "d"}
    for size, folder in cut.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{size}.so").write_bytes(whole[:size])
    (tmp_path / "whole.so").write_bytes(whole)
    (tmp_path / "empty.cpp").touch()
    removed = remove_unfinished(tmp_path)
    assert {file.name for file in removed} == {f"{size}.so" for size in cut}
    assert sorted(file.name for file in tmp_path.rglob("*.*")) == ["empty.cpp", "whole.so"]
    assert remove_unfinished(tmp_path / "none") == []


def test_a_library_that_another_process_builds_stays(tmp_path: Path) -> None:
    (tmp_path / "begun.so").touch()
    command = [sys.executable, "-c", "input()", "-o", str(tmp_path / "begun.so")]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as compiler:
        assert remove_unfinished(tmp_path) == []
        compiler.communicate(b"\n")
    assert [file.name for file in remove_unfinished(tmp_path)] == ["begun.so"]

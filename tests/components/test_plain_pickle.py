"""Pickles are read without running anything."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_lab.components.evaluators._plain_pickle import Refused, read_plain_pickle

VALUES = {
    "names": ["a", "b"],
    "boxes": [(1.5, 2, np.float64(3), np.int32(4))],
    "some": np.array([1, 2]),
    "none": np.array([], dtype=np.int64),
    "big endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "truth": np.array([True, False]),
    "plain": [None, True, b"x\xff", "ü", -(2**70)],
}
PLAIN = {
    "names": ["a", "b"],
    "boxes": [[1.5, 2, 3.0, 4]],
    "some": [1, 2],
    "none": [],
    "big endian": [[0, 1, 2], [3, 4, 5]],
    "columns first": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
    "truth": [True, False],
    "plain": [None, True, b"x\xff", "ü", -(2**70)],
}


def read(folder: Path, content: bytes) -> Any:
    file = folder / "values.pkl"
    file.write_bytes(content)
    return read_plain_pickle(file)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_plain_values_and_arrays_of_every_protocol(protocol: int, core: bytes, tmp_path: Path) -> None:
    content = pickle.dumps(VALUES, protocol=protocol)
    if core == b"numpy.core" and protocol < 4:  # as older numpy wrote it; later protocols write lengths
        content = content.replace(b"numpy._core", core)
    assert read(tmp_path, content) == PLAIN


class Runs:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_something_does_not(protocol: int, tmp_path: Path) -> None:
    hostile = Runs(os.mkdir, str(tmp_path / "was here"))
    for value in (hostile, [1, {"a": hostile}], np.array([hostile], dtype=object)):
        content = pickle.dumps(value, protocol=protocol)
        with pytest.raises(Refused, match=r"it names posix\.mkdir, and only plain values"):
            read(tmp_path, content)
        assert not (tmp_path / "was here").exists()
    pickle.loads(content)  # the test can fail: an ordinary reader runs it
    assert (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Runs(eval, "1"), "builtins.eval"),
        (Runs(getattr, "a", "upper"), "builtins.getattr"),
        (Runs(np.load, "x"), "numpy.load"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (np.array, "numpy.array"),
    ],
)
def test_any_other_name_is_refused(value: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"it names {name}"):
        read(tmp_path, pickle.dumps(value))


def test_attributes_that_a_pickle_sets_do_not_outlive_it(tmp_path: Path) -> None:
    """BUILD on a class sets attributes of the class itself."""
    content = b"cnumpy\ndtype\n(N(S'numpy'\nI1\nS'__setstate__'\nI1\ndtb."
    assert "BUILD" in [opcode.name for opcode, _, _ in pickletools.genops(content)]
    with pytest.raises(Refused):
        read(tmp_path, content)
    assert read(tmp_path, pickle.dumps(np.arange(3))) == [0, 1, 2]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps(VALUES)[:-20],
        b"\x80\x04K\x01",
        pickle.dumps(np.arange(9)).replace(b"\x09", b"\x08", 1),
    ],
)
def test_a_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not a whole pickle"):
        read(tmp_path, content)


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([(1, 2)], dtype="i4,f4"), {1, 2}, 1j])
def test_other_values_are_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"only .*(are read)|it names"):
        read(tmp_path, pickle.dumps(value))


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Refused):
        read(tmp_path, pickle.dumps(endless))

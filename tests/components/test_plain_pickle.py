"""Pickles are read without running anything."""

from __future__ import annotations

import os
import pickle
import pickletools
import tracemalloc
from collections import OrderedDict
from collections.abc import Iterator
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


@pytest.fixture
def little_memory() -> Iterator[None]:
    """At most 50 MB, in whatever way they are asked for."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


LAUGHS = b"".join(b"]q%c(h%ch%ch%ch%ch%ch%ch%ch%ce" % (n, *[n - 1] * 8) for n in range(1, 30))
HOSTILE = {
    "a number for the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "that number as text": b"Np2147483647\n.",
    "a frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x3fN.",
    "bytes": b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00.",
    "a bytearray": b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",
    "text": b"\x80\x04\x8d\xff\xff\xff\xff\x0f\x00\x00\x00.",
    "a whole number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "one of many digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "one list in many places": b"\x80\x02]q\x00" + LAUGHS + b".",
    "rows without columns": pickle.dumps(np.zeros((300_000, 0))).replace(
        (300_000).to_bytes(3, "little"), (50_000_000).to_bytes(4, "little")[:3]
    ),
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "such a tuple as a key": b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.",
    "an extension": b"\x80\x02\x82\x01.",
    "a name of its own": b"P1\n.",
    "an instance": b"(iposix\ngetpid\n.",
    "an object": b"(cnumpy\nndarray\no.",
    "a value that is not there": b"\x80\x02a.",
    "a mark that is not there": b"\x80\x02t.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_takes_neither_memory_nor_time(
    name: str, tmp_path: Path, little_memory: None
) -> None:
    content = HOSTILE[name]
    try:
        assert read(tmp_path, content) is None
        assert "memo" in name or "as text" in name or name == "a frame"  # of which nothing is built
    except Refused:
        pass


def test_a_list_in_two_places_is_read_twice(tmp_path: Path) -> None:
    both = [1, 2]
    assert read(tmp_path, pickle.dumps({"a": both, "b": both, "t": (both, both)})) == {
        "a": both,
        "b": both,
        "t": [both, both],
    }

"""Pickles read without running anything: containers, text, numbers and numpy arrays of numbers.

A pickle is a program: it names functions and calls them. Here the names of the few functions that numpy
writes mean stand-ins of this file, which only put an array together, and every other name is refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


class Refused(Exception):
    """A pickle that is damaged, or names something other than plain values."""


def read_plain_pickle(file: Path) -> Any:
    """What a pickle holds, arrays as nested lists; Refused where it would run code or is no whole pickle."""
    try:
        return _plain(_Unpickler(io.BytesIO(file.read_bytes())).load())
    except Refused:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Refused(f"not a whole pickle ({reason})") from error


class _Unpickler(pickle.Unpickler):
    """Knows the names that numpy writes, and no other."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._stand_ins = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        stand_in = self._stand_ins.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise Refused(f"it names {module}.{name}, and only plain values and numpy arrays are read")
        return stand_in


class _Dtype:
    """What numpy.dtype("i8", False, True) and the state after it say."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


class _Array:
    """What numpy.core.multiarray._reconstruct(...) and the state after it say."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _values(content, dtype, shape, "F" if fortran else "C")


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """An array as protocol 5 has it."""
    return _values(content, dtype, shape, order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _values(content, dtype, (), "C")


def _values(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Nested lists of numbers, or one number for the shape ()."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
        raise Refused("it holds an array of objects, and only arrays of numbers are read")
    kind = np.dtype(dtype.code)  # of text, which names a type and nothing else
    if kind.kind not in "biuf":
        raise Refused(f"it holds an array of {dtype.code!r}, and only arrays of numbers are read")
    if dtype.order in ("<", ">"):
        kind = np.dtype(dtype.order + kind.str[1:])
    flat = np.frombuffer(content, kind)
    return flat.reshape(shape, order="F" if order == "F" else "C").tolist()


def _bytes_of(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them: latin-1 text."""
    if encoding != "latin1":
        raise Refused(f"it encodes text as {encoding!r}")
    return text.encode("latin-1")


def _stand_ins() -> dict[tuple[str, str], Any]:
    """By module and name; new ones for every pickle, which may set attributes of what it is given."""
    return {
        ("numpy", "dtype"): type("dtype", (_Dtype,), {}),
        ("numpy", "ndarray"): type("ndarray", (), {}),
        ("numpy.core.multiarray", "_reconstruct"): type("array", (_Array,), {}),
        ("numpy.core.multiarray", "scalar"): lambda dtype, content: _scalar(dtype, content),
        ("numpy.core.numeric", "_frombuffer"): lambda *given: _from_buffer(*given),
        ("__builtin__", "bytes"): lambda: b"",  # how protocols before 3 write no bytes
        ("_codecs", "encode"): lambda text, encoding: _bytes_of(text, encoding),
    }


def _plain(value: Any) -> Any:
    """Lists for tuples and arrays, all the way down."""
    match value:
        case _Array():
            return value.value
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case str() | int() | float() | bytes() | None:
            return value
    raise Refused(f"it holds a {type(value).__name__}, and only plain values and numpy arrays are read")

"""Pickles read without running anything: containers, text, numbers and numpy arrays of numbers.

A pickle is a program: it names functions and calls them. Here its instructions are carried out by this file,
which knows those that build plain values, and of functions the few that numpy writes. Everything else is
refused, and nothing takes more memory than a small multiple of the file.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 1 << 28  # of a file
MOST_VALUES = 100_000  # beyond those that the file has bytes for: one value can be in many places
MOST_DEPTH = 100  # of containers in containers
_NUMPY = ("numpy.core.multiarray", "numpy.core.numeric")
_FUNCTIONS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    (_NUMPY[0], "_reconstruct"),
    (_NUMPY[0], "scalar"),
    (_NUMPY[1], "_frombuffer"),
    ("__builtin__", "bytes"),  # how protocols before 3 write no bytes
    ("_codecs", "encode"),  # how they write the others
}


class Refused(Exception):
    """A pickle that is damaged, or names something other than plain values."""


def read_plain_pickle(file: Path) -> Any:
    """What a pickle holds, arrays and tuples as lists; Refused where it is anything else."""
    try:
        if file.stat().st_size > MOST_BYTES:
            raise Refused(f"it is larger than {MOST_BYTES >> 20} MiB")
        content = file.read_bytes()
        return _Plain(MOST_VALUES + len(content)).of(_Machine().run(content))
    except Refused:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Refused(f"not a whole pickle ({reason})") from error


@dataclass
class _Dtype:
    """numpy.dtype("i8", False, True), and the order that the state after it says."""

    code: str
    order: str = "="


@dataclass
class _Array:
    """numpy.core.multiarray._reconstruct(...), and the numbers that the state after it holds."""

    value: Any = field(default_factory=list)


@dataclass(frozen=True)
class _Name:
    """A function or a class that is known; as a value it is refused."""

    module: str
    name: str


class _Machine:
    """The stack, the marks on it and the memo of a pickle (PEP 3154 and the module pickletools)."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        """The value that is left on the stack."""
        for opcode, argument, _ in pickletools.genops(content):
            self._step(opcode.name, argument)
        return self.stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self._above()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "APPEND" | "APPENDS":
                items = [self.stack.pop()] if name == "APPEND" else self._above()
                _kind_of(self.stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._last(2) if name == "SETITEM" else self._above()
                _kind_of(self.stack[-1], dict).update(_pairs(items))
            case "BUILD":
                state = self.stack.pop()
                _build(self.stack[-1], state)
            case _:
                self.stack.append(self._value(name, argument))

    def _value(self, name: str, argument: Any) -> Any:
        """What an instruction puts on the stack."""
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
            case "EMPTY_LIST" | "EMPTY_TUPLE":
                return []
            case "LIST" | "TUPLE":
                return self._above()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return self._last(int(name[-1]))
            case "EMPTY_DICT":
                return {}
            case "DICT":
                return dict(_pairs(self._above()))
            case "GLOBAL" | "INST":
                return _named(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                return _named(*self._last(2))
            case "REDUCE":
                function, arguments = self._last(2)
                return _call(function, arguments)
            case _ if argument is not None and name not in ("PERSID", "EXT1", "EXT2", "EXT4"):
                return bytes(argument) if isinstance(argument, bytearray) else argument
        raise Refused(f"it has the instruction {name}, and only plain values and numpy arrays are read")

    def _above(self) -> list[Any]:
        """What lies above the last mark, taken off."""
        return self._last(len(self.stack) - self.marks.pop())

    def _last(self, count: int) -> list[Any]:
        """The last `count` values, taken off."""
        if not 0 <= count <= len(self.stack):
            raise ValueError("a value that is not there")
        start = len(self.stack) - count
        found = self.stack[start:]
        del self.stack[start:]
        return found


def _kind_of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Refused(f"it adds to a {type(value).__name__}, and only plain values and numpy arrays are read")
    return value


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _named(module: Any, name: Any) -> _Name:
    known = str(module).replace("numpy._core", "numpy.core")
    if (known, name) not in _FUNCTIONS:
        raise Refused(f"it names {module}.{name}, and only plain values and numpy arrays are read")
    return _Name(known, name)


def _call(function: Any, arguments: Any) -> Any:
    """What a function of numpy gives; arrays and types get their content from the state that follows."""
    match getattr(function, "name", None), arguments:
        case "dtype", [code, *_]:
            return _Dtype(str(code))
        case "_reconstruct", _:
            return _Array()
        case "scalar", [dtype, content]:
            return _values(content, dtype, (), "C")
        case "_frombuffer", [content, dtype, shape, order]:
            return _values(content, dtype, shape, order)
        case "bytes", []:
            return b""
        case "encode", [str(text), "latin1"]:
            return text.encode("latin-1")
    raise Refused("it calls what is no function, and only plain values and numpy arrays are read")


def _build(value: Any, state: Any) -> None:
    match value:
        case _Dtype():
            value.order = str(state[1])
        case _Array():
            _, shape, dtype, fortran, content = state
            value.value = _values(content, dtype, shape, "F" if fortran else "C")
        case _:
            raise Refused("it holds an object, and only plain values and numpy arrays are read")


def _values(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """Nested lists of numbers, or one number for the shape ()."""
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
        raise Refused("it holds an array of objects, and only arrays of numbers are read")
    kind = np.dtype(dtype.code)  # of text, which names a type and nothing else
    if kind.kind not in "biuf":
        raise Refused(f"it holds an array of {dtype.code!r}, and only arrays of numbers are read")
    if dtype.order in ("<", ">"):
        kind = np.dtype(dtype.order + kind.str[1:])
    flat = np.frombuffer(content, kind)
    if not len(flat) and math.prod(max(1, count) for count in shape) > MOST_VALUES:
        raise Refused(f"it holds an array of the shape {tuple(shape)} without a number")
    return flat.reshape(tuple(shape), order="F" if order == "F" else "C").tolist()


class _Plain:
    """Arrays as their numbers, all the way down, in at most so many values."""

    def __init__(self, most: int) -> None:
        self.left = most

    def of(self, value: Any, depth: int = 0) -> Any:
        """The plain value of what the machine built."""
        self.left -= 1
        if self.left < 0 or depth > MOST_DEPTH:
            raise Refused("its values contain each other too often, or too deeply")
        match value:
            case _Array():
                return value.value
            case dict():
                return {self.of(key, depth + 1): self.of(item, depth + 1) for key, item in value.items()}
            case list():
                return [self.of(item, depth + 1) for item in value]
            case str() | int() | float() | bytes() | None:
                return value
        raise Refused("it holds a function, and only plain values and numpy arrays are read")

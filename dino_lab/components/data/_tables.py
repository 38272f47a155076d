"""Columns of small tables that people keep beside images: CSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dino_lab.components.data._rows import read_schema, whole_parquet
from dino_lab.errors import Misfit, UserError, first_line, printable
from dino_lab.imaging.files import shown

DELIMITERS = ",;\t|"
JSON_LINES = (".jsonl", ".ndjson")
Column = list[Any]


def read_columns(file: Path, names: Sequence[str]) -> list[Column]:
    """The columns of these names, each with a value for every row.

    The kind of table is that of the file's suffix; what is none of the others is CSV. A Misfit names the
    columns that there are where one is missing, a UserError the first line that cannot be read.
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        _check_names(names, read_schema(file).names, file)
        with whole_parquet(file):
            table = pq.read_table(file, columns=list(dict.fromkeys(names)), partitioning=None)
            return [table[name].to_pylist() for name in names]
    text = _text(file)
    if suffix == ".json" or suffix in JSON_LINES:
        rows = list(_json_lines(text, file) if suffix in JSON_LINES else _json(text, file))
        _check_names(names, list(dict.fromkeys(key for row in rows for key in row)), file)
        return [[row.get(name) for row in rows] for name in names]
    return _csv(text, names, file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{shown(file)}: not UTF-8 text; save it as such") from None
    except OSError as error:
        raise UserError(f"{shown(file)}: cannot be read ({error.strerror})") from error


def _csv(text: str, names: Sequence[str], file: Path) -> list[Column]:
    """Values are separated by the sign with which the first line has all the names."""
    first = text.partition("\n")[0].rstrip("\r")
    headers = [next(csv.reader([first], delimiter=sign), []) for sign in DELIMITERS]
    header = next((its for its in headers if set(names) <= set(its)), max(headers, key=len))
    _check_names(names, header, file)
    at = [header.index(name) for name in names]
    columns: list[Column] = [[] for _ in names]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=DELIMITERS[headers.index(header)])
    next(reader)
    try:
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{shown(file)}:{reader.line_num}: {len(row)} values, and the first line names "
                    f"{len(header)} columns"
                )
            for column, position in zip(columns, at, strict=True):
                column.append(row[position])
    except csv.Error as error:
        raise UserError(f"{shown(file)}:{reader.line_num}: no line of CSV ({first_line(error)})") from error
    return columns


def _json(text: str, file: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown(file)}: no JSON ({first_line(error)})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{shown(file)}: should be a list of mappings, one for each image")
    yield from rows


def _json_lines(text: str, file: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{shown(file)}:{number}: no JSON ({first_line(error)})") from error
        if not isinstance(row, dict):
            raise UserError(f"{shown(file)}:{number}: should be a mapping, one image a line")
        yield row


def _check_names(names: Sequence[str], there: Sequence[str], file: Path) -> None:
    for name in names:
        if there.count(name) != 1:
            columns = printable(", ".join(there[:20]), 300) or "none"
            wrong = "two columns" if name in there else "no column"
            raise Misfit(("data", "labels"), f"{shown(file)} has {wrong} {name!r}; there is: {columns}")

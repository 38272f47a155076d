"""What the data of a run were: recorded at its start, and compared when it goes on or is used again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_lab.errors import UserError
from dino_lab.imaging.files import INDEX_SUFFIX
from dino_lab.protocols import Data, GivesFingerprint, ability
from dino_lab.registry import Params
from dino_lab.spec.model import Spec

COUNTS = ("train_images", "test_images", "classes", "channels", "size")
MOST_SIZES = 10_000  # files of a folder whose size is looked at; the names of all are
MOST_READ = 500  # files of a folder that are read
END = 1 << 16  # bytes at both ends of a file that are read


def record_of(spec: Spec, data: Data, evaluation_data: Data) -> dict[str, Any]:
    """What is recorded of the data of a spec, and under `evaluate_on` of those of that name."""
    record = data_record(spec.data, data)
    if spec.evaluate_on is not None:
        record["evaluate_on"] = data_record(spec.evaluate_on, evaluation_data)
    return record


def files_of(spec: Spec) -> dict[str, Any]:
    """The same as far as it is known without reading the data."""
    record: dict[str, Any] = {"files": fingerprints(spec.data)}
    if spec.evaluate_on is not None:
        record["evaluate_on"] = {"files": fingerprints(spec.evaluate_on)}
    return record


def data_record(params: Params, data: Data) -> dict[str, Any]:
    """Counts, and a fingerprint of the files that the parameters name, or that the data give."""
    files = fingerprints(params)
    if (giving := ability(data, GivesFingerprint)) is not None:
        files["files"] = giving.fingerprint()
    return {**{key: getattr(data, key) for key in COUNTS}, "files": files}


def fingerprints(params: Params) -> dict[str, str]:
    """By key, 16 hex digits of each file or folder that a data component is given."""
    values = {key: getattr(params, key) for key in type(params).model_fields if key != "name"}
    paths = {key: Path(value).expanduser() for key, value in values.items() if isinstance(value, (str, Path))}
    return {key: found for key, path in paths.items() if (found := fingerprint(path))}


def fingerprint(path: Path) -> str:
    """16 hex digits of a file, or of a folder: all names, many files' sizes, and some files' contents.

    Nothing is decoded, and of a file no more than 64 KiB at either end are read. A copy of a folder has the
    same fingerprint; in a folder of more than 500 files, an image replaced by another of the same size in
    bytes may go unnoticed. A path that is not there gives an empty text.
    """
    digest = hashlib.sha256()
    try:
        if path.is_file():
            digest.update(_ends(path))
        elif path.is_dir():
            _add_folder(digest, path)
        else:
            return ""
    except OSError:  # a text that is no path, or a file that vanished meanwhile
        return ""
    return digest.hexdigest()[:16]


def _add_folder(digest: Any, path: Path) -> None:
    names = sorted(
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, files in os.walk(path, followlinks=True)
        for name in files
        if not name.endswith(INDEX_SUFFIX)
    )
    for names_alone, step in ((False, _step(names, MOST_SIZES)), (True, 1)):
        for name in names[::step]:
            length = "" if names_alone else str(os.lstat(path / name).st_size)
            digest.update(f"{name}\0{length}\0".encode(errors="surrogateescape"))
    for name in names[:: _step(names, MOST_READ)]:
        if (path / name).is_file():  # and no dead link
            digest.update(_ends(path / name))


def _step(names: list[str], most: int) -> int:
    return max(1, -(-len(names) // most))


def _ends(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(END)
        opened.seek(max(0, size - END))
        return str(size).encode() + start + opened.read(END)


def check_data(folder: Path, recorded: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """A UserError where the data are not those that were recorded; `now` may lack the counts."""
    if recorded is None:
        return
    if changes := _changes("data", recorded, now):
        raise UserError(
            f"{folder}: was trained on other data ({changes}); --accept-data uses this run all the same, "
            "another name trains anew"
        )
    if changes := _changes("evaluate_on", recorded.get("evaluate_on", {}), now.get("evaluate_on", {})):
        raise UserError(
            f"{folder}: was evaluated on other data ({changes}); --accept-data keeps its scores all the "
            "same, another name trains anew"
        )


def _changes(field: str, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the data of a field are not those that were recorded, or nothing."""
    counts = [
        f"{recorded[key]} {key.replace('_', ' ')} then, {now[key]} now"
        for key in COUNTS
        if key in now and key in recorded and recorded[key] != now[key]
    ]
    then, files = recorded.get("files", {}), now.get("files", {})
    others = [
        f"{field}.{key} has other files"
        for key in files
        if key in then and files[key] != then[key] and files[key]
    ]
    return "; ".join(counts + others)

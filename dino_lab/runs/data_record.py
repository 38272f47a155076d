"""What the data of a run were: recorded at its start, and compared when it goes on or is used again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino_lab.errors import UserError
from dino_lab.protocols import Data
from dino_lab.registry import Params

COUNTS = ("train_images", "test_images", "classes", "channels", "size")
MOST_SIZES = 10_000  # files of a folder whose size is looked at; the names of all are
END = 1 << 16  # bytes at both ends of a file that are read


def data_record(params: Params, data: Data) -> dict[str, Any]:
    """Counts, and a fingerprint of the files that the parameters name."""
    return {**{key: getattr(data, key) for key in COUNTS}, "files": fingerprints(params)}


def fingerprints(params: Params) -> dict[str, str]:
    """By key, 16 hex digits of each file or folder that a data component is given."""
    values = {key: getattr(params, key) for key in type(params).model_fields if key != "name"}
    paths = {key: Path(value).expanduser() for key, value in values.items() if isinstance(value, (str, Path))}
    return {key: found for key, path in paths.items() if (found := fingerprint(path))}


def fingerprint(path: Path) -> str:
    """16 hex digits of a file's size and ends, or of a folder's names and of the sizes of some files.

    Nothing is decoded. A copy of a folder has the same fingerprint; an image replaced by another of the same
    size in bytes goes unnoticed. A path that is not there gives an empty text.
    """
    digest = hashlib.sha256()
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError:  # a text that is no path
        return ""
    if is_file:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            digest.update(file.read(END))
            file.seek(max(0, size - END))
            digest.update(file.read(END))
    elif is_folder:
        names = sorted(
            os.path.join(os.path.relpath(folder, path), name)
            for folder, _, files in os.walk(path, followlinks=False)
            for name in files
        )
        step = -(-len(names) // MOST_SIZES) or 1
        for i, name in enumerate(names):
            length = str(os.lstat(path / name).st_size) if i % step == 0 else ""
            digest.update(f"{name}\0{length}\0".encode(errors="surrogateescape"))
    else:
        return ""
    return digest.hexdigest()[:16]


def check_data(folder: Path, recorded: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """A UserError where the data are not those that were recorded; `now` may lack the counts."""
    if recorded is None:
        return
    changes = [
        f"{recorded[key]} {key.replace('_', ' ')} then, {now[key]} now"
        for key in COUNTS
        if key in now and key in recorded and recorded[key] != now[key]
    ]
    then, files = recorded.get("files", {}), now["files"]
    changes += [
        f"data.{key} has other files"
        for key in files
        if key in then and files[key] != then[key] and files[key]
    ]
    if changes:
        raise UserError(
            f"{folder}: was trained on other data ({'; '.join(changes)}); --accept-data uses this run all "
            "the same, another name trains anew"
        )

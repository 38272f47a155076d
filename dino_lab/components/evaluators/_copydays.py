"""The layout of INRIA Copydays (Jégou et al., ECCV 2008; Douze et al., CIVR 2009), and of others like it.

Originals lie in `original/`, copies in `strong/`, `jpegqual/<quality>/`, `crops/<percent>/` or any other
folder; or all lie in one folder and originals are those whose number ends in 00. A copy's name begins like
that of its original: 200103.jpg is one of 200100.jpg.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dino_lab.errors import UserError
from dino_lab.imaging.files import list_images

ORIGINALS = "original"
FLAT = "copies"  # the one block of a folder without folders


@dataclass(frozen=True)
class CopydaysLayout:
    """Originals, and by the name of their block copies with the rows of their originals."""

    originals: list[Path]
    blocks: dict[str, list[tuple[Path, int]]]


def read_layout(folder: Path, prefix: int) -> CopydaysLayout:
    """The layout of a folder where the names of a copy and its original begin alike; a UserError if none."""
    if not folder.is_dir():
        raise UserError(f"evaluator copy_detection: {folder}: there is no such folder")
    files = list_images(folder).images
    flat = not (folder / ORIGINALS).is_dir()
    originals = [file for file in files if _is_original(file, folder, flat)]
    if not originals:
        raise UserError(f"{folder}: no originals: neither images in {ORIGINALS}/ nor images named *00")
    rows = {file.name[:prefix]: row for row, file in enumerate(originals)}
    if len(rows) < len(originals):
        raise UserError(
            f"{folder}: names of two originals begin with the same {prefix} characters; prefix says how many "
            "a copy has in common with its original"
        )
    blocks: dict[str, list[tuple[Path, int]]] = {}
    for file in sorted(set(files) - set(originals)):
        if file.name[:prefix] not in rows:
            raise UserError(f"{file}: no original's name begins with {file.name[:prefix]!r}")
        blocks.setdefault(_block(file, folder), []).append((file, rows[file.name[:prefix]]))
    if not blocks:
        raise UserError(f"{folder}: holds {len(originals)} originals, and no copy of them")
    return CopydaysLayout(originals, blocks)


def _is_original(file: Path, folder: Path, flat: bool) -> bool:
    if flat:
        return file.stem.endswith("00") and file.parent == folder
    return file.is_relative_to(folder / ORIGINALS)


def _block(file: Path, folder: Path) -> str:
    """Such as `strong` or `jpegqual_3`."""
    return "_".join(file.relative_to(folder).parts[:-1]) or FLAT

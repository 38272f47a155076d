"""Which files below a folder are images, and what is passed over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dino_lab.errors import UserError, printable
from dino_lab.imaging.bands import DICOM, DICOM_AT

# Files with these names are taken for images, so that a damaged one is an error and not passed over.
SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jif", ".jp2", ".jpc", ".jpe"),
    *(".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".qoi"),
    *(".sgi", ".tga", ".tif", ".tiff", ".webp"),
}
# Of files that are images only where their bands are named; elsewhere an array may be anything.
RASTER_SUFFIXES = {".dcm", ".dicom", ".npy"}
_RASTERS: ContextVar[bool] = ContextVar("rasters", default=False)
# Formats whose first bytes cannot be mistaken. TIFF is not one of them: cameras' raw files begin alike.
CERTAIN = ("AVIF", "GIF", "JPEG", "JPEG2000", "PNG", "QOI", "WEBP")
UNNAMED = (*CERTAIN, "BMP", "PPM", "TIFF")  # of files without a suffix
INDEX_SUFFIX = ".shard-index"  # of files that this package writes beside shards
COPIES = ("~", "_original", ".bak", ".crdownload", ".orig", ".part", ".partial", ".swp", ".tmp")  # suffixes
SYSTEM = {"$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "__pycache__", "lost+found"}

HIDDEN = "hidden"
SYSTEMS = "folder of the operating system"
DEAD = "link that leads nowhere"
TWICE = "link to a folder that is read already"
COPY = "backup or unfinished copy"
SPECIAL = "neither file nor folder"


@dataclass
class Listing:
    """Images in the order of their paths, and by reason what was passed over."""

    images: list[Path] = field(default_factory=list)
    passed_over: dict[str, list[Path]] = field(default_factory=dict)

    def skip(self, reason: str, path: Path) -> None:
        """Pass over a file or a folder."""
        self.passed_over.setdefault(reason, []).append(path)

    def read_after_all(self, name: str) -> None:
        """Files of this name are no images, and are not passed over."""
        kept = {reason: [p for p in paths if p.name != name] for reason, paths in self.passed_over.items()}
        self.passed_over = {reason: paths for reason, paths in kept.items() if paths}

    def add(self, other: Listing) -> None:
        """Append another listing."""
        self.images += other.images
        for reason, paths in other.passed_over.items():
            self.passed_over.setdefault(reason, []).extend(paths)


@contextmanager
def listing_rasters(yes: bool) -> Iterator[None]:
    """Whether NumPy arrays and DICOM files count as images in what is listed inside."""
    before = _RASTERS.set(yes)
    try:
        yield
    finally:
        _RASTERS.reset(before)


def list_images(folder: Path) -> Listing:
    """The images below a folder, links followed, each folder read once; a UserError if one cannot be read.

    An image is a file with the suffix of one, or whose content begins like one. A link that leads nowhere and
    is named like an image, or has no suffix, is listed as an image that cannot be read.
    """
    listing = Listing()
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    waiting = [folder]
    while waiting or links:
        # Links last, so that a folder is read where it lies and not where a link to it does.
        here = waiting.pop() if waiting else links.pop(0)
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            listing.skip(TWICE, here)
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries(here):
            path = here / entry.name
            if reason := reason_to_skip(entry, path):
                listing.skip(reason, path)
            elif entry.is_dir():
                (links if entry.is_symlink() else waiting).append(path)
            else:
                listing.images.append(path)
    listing.images.sort()
    return listing


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; a UserError if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{shown(folder)}: cannot be read ({error.strerror})") from error


def reason_to_skip(entry: os.DirEntry[str], path: Path) -> str | None:
    """Why an entry of a folder is neither a folder nor an image that may hold data, or None."""
    if entry.name.startswith("."):
        return HIDDEN
    if entry.name in SYSTEM:
        return SYSTEMS
    if entry.is_symlink() and not path.exists():
        return None if path.suffix.lower() in SUFFIXES or _has_no_suffix(path) else DEAD
    if entry.is_dir():
        return None
    if not entry.is_file():
        return SPECIAL
    if path.suffix.lower() in SUFFIXES or (_RASTERS.get() and _is_raster(path)):
        return None
    if path.suffix.lower().endswith(COPIES):
        return COPY
    return None if _begins_like_an_image(path) else _no_image(path)


def _no_image(path: Path) -> str:
    return f"no image ({'no suffix' if _has_no_suffix(path) else path.suffix.lower()})"


def _has_no_suffix(path: Path) -> bool:
    return not path.suffix or path.suffix[1:].isdigit()  # frame.0001


def _is_raster(path: Path) -> bool:
    """By its suffix; DICOM files often have none, or a number."""
    if path.suffix.lower() in RASTER_SUFFIXES:
        return True
    if not _has_no_suffix(path):
        return False
    with path.open("rb") as content:
        return content.read(DICOM_AT + len(DICOM)).endswith(DICOM)


def _begins_like_an_image(path: Path) -> bool:
    try:
        content = path.open("rb")
    except OSError as error:
        raise UserError(f"{shown(path)}: cannot be read ({error.strerror})") from error
    with content:
        start = content.read(16)
        Image.init()
        for name in CERTAIN:
            accept = Image.OPEN[name][1] if name in Image.OPEN else None
            if accept is not None and accept(start) is True:
                return True
        if not _has_no_suffix(path):
            return False
        content.seek(0)
        try:
            Image.open(content, formats=UNNAMED)
        except Exception:  # whatever Pillow's plug-ins make of a text or an archive
            return False
        return True


def shown(path: Path | str, longest: int = 200) -> str:
    """A path as a message shows it."""
    return printable(str(path), longest)


def below(folder: Path, paths: Iterable[Path]) -> Iterator[str]:
    """Paths as seen from a folder, as a message shows them."""
    for path in paths:
        yield shown(path.relative_to(folder) if path.is_relative_to(folder) else path)

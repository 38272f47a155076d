"""Images without classes, wherever they lie: folders, lists of files, patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_lab.components.data._paths import named_folder, named_path
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.files import Listing, list_images, shown

AGAIN = "image that is named twice"
PATTERN = "*?["


@dataclass
class Pool:
    """Images in order, each with a name that stays when others come or go, and what was passed over."""

    images: dict[Path, str] = field(default_factory=dict)
    rest: Listing = field(default_factory=Listing)

    @property
    def root(self) -> Path:
        """The folder that all images are below."""
        return Path(os.path.commonpath([image.parent for image in self.images] or [Path.cwd()]))

    def add(self, images: Iterable[Path], root: Path) -> None:
        """Take images in, named by their paths below a folder."""
        for image in images:
            if image in self.images:
                self.rest.skip(AGAIN, image)
            else:
                self.images[image] = os.path.relpath(image, root)

    def add_folder(self, folder: Path, root: Path) -> None:
        """Take all images below a folder in."""
        found = list_images(folder)
        self.add(found.images, root)
        self.rest.add(Listing([], found.passed_over))


def is_folder_alone(paths: str | Sequence[str]) -> bool:
    """Whether these paths are one folder, whose folders may be classes."""
    text = paths if isinstance(paths, str) else paths[0] if len(paths) == 1 else ""
    return bool(text) and (named_path(text).is_dir() or not _means_several(text))


def pool(paths: str | Sequence[str]) -> Pool:
    """The images of folders, of text files with a path in each line, and of patterns such as `a/**/*.jpg`.

    A UserError where one of them gives no image.
    """
    found = Pool()
    for text in [paths] if isinstance(paths, str) else paths:
        path, before = named_path(text), len(found.images) + len(found.rest.passed_over.get(AGAIN, ()))
        if path.is_file():
            found.add(_listed(path), path.parent)
        elif not path.is_dir() and any(sign in text for sign in PATTERN):
            _add_matches(found, str(path))
        else:
            found.add_folder(named_folder(text), path)
        if len(found.images) + len(found.rest.passed_over.get(AGAIN, ())) == before:
            raise UserError(f"{shown(path)}: gives no image")
    return found


def _means_several(text: str) -> bool:
    return named_path(text).is_file() or any(sign in text for sign in PATTERN)


def _add_matches(found: Pool, pattern: str) -> None:
    fixed = Path(*[part for part in Path(pattern).parts if not any(sign in part for sign in PATTERN)])
    for match in sorted(map(Path, glob.glob(pattern, recursive=True))):
        if match.is_dir():
            continue  # `**` matches folders too; what lies in them matches by itself where it is meant
        found.add([match], fixed)


def _listed(file: Path) -> list[Path]:
    """The paths in a text file, taken from where it lies; a UserError names the first line that is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise Misfit(
            ("data", "path"),
            f"{shown(file)} is neither a folder nor a text file with a path in each line",
        ) from None
    except OSError as error:
        raise UserError(f"{shown(file)}: cannot be read ({error.strerror})") from error
    paths = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path = file.parent / Path(line.strip()).expanduser()
        if not path.is_file():
            raise UserError(f"{shown(file)}:{number}: {printable(line.strip(), 200)} is no file")
        paths.append(path)
    return paths

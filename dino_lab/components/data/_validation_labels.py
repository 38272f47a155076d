"""Labels of validation images that all lie in one folder: Tiny-ImageNet's, and ImageNet's with its devkit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from dino_lab.components.data._class_folders import LOOSE, subfolders
from dino_lab.components.data._image_labels import NO_ROW
from dino_lab.errors import UserError, first_line, printable
from dino_lab.imaging.files import Listing, list_images, shown

IMAGENET = re.compile(r"ILSVRC2012_val_(\d{8})")  # the names of its images
TRUTH = "ILSVRC2012_validation_ground_truth.txt"  # a number from 1 on for each image, in the order of names
SYNSETS = "meta.mat"  # which class has which number
DEVKIT = ("", "data", "*devkit*", "*devkit*/data")  # folders below data.path in which both are looked for


def has_own_labels(folder: Path) -> bool:
    """Whether a split's folder has a table of labels, or ImageNet's validation images by their names."""
    if _annotations(folder).is_file():
        return True
    rest = Listing()
    if subfolders(folder, rest):
        return False
    return any(IMAGENET.match(path.name) for path in rest.passed_over.get(LOOSE, [])[:1])


def own_classes(folder: Path, root: Path) -> tuple[dict[str, list[Path]], Listing]:
    """Images of such a folder by the name of their class (WordNet's, such as n01440764), and the rest.

    A UserError says which file is missing or which line is wrong.
    """
    listed = list_images(folder)
    annotations = _annotations(folder)
    if annotations.is_file():
        listed.read_after_all(annotations.name)
        label_of = _tiny_imagenet(annotations)
    else:
        label_of = _imagenet(listed.images, root)
    classes: dict[str, list[Path]] = {}
    rest = Listing([], listed.passed_over)
    for image in listed.images:
        if image.name in label_of:
            classes.setdefault(label_of[image.name], []).append(image)
        else:
            rest.skip(NO_ROW, image)
    return dict(sorted(classes.items())), rest


def _annotations(folder: Path) -> Path:
    return folder / f"{folder.name}_annotations.txt"


def _tiny_imagenet(file: Path) -> dict[str, str]:
    """File name and class in the first two columns, and a box in the others, separated by tabs."""
    found = {}
    for number, line in enumerate(_lines(file), 1):
        name, *values = line.split("\t")
        if not values:
            raise UserError(f"{shown(file)}:{number}: should be an image, its class and a box, with tabs")
        found[name] = values[0]
    return found


def _imagenet(images: list[Path], root: Path) -> dict[str, str]:
    truth = _file(root, TRUTH)
    lines = _lines(truth)
    known = _synsets(root)
    found = {}
    for image in images:
        match = IMAGENET.match(image.name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(lines):
            continue
        line = lines[number - 1].strip()
        if line not in known:
            raise UserError(f"{shown(truth)}:{number}: {printable(line, 60)} is no class of {SYNSETS}")
        found[image.name] = known[line]
    return found


def _synsets(root: Path) -> Mapping[str, str]:
    """WordNet's name of each class by its number in the devkit, which is not the order of the names."""
    from scipy.io import loadmat

    file = _file(root, SYNSETS)
    try:
        rows = loadmat(file, squeeze_me=True)["synsets"]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in rows}
    except Exception as error:  # as many kinds as scipy has readers
        raise UserError(f"{shown(file)}: not the devkit's table of classes ({first_line(error)})") from error


def _file(root: Path, name: str) -> Path:
    for pattern in DEVKIT:
        for folder in sorted(root.glob(pattern)) if pattern else [root]:
            if (folder / name).is_file():
                return folder / name
    raise UserError(
        f"{shown(root)}: ImageNet's validation images lie in one folder, and there is no {name}; unpack the "
        "development kit (ILSVRC2012_devkit_t12.tar.gz) beside them, or make a folder of each class"
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(file)}: cannot be read ({first_line(error)})") from error

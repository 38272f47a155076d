"""The pictures of a file: one of an image, many of an animation or a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageSequence, UnidentifiedImageError

from dino_lab.errors import UserError
from dino_lab.imaging import video
from dino_lab.imaging.decode import BadImage, Pixels, decode

ANIMATED = {"GIF", "PNG", "WEBP"}  # other files of several pictures are pages, or previews


class BadFile(UserError):
    """A file of which there are no pictures to be had."""


def pictures(file: Path, size: int, every: int) -> Iterator[tuple[int | None, Pixels]]:
    """RGB pixels [3, size, size] of each picture, cut as images to train on are, and its number from 0.

    An image has no number; of an animation or a video every so many pictures are given. A BadFile says what
    is wrong with the file.
    """
    if not file.is_file():
        raise BadFile(f"{file}: {'is a folder; name its files' if file.is_dir() else 'no such file'}")
    read = _frames if file.suffix.lower() in video.SUFFIXES else _images
    try:
        for number, image in read(file):
            if number is None or number % every == 0:
                yield number, decode(image, size)
    except BadFile:
        raise
    except UserError as error:  # the package that reads videos is missing
        raise BadFile(f"{file}: {error}") from error
    except video.NoVideo as error:
        raise BadFile(f"{file}: cannot be read ({error})") from error
    except BadImage as error:
        raise BadFile(f"{file}: unreadable image ({error})") from error
    except UnidentifiedImageError as error:
        raise BadFile(
            f"{file}: neither an image nor a video ({', '.join(sorted(video.SUFFIXES))})"
        ) from error
    except Exception as error:  # as many kinds as Pillow has plug-ins
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise BadFile(f"{file}: cannot be read ({reason})") from error


def _images(file: Path) -> Iterator[tuple[int | None, Image.Image]]:
    with Image.open(file) as image:
        if image.format in ANIMATED and getattr(image, "n_frames", 1) > 1:
            yield from enumerate(ImageSequence.Iterator(image))
        else:
            yield None, image


def _frames(file: Path) -> Iterator[tuple[int, Image.Image]]:
    return enumerate(video.frames(file))

"""The verb that draws the attention of a network over images."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import Device, Of, Plugins
from dino_lab.errors import UserError, printable
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from torch import Tensor

    from dino_lab.evaluation.attention_maps import Maps
    from dino_lab.evaluation.encoder import Encoder
    from dino_lab.imaging.decode import Pixels
from PIL import Image, ImageSequence, UnidentifiedImageError

from dino_lab.imaging.decode import BadImage, Pixels, decode

ANIMATED = {"GIF", "PNG", "WEBP"}  # other files of several pictures are pages, or previews
VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"}


class BadFile(UserError):
    """A file of which there are no pictures to be had."""


def pictures(file: Path, size: int, every: int) -> Iterator[tuple[int | None, Pixels]]:
    """RGB pixels [3, size, size] of each picture, cut as images to train on are, and its number from 0.

    An image has no number; of an animation or a video every so many pictures are given. A BadFile says what
    is wrong with the file.
    """
    if not file.is_file():
        raise BadFile(f"{file}: {'is a folder; name its files' if file.is_dir() else 'no such file'}")
    read = _frames if file.suffix.lower() in VIDEOS else _images
    try:
        for number, image in read(file):
            if number is None or number % every == 0:
                yield number, decode(image, size)
    except BadFile:
        raise
    except BadImage as error:
        raise BadFile(f"{file}: unreadable image ({error})") from error
    except UnidentifiedImageError as error:
        raise BadFile(f"{file}: neither an image nor a video ({', '.join(sorted(VIDEOS))})") from error
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
    try:
        import av
    except ImportError:
        raise BadFile(f"{file}: to read a video takes PyAV: pip install 'dino-lab[video]'") from None
    with av.open(str(file)) as container:
        if not container.streams.video:
            raise BadFile(f"{file}: holds no video")
        for number, frame in enumerate(container.decode(video=0)):
            yield number, frame.to_image()


SHOWN = 256  # pixels of a side at least, of the image that the maps are laid over


def attend(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="As `run` prints it.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, animations and videos.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pictures go. [default: RUN_FOLDER/attention]")
    ] = None,
    head: Annotated[str, typer.Option(metavar="all|mean|N", help="Which heads; N counts from 1.")] = "all",
    pixels: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Size of what the network sees. [default: as the run]"),
    ] = None,
    mass: Annotated[
        float, typer.Option(metavar="SHARE", min=0.01, max=0.99, help="Share of a map that its mask holds.")
    ] = 0.6,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Of a video, every so many frames.")] = 1,
    of: Annotated[Of, typer.Option(help="Whose attention.")] = Of.teacher,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Draw what the heads of a run's last block look at in images and videos.

    One picture an image: each head's attention over it, and below what holds most of it. A network without
    attention from a CLS token shows how like the mean each of its tokens is.
    """
    if head not in ("all", "mean") and not (head.isdecimal() and int(head) > 0):
        raise UserError(f"--head {head}: should be all, mean or a number from 1 on")
    load_plugins(plugin)
    from dino_lab.building.components import distinct
    from dino_lab.cli.attend import BadFile, pictures
    from dino_lab.runs.files import replace_file

    to = folder / "attention" if to is None else to
    written, bad = 0, 0
    with _encoder(folder, of.value, device, pixels) as encode:
        for file, name in zip(files, distinct([file.stem for file in files], "-"), strict=True):
            try:
                for number, image in pictures(file, max(SHOWN, encode.size), every):
                    frame = name if number is None else f"{name}_{number:06}"
                    drawn = _drawn(encode, image, head, mass)
                    to.mkdir(parents=True, exist_ok=True)
                    replace_file(to / f"{frame}.png", drawn)
                    written += 1
            except BadFile as error:
                print(printable(str(error)), file=sys.stderr)
                bad += 1
    if written:
        print(f"wrote {written} picture{'s' * (written > 1)} to {printable(str(to))}")
    if bad:
        raise typer.Exit(2)


@contextmanager
def _encoder(folder: Path, of: str, device: str | None, pixels: int | None) -> Iterator[Encoder]:
    from dino_lab.building.execution import choose_device
    from dino_lab.registry import registry
    from dino_lab.runs.open import open_run

    run = open_run(folder, registry, choose_device(device))
    gc.enable()  # see __main__.py
    with run.encoder(of) as encode:
        yield encode.at(pixels, run.channels)


def _drawn(encode: Encoder, image: Pixels, head: str, mass: float) -> bytes:
    """A PNG of an image [3, H, W] as the network sees it.

    Above: the image and its maps, all on one scale. Below: the scale, and the cells that hold a share `mass`
    of each map.
    """
    import torch
    from PIL import Image

    from dino_lab.evaluation.attention_maps import maps_of, mass_masks
    from dino_lab.imaging import pictures as draw

    pixels = torch.from_numpy(image)
    maps = maps_of(encode.outputs(pixels[None]).to(torch.device("cpu")))
    names, values = _chosen(maps, head)
    scale = draw.HeatScale.of(values, maps.kind)
    whole = draw.plain(pixels)
    key = Image.new("RGB", whole.size, "white")
    key.paste(draw.legend_of(scale, whole.width - 2 * draw.MARGIN), (0, draw.MARGIN))
    above, below = [("image", whole)], [(f"scale, and {100 * mass:g} % of each:", key)]
    for name, map_, mask in zip(names, values, mass_masks(values, mass), strict=True):
        above.append((name, draw.overlay(pixels, map_, scale)))
        below.append((name, draw.cut_out(pixels, mask)))
    return draw.png(draw.sheet([above, below]))


def _chosen(maps: Maps, head: str) -> tuple[list[str], Tensor]:
    """Names and maps [heads, h, w] of the first image; a UserError where there is no such head."""
    names, values = maps.names(), maps.values[0]
    if head == "all":
        return names, values
    if head == "mean":
        return [f"mean of {len(names)} heads" if len(names) > 1 else names[0]], values.mean(0, keepdim=True)
    if int(head) > len(names):
        raise UserError(f"--head {head}: there is only {', '.join(names)}")
    return [names[int(head) - 1]], values[int(head) - 1 : int(head)]

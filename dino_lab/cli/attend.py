"""The verb that draws the attention of a network over images."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dino_lab.cli.options import Device, Of, Plugins
from dino_lab.errors import UserError, printable
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from torch import Tensor

    from dino_lab.evaluation.attention_maps import Maps
    from dino_lab.evaluation.encoder import Encoder
    from dino_lab.imaging.decode import Pixels

Side = Literal["teacher", "student"]
SHOWN = 256  # pixels of a side at least, of the image that the maps are laid over


def attend(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A run, weights in a file or folder, timm:MODEL, or plugin:NAME, a backbone.",
        ),
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Images, animations and videos.")],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where pictures go. [default: attention, in the run's folder or here]"
        ),
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
    of: Annotated[
        Of | None, typer.Option(help="Whose attention, of two networks. [default: teacher]")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="YAML", help="Of weights that do not say it: '{name: timm, model: ...}'."),
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Draw what the heads of a network's last block look at in images and videos.

    One picture an image: each head's attention over it, and below what holds most of it. A network without
    attention from a CLS token shows how like the mean each of its tokens is.
    """
    if head not in ("all", "mean") and not (head.isdecimal() and int(head) > 0):
        raise UserError(f"--head {head}: should be all, mean or a number from 1 on")
    load_plugins(plugin)
    from dino_lab.building.components import distinct
    from dino_lab.cli.frames import BadFile, pictures
    from dino_lab.runs.files import replace_file

    to = _place(target) if to is None else to
    written, bad = 0, 0
    with _encoder(target, None if of is None else of.value, backbone, device, pixels) as encode:
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


def _place(target: str) -> Path:
    """Where pictures go if nothing is said."""
    from dino_lab.building.single import is_single
    from dino_lab.runs.checkpoint import folder_of_run

    return Path("attention") if is_single(target) else folder_of_run(Path(target)) / "attention"


@contextmanager
def _encoder(
    target: str, of: Side | None, backbone: str | None, device: str | None, pixels: int | None
) -> Iterator[Encoder]:
    from contextlib import nullcontext

    from dino_lab.building.execution import choose_device
    from dino_lab.building.single import check_target, find_single, is_single, open_single
    from dino_lab.evaluation.encoder import Encoder
    from dino_lab.network import evaluation_mode
    from dino_lab.registry import registry
    from dino_lab.runs.open import open_run
    from dino_lab.spec.evaluation import read_backbone

    gc.enable()  # see __main__.py
    check_target(target)
    if is_single(target):
        given = None if backbone is None else read_backbone(backbone, registry)
        source = find_single(target, registry, backbone=given, size=pixels, of=of)
        _check_channels(target, source.channels or 3)
        opened = open_single(source, registry, choose_device(device))
        for note in opened.notes:
            print(printable(note))
        with evaluation_mode(opened.network):
            yield Encoder(opened.network, source.size, nullcontext)
        return
    if backbone is not None:
        raise UserError(f"--backbone: {target} is a run, which has its own; leave it out")
    run = open_run(Path(target), registry, choose_device(device))
    _check_channels(target, run.channels)
    with run.encoder(of or "teacher") as encode:
        yield encode.at(pixels, run.channels)


def _check_channels(target: str, channels: int) -> None:
    if channels != 3:
        raise UserError(
            f"{target}: its network sees images of {channels} channels, and pictures are read as RGB"
        )


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

"""The verb that shows what the networks see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import Device, Plugins, Settings, SpecPath
from dino_lab.cli.validate import located
from dino_lab.errors import UserError, printable
from dino_lab.registry.plugin_files import load_plugins


def show_crops(
    spec: SpecPath,
    settings: Settings = None,
    images: Annotated[int, typer.Option(metavar="N", min=1, max=64, help="How many of the batch.")] = 4,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="The file to write. [default: NAME.crops.png]", show_default=False
        ),
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Draw images and their crops, as the networks see them.

    They are those of a run's first step, after augmentation and before normalisation.
    """
    if to is not None and to.suffix.lower() != ".png":
        raise UserError(f"--to {to}: should end in .png")
    if to is not None and not to.parent.is_dir():
        raise UserError(f"--to {to}: there is no folder {to.parent}")
    load_plugins(plugin)
    from dino_lab.building.execution import choose_device
    from dino_lab.registry import registry
    from dino_lab.reports.crop_picture import draw_crops
    from dino_lab.runs.files import replace_file
    from dino_lab.spec.file import load
    from dino_lab.training.crops import first_crops

    document = load(spec, settings or ())
    name, hash_ = document.spec.name, document.spec.hash
    with located(document):
        originals, views = first_crops(document.spec, registry, choose_device(device), images)
    title = f"{name} {hash_}, step 0: crops after augmentation, before normalisation"
    target = to or Path(f"{name}.crops.png")
    replace_file(target, draw_crops(originals, views, title))
    print(
        f"wrote {printable(str(target))}: {len(originals)} images, {sum(map(len, views.crops))} crops of each"
    )

"""The verb that decodes images once and for all."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import Plugins, Settings
from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from dino_lab.registry import Params

INTERRUPTED = 130


def pack(
    what: Annotated[
        Path, typer.Argument(metavar="SPEC|FOLDER", help="A spec, or a folder of data `image_folder`.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    settings: Settings = None,
    plugin: Plugins = None,
) -> None:
    """Decode a data set once, into a folder that data `packed` reads.

    Images are cut to the size of the spec's data; for a folder say `--set data.size=256`. A pack that was
    stopped goes on, and one that is damaged is repaired, by the same command.
    """
    load_plugins(plugin)
    import torch

    from dino_lab.cli.console import Progress
    from dino_lab.components.data._labelled import Labelled
    from dino_lab.components.data._pack import pack as write
    from dino_lab.components.data._storage import never_resident
    from dino_lab.registry import registry

    gc.enable()  # see __main__.py
    params = (
        params_of_folder(what, settings or []) if what.is_dir() else _params_of_spec(what, settings or [])
    )
    began = time.monotonic()
    with never_resident():
        data = registry.build("data", params, torch.device("cpu"))
    if not isinstance(data, Labelled):
        raise UserError(f"data {params.name}: can not be packed, it does not say which image is where")
    for line in data.found().lines():
        print(line)
    try:
        manifest, written = write(data, json.loads(params.model_dump_json()), to, Progress())
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    seconds = time.monotonic() - began
    how = f"{written} written now in {seconds:.0f} s" if written else "nothing was missing"
    train, test, size = manifest.images["train"], manifest.images["test"], manifest.size
    print(f"{to}: {train} + {test} images of {size} x {size} pixels; {how}")
    print(f"in a spec: data: {{name: packed, path: {to}}}")


def _params_of_spec(file: Path, settings: list[str]) -> Params:
    from dino_lab.spec.file import load

    return load(file, settings).spec.data


def params_of_folder(folder: Path, settings: list[str]) -> Params:
    """Those of data `image_folder` for a folder; a UserError in one line where a setting is wrong."""
    from pydantic import ValidationError

    from dino_lab.registry import registry
    from dino_lab.spec.merge import apply_settings, compose_all
    from dino_lab.spec.nodes import data
    from dino_lab.spec.problems import Problem, report

    problems: list[Problem] = []
    root = compose_all("data: {name: image_folder}", folder, problems)
    root = apply_settings(root, [f"data.path={json.dumps(str(folder))}", *settings], problems)
    if problems:
        raise report(problems)
    found = data(root)
    if stranger := sorted(found.keys() - {"data"}):
        raise UserError(f"--set {stranger[0]}: a folder has data alone, such as data.size=256")
    try:
        return registry.find("data", "image_folder").params.model_validate(found["data"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("data", *first["loc"])))
        hint = f"; --set {key}=256" if first["type"] == "missing" else ""
        raise UserError(f"{key}: {first['msg'].lower()}{hint}") from error

"""The verb that decodes images once and for all."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import Plugins, Settings
from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from dino_lab.components.data._labelled import Labelled
    from dino_lab.registry import Params

INTERRUPTED = 130


def pack(
    what: Annotated[
        Path, typer.Argument(metavar="SPEC|FOLDER", help="A spec, or a folder of data `image_folder`.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    shards: Annotated[
        bool, typer.Option("--shards", help="Write tar files of the images' own files, for data `shards`.")
    ] = False,
    settings: Settings = None,
    plugin: Plugins = None,
) -> None:
    """Decode a data set once, into a folder that data `packed` reads; or put its files into shards.

    Images are cut to the size of the spec's data; for a folder say `--set data.size=256`. In shards they are
    as they were. What was stopped goes on, and what is damaged is repaired, by the same command.
    """
    load_plugins(plugin)
    import torch

    from dino_lab.components.data._labelled import Labelled
    from dino_lab.components.data._storage import never_resident
    from dino_lab.registry import registry

    gc.enable()  # see __main__.py
    given = ["data.size=256"] * shards + (settings or [])  # of shards a size is no part
    params = params_of_folder(what, given) if what.is_dir() else _params_of_spec(what, settings or [])
    with never_resident():
        data = registry.build("data", params, torch.device("cpu"))
    if not isinstance(data, Labelled):
        raise UserError(f"data {params.name}: can not be packed, it does not say which image is where")
    for line in data.found().lines():
        print(line)
    try:
        if shards:
            _write_shards(data, to)
        else:
            _write_pack(data, params, to)
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        raise typer.Exit(INTERRUPTED) from None


def _write_pack(data: Labelled, params: Params, to: Path) -> None:
    from dino_lab.cli.console import Progress
    from dino_lab.components.data._pack import pack

    progress = Progress()
    manifest, written = pack(data, json.loads(params.model_dump_json()), to, progress)
    train, test, size = manifest.images["train"], manifest.images["test"], manifest.size
    print(f"{to}: {train} + {test} images of {size} x {size} pixels; {progress.end(written)}")
    print(f"in a spec: data: {{name: packed, path: {to}}}")


def _write_shards(data: Labelled, to: Path) -> None:
    from dino_lab.cli.console import Progress
    from dino_lab.components.data._shard_cache import cache_folder
    from dino_lab.components.data._shard_writer import write_shards

    progress = Progress()
    count, written = write_shards(data, to, cache_folder(), progress)
    images = f"{data.train_images} + {data.test_images} images"
    print(f"{to}: {images} in {count['train']} + {count['test']} shards; {progress.end(written)}")
    label = ", label: cls" if data.labelled else ""
    paths = f"path: {to}/train-*.tar, test: {to}/test-*.tar"
    print(f"in a spec: data: {{name: shards, {paths}, size: {data.size}{label}}}")


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

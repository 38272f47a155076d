"""The verbs about specs: validate and schema."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import Plugins, Settings, SpecPath
from dino_lab.errors import Misfit, SpecError, UserError, printable
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from dino_lab.protocols import Data
    from dino_lab.spec.file import Document
    from dino_lab.spec.model import Spec


@contextmanager
def located(document: Document) -> Iterator[None]:
    """Point a Misfit found inside at its line of the file."""
    try:
        yield
    except Misfit as misfit:
        raise SpecError(document.line(misfit.loc, misfit.message)) from misfit


def validate(spec: SpecPath, settings: Settings = None, plugin: Plugins = None) -> None:
    """Say whether a spec would run on the data that is there, and why not.

    Prints every error at once, or the facts that follow from the spec, and what was found of the data. A
    sample of the images is decoded; with `on_bad_image: skip` all of them are.
    """
    load_plugins(plugin)
    from dino_lab.building.check import check
    from dino_lab.registry import registry
    from dino_lab.spec.file import load

    facts = []
    for document in load(spec, settings or ()).stages:
        with located(document):
            its = check(document.spec, registry) + _data_facts(document.spec)
        facts += [f"{document.spec.name}, hash {document.spec.hash}{_place(document.spec)}", *its]
    print(f"{printable(str(spec))}: OK")
    for line in facts:
        print(f"  {line}")


def _place(spec: Spec) -> str:
    """What a run begins with, where that is another run."""
    if spec.after is None:
        return ""
    plural = "s" * (spec.train.epochs != 1)
    return f", {spec.train.epochs} epoch{plural} after {spec.after.in_words}"


def _data_facts(spec: Spec) -> list[str]:
    """What was found of the data, in lines; a Misfit where it does not go with the other parts."""
    import torch

    from dino_lab.building.components import make_component, make_evaluators
    from dino_lab.building.data_check import check_data, data_lines, scorable
    from dino_lab.components.data._storage import never_resident
    from dino_lab.registry import registry

    cpu = torch.device("cpu")
    there = _without_downloads(spec)
    try:
        with never_resident():
            data = make_component(there, registry, cpu, "data", cpu)
            evaluation_data = data
            if spec.evaluate_on is not None:
                evaluation_data = make_component(there, registry, cpu, "evaluate_on", cpu)
    except Misfit as misfit:
        if getattr(there, str(misfit.loc[0]), None) == getattr(spec, str(misfit.loc[0]), None):
            raise
        return [f"{misfit.loc[0]}: not there yet; the run downloads it"]
    augment = make_component(spec, registry, cpu, "augment")
    evaluators, left_out = scorable(make_evaluators(spec.evaluators, registry), evaluation_data)
    check_data(data, augment, evaluators.values(), spec.train.batch_size, cpu, evaluation_data)
    return [*data_lines(data, evaluation_data, left_out), *_length(spec, data)]


def _length(spec: Spec, data: Data) -> list[str]:
    """Steps of the run, and bytes of its images."""
    epochs, steps = spec.train.epochs, data.train_images // spec.train.batch_size
    images = data.train_images + data.test_images
    megabytes = images * data.channels * data.size**2 / 1e6
    return [
        f"steps: {steps} an epoch, {epochs * steps} in all, of {spec.train.batch_size} images each",
        f"memory: {images} images of {data.channels} x {data.size} x {data.size} bytes are "
        f"{megabytes:,.1f} MB",
    ]


def _without_downloads(spec: Spec) -> Spec:
    """The spec, whose data are not downloaded."""
    changed = {
        field: params.model_copy(update={"download": False})
        for field in ("data", "evaluate_on")
        if getattr(params := getattr(spec, field), "download", False)
    }
    return spec.model_copy(update=changed)


def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here, not to the terminal.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="That of a sweep file instead.")] = False,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="That of a file for `eval --with` instead.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Print the JSON schema of a spec, of a sweep, or of an evaluation.

    Editors complete and check files with it.
    """
    if sweep and evaluation:
        raise UserError("--sweep and --evaluation are two schemas; ask for one at a time")
    load_plugins(plugin)
    from dino_lab.registry import registry
    from dino_lab.spec import evaluation_schema, json_schema
    from dino_lab.sweeps.plan import json_schema as sweep_schema

    text = (sweep_schema if sweep else evaluation_schema if evaluation else json_schema).text(registry)
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")

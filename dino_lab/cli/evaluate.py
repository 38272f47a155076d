"""The verb about networks that are there: eval."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dino_lab.cli.options import Device, Of, Plugins, spec_file
from dino_lab.errors import Misfit, SpecError, UserError, printable
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from dino_lab.evaluation.floors import Floors
    from dino_lab.evaluation.scoring import Scored
    from dino_lab.evaluation.subjects import Subject
    from dino_lab.spec.evaluation import EvaluationDocument


def eval_(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A run, weights in a file or folder, timm:MODEL, or plugin:NAME, a backbone.",
        ),
    ],
    with_: Annotated[
        Path | None,
        typer.Option(
            "--with",
            metavar="FILE",
            callback=spec_file,
            help="YAML with evaluators, data and size. [default: the run's]",
        ),
    ] = None,
    of: Annotated[Of | None, typer.Option(help="Whose features, for every evaluator.")] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write scores here, and pictures into a folder beside it."),
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Score the first weights.")] = False,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Score a run, weights of any kind, a model of timm, or a backbone by name, with evaluators."""
    _check_request(target, of, to)
    load_plugins(plugin)
    from dino_lab.building.execution import choose_device
    from dino_lab.evaluation.scoring import write_files
    from dino_lab.evaluation.subjects import subject_of
    from dino_lab.registry import registry
    from dino_lab.runs.checkpoint import folder_of_run
    from dino_lab.runs.folder import RunFolder
    from dino_lab.spec.evaluation import load_evaluation

    document = load_evaluation(with_, registry) if with_ is not None else None
    where = choose_device(device)
    gc.enable()  # see __main__.py
    with _located(document):
        evaluation = document.evaluation if document else None
        side: Literal["teacher", "student"] | None = None if of is None else of.value
        subject = subject_of(target, registry, where, evaluation, of=side, untrained=untrained)
    into_folder = document is None and not untrained
    found = subject.score(side, files=into_folder or to is not None)
    if into_folder:
        write_files(found, RunFolder(folder_of_run(Path(target))), subject.step)
    floors = subject.floors()
    if to is not None:
        _write(to, target, untrained, subject, found, floors)
    _print(subject, found, floors)


def _check_request(target: str, of: Of | None, to: Path | None) -> None:
    from dino_lab.building.single import check_target, has_two, is_single

    check_target(target)
    if of is not None and is_single(target) and not has_two(target):
        raise UserError(f"--of {of.value}: {target} is one network; leave it out")
    if to is not None and (to.suffix != ".json" or not to.parent.is_dir()):
        raise UserError(f"--to {to}: should be a file that ends in .json, in a folder that is there")


@contextmanager
def _located(document: EvaluationDocument | None) -> Iterator[None]:
    """Point a Misfit at its line of the file, where there is one."""
    try:
        yield
    except Misfit as misfit:
        if document is None or misfit.loc[0] not in type(document.evaluation).model_fields:
            raise
        raise SpecError(document.line(misfit.loc, misfit.message)) from misfit


def _print(subject: Subject, found: Sequence[Scored], floors: Floors) -> None:
    from dino_lab.cli.console import print_table
    from dino_lab.cli.formatting import floors_in_words
    from dino_lab.evaluation.floors import floors_protocol, pixel_side

    if subject.warning:
        print(subject.warning, file=sys.stderr)
    scores = {name: value for scored in found for name, value in scored.named_scores.items()}
    rows = [(name, f"{value:.4f}", floors_in_words(floors.get(name, {}))) for name, value in scores.items()]
    columns = ("score", "value", "without learning")[: 3 if floors else 2]
    print_table(columns, [row[: len(columns)] for row in rows])
    for scored in found:
        print(f"  {scored.protocol}")
    if floors:
        print(f"  {floors_protocol(pixel_side(subject.data))}")
    for note in subject.notes:
        print(f"  {printable(note)}")


def _write(
    to: Path, target: str, untrained: bool, subject: Subject, found: Sequence[Scored], floors: Floors
) -> None:
    """The JSON file, and in a folder of its name what files the evaluators leave."""
    from dino_lab.runs.files import replace_file

    for file, content in ((file, content) for one in found for file, content in one.named_files.items()):
        to.with_suffix("").mkdir(exist_ok=True)
        replace_file(to.with_suffix("") / file, content)
    results = [
        {
            "evaluator": one.name,
            "of": one.of,
            "protocol": one.protocol,
            "scores": one.scores,
            "floors": {key: given for key in one.scores if (given := floors.get(f"{one.name}.{key}"))},
        }
        for one in found
    ]
    what = {"target": target, "untrained": untrained, "step": subject.step, "size": subject.size}
    what |= {"notes": list(subject.notes)} if subject.notes else {}
    replace_file(to, (json.dumps({**what, "results": results}, indent=2) + "\n").encode())

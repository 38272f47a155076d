"""The verb that says what a run would see of its images."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_lab.cli.options import Plugins, Settings, spec_file
from dino_lab.errors import UserError, printable
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from dino_lab.components.data._survey import SplitSurvey, Survey
    from dino_lab.protocols import Data
    from dino_lab.spec.file import Document

WIDTH = 79
COLUMNS = 8  # of the contact sheet
SIDE = 120  # pixels of a picture on it
SIZE_OF_FOLDER = 64  # pixels that images of a folder are seen at, where no `--set data.size` says it
MOST_CLASSES = 12  # that are printed, the largest and the smallest


def data(
    what: Annotated[
        Path, typer.Argument(metavar="SPEC|FOLDER", help="A spec, or a folder of data `image_folder`.")
    ],
    settings: Settings = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Images of each split to look at, evenly spread. [default: all]"
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="The contact sheet. [default: NAME.data.png]", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all classes.")] = False,
    plugin: Plugins = None,
) -> None:
    """Look at all images that a run would see, and say what is there.

    Formats, sizes, bands, ranges of values, labels, duplicates within and across the splits, images that
    cannot be read, mean and standard deviation of each channel, and a contact sheet.
    """
    if to is not None and (to.suffix.lower() != ".png" or not to.parent.is_dir()):
        raise UserError(f"--to {to}: should be a file that ends in .png, in a folder that is there")
    load_plugins(plugin)
    from dino_lab.cli.console import Progress
    from dino_lab.components.data._survey import survey
    from dino_lab.runs.files import replace_file

    gc.enable()  # see __main__.py
    name, parts = _parts(what, settings or [])
    results: dict[str, Any] = {}
    for field, its in parts.items():
        began = time.monotonic()
        seen = survey(its, limit, Progress(sys.stderr))
        seconds = time.monotonic() - began
        sheet = to or Path(f"{name}.{field}.png")
        if field != "data" and to is not None:
            sheet = to.with_suffix(f".{field}.png")
        replace_file(sheet, _contact_sheet(its, seen))
        results[field] = _facts(its, seen, seconds) | {"picture": str(sheet)}
        if not as_json:
            _print(field, its, seen, results[field])
    if as_json:
        print(json.dumps(results, indent=2))


def _parts(what: Path, settings: list[str]) -> tuple[str, dict[str, Data]]:
    """A name for pictures, and the data by field of the spec, none of whose images is opened yet."""
    import torch

    from dino_lab.cli.pack import params_of_folder
    from dino_lab.cli.validate import located
    from dino_lab.components.data._storage import only_listed
    from dino_lab.registry import registry
    from dino_lab.spec.file import load

    with only_listed():
        if what.is_dir():
            params = params_of_folder(what, [f"data.size={SIZE_OF_FOLDER}", *settings])
            return what.resolve().name, {"data": registry.build("data", params, torch.device("cpu"))}
        file = spec_file(what)
        assert file is not None
        document = load(file, settings)
        with located(document):
            return document.spec.name, _parts_of_spec(document)


def _parts_of_spec(document: Document) -> dict[str, Data]:
    import torch

    from dino_lab.building.components import make_component
    from dino_lab.registry import registry

    cpu, spec = torch.device("cpu"), document.spec
    fields = ["data"] if spec.evaluate_on is None else ["data", "evaluate_on"]
    return {field: make_component(spec, registry, cpu, field, cpu) for field in fields}


def _facts(data: Data, seen: Survey, seconds: float) -> dict[str, Any]:
    """All that was found, as JSON has it."""
    from dino_lab.protocols import GivesReport, ability

    reporting = ability(data, GivesReport)
    return {
        "found": None if reporting is None else asdict(reporting.found()),
        "size": data.size,
        "channels": data.channels,
        "splits": {
            split: _split_facts(its) | {"classes": _classes(data, split)}
            for split, its in seen.splits.items()
        },
        "duplicates": asdict(seen.duplicates),
        "mean": [round(value, 4) for value in seen.mean],
        "std": [round(value, 4) for value in seen.std],
        "notes": list(seen.notes),
        "seconds": round(seconds, 1),
    }


def _split_facts(its: SplitSurvey) -> dict[str, Any]:
    def spread(values: Any) -> list[int] | None:
        ordered = sorted(values)
        return [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else None

    return {
        "images": its.images,
        "looked_at": its.looked_at,
        "formats": dict(its.formats.most_common()),
        "kinds": dict(its.kinds.most_common()),
        "width": spread(its.widths),
        "height": spread(its.heights),
        "values": [its.low, its.high] if its.rows else None,
        "unreadable": its.unreadable,
        "unreadable_first": its.unreadable_first,
    }


def _classes(data: Data, split: Any) -> dict[str, int] | None:
    """Images of each class by name; None where there are no labels, or they cost reading the images."""
    from dino_lab.protocols import GivesLabels, MayLackLabels, ability, class_names

    labelled, lacking = ability(data, GivesLabels), ability(data, MayLackLabels)
    if labelled is None or (lacking is not None and not lacking.labelled):
        return None
    counts = labelled.labels(split).bincount(minlength=data.classes).tolist()
    return dict(zip(class_names(data), counts, strict=True))


def _print(field: str, data: Data, seen: Survey, facts: dict[str, Any]) -> None:
    from dino_lab.building.data_check import data_lines
    from dino_lab.cli.console import wrapped_table

    found = [line.partition(": ") for line in data_lines(data, data)]
    rows = [(field if key == "data" else key, text) for key, _, text in found]
    rows += [("note", note) for note in seen.notes]
    looked = ", ".join(f"{split} {its.looked_at} of {its.images}" for split, its in seen.splits.items())
    rows.append(("looked at", f"{looked} images in {facts['seconds']} s"))
    rows += [row for split in seen.splits for row in _split_rows(split, facts["splits"][split])]
    rows += _class_rows(facts["splits"])
    rows += _duplicate_rows(seen)
    rows.append(("seen as", f"{data.channels} x {data.size} x {data.size}, 8 bit"))
    rows += [(key, f"[{', '.join(f'{value:.4f}' for value in facts[key])}]") for key in ("mean", "std")]
    rows.append(("picture", facts["picture"]))
    for line in wrapped_table([(key, printable(text)) for key, text in rows], WIDTH):
        print(line)


def _split_rows(split: str, its: dict[str, Any]) -> list[tuple[str, str]]:
    if not its["looked_at"]:
        return []
    rows = []
    if its["values"] is not None:
        counted = [", ".join(f"{key} {n}" for key, n in its[what].items()) for what in ("formats", "kinds")]
        low, high = its["values"]
        sizes = "; ".join(
            f"{key} {its[key][0]} to {its[key][2]}, median {its[key][1]}" for key in ("width", "height")
        )
        rows.append((split, f"{counted[0]}; {counted[1]}; values {low:g} to {high:g}; {sizes}"))
    if its["unreadable"]:
        rows.append((f"{split} unreadable", f"{its['unreadable']}: {'; '.join(its['unreadable_first'])}"))
    return rows


def _class_rows(splits: dict[str, Any]) -> list[tuple[str, str]]:
    """Images of each class, and how unequal they are."""
    counts: Counter[str] = Counter()
    for its in splits.values():
        counts.update(its["classes"] or {})
    if not counts:
        return []
    ordered = counts.most_common()
    shown = [f"{name} {count}" for name, count in ordered]
    if len(shown) > MOST_CLASSES:
        shown = [*shown[: MOST_CLASSES // 2], "...", *shown[-MOST_CLASSES // 2 :]]
    (_, most), (_, least) = ordered[0], ordered[-1]
    if most == least:
        ratio = "; all of one size"
    else:
        ratio = f"; the largest has {most / least:.1f} times as many as the smallest" if least else ""
    return [("classes", f"{', '.join(shown)}{ratio}")]


def _duplicate_rows(seen: Survey) -> list[tuple[str, str]]:
    its = seen.duplicates
    if not (its.train or its.test or its.across):
        return [("duplicates", "none: no two images are equal as a run sees them")]
    rows = [("duplicates", f"{its.train} training and {its.test} test images are equal to an earlier one")]
    if its.across:
        rows.append(
            ("leakage", f"{its.across} test images are training images as well, so that scores are too high")
        )
    if its.other_label:
        rows.append(("labels differ", f"{its.other_label} of them have another label than their double"))
    return rows + [("", f"{a} = {b}") for a, b in its.first]


def _contact_sheet(data: Data, seen: Survey) -> bytes:
    """Some images of both splits, as a run sees them, with their classes."""
    import torch

    from dino_lab.imaging.pictures import picture_of, png, sheet
    from dino_lab.protocols import GivesLabels, MayLackLabels, ability, class_names

    lacking, labelled = ability(data, MayLackLabels), ability(data, GivesLabels)
    names = class_names(data) if lacking is None or lacking.labelled else None
    pictures = []
    for split, its in seen.splits.items():
        labels = labelled.labels(split).tolist() if labelled is not None and names is not None else None
        for position, pixels in its.shown:
            title = split if labels is None or names is None else f"{names[labels[position]]} ({split})"
            picture = picture_of(torch.from_numpy(pixels)).resize((SIDE, SIDE))
            pictures.append((printable(title, SIDE // 6), picture))
    if not pictures:
        first = next((one for its in seen.splits.values() for one in its.unreadable_first), "there is none")
        raise UserError(f"none of the images can be read; the first: {first}")
    rows = [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)]
    return png(sheet(rows))

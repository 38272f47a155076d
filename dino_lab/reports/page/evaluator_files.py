"""The files that evaluators wrote into a run's folder, as charts, pictures and texts of a page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dino_lab.errors import first_line
from dino_lab.imaging.decode import MAX_PIXELS
from dino_lab.imaging.pictures import address_of, data_address
from dino_lab.reports.page.chart import Chart, ChartLine
from dino_lab.runs.files import EVALUATIONS

MOST_BYTES = 2_000_000  # of all pictures together, as they stand in the page
MOST_BYTES_EACH = 700_000
MOST_PIXELS = 1600  # of a side, of a picture that had to be made smaller
MOST_TEXT = 4000  # characters


@dataclass(frozen=True)
class EvaluatorFile:
    """One file: a picture, charts or a text; `earlier` is the same picture at the first evaluation."""

    title: str
    step: int
    picture: str = ""
    earlier: str = ""
    earlier_step: int = 0
    charts: tuple[Chart, ...] = ()
    text: str = ""


@dataclass
class EvaluatorFiles:
    """The files that can be shown, and a line for each that cannot."""

    shown: list[EvaluatorFile] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bytes: int = 0


def read_evaluator_files(folder: Path) -> EvaluatorFiles:
    """The last of each `evaluations/<step>/<evaluator>.<network>.<file>`; of a picture also the first."""
    found = EvaluatorFiles()
    steps: dict[str, dict[int, Path]] = {}
    for path in sorted((folder / EVALUATIONS).glob("*/*.*.*")):
        if path.parent.name.isdecimal() and path.suffix != ".tmp":
            steps.setdefault(path.name, {})[int(path.parent.name)] = path
    for name, files in steps.items():
        evaluator, network, rest = name.split(".", 2)
        first, last = min(files), max(files)
        title = f"{evaluator}: {rest.rpartition('.')[0].replace('_', ' ') or rest} ({network})"
        try:
            file = _read(found, title, last, files[last])
            if file.picture and first != last:
                file = EvaluatorFile(title, last, file.picture, _picture(found, files[first]), first)
            found.shown.append(file)
        except Exception as error:  # as many kinds as there are ways to damage a picture or JSON
            found.left_out.append(f"{files[last]}: {first_line(error)}")
    return found


def _read(found: EvaluatorFiles, title: str, step: int, path: Path) -> EvaluatorFile:
    if path.suffix in (".png", ".jpg", ".jpeg"):
        return EvaluatorFile(title, step, picture=_picture(found, path))
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        charts = tuple(charts_of(content))
        if charts:
            return EvaluatorFile(title, step, charts=charts)
        return EvaluatorFile(title, step, text=_cut(json.dumps(content, indent=1)))
    if path.suffix in (".txt", ".md", ".csv"):
        return EvaluatorFile(title, step, text=_cut(path.read_text()))
    raise ValueError("neither PNG, JPEG, JSON nor text, so it is not shown")


def _picture(found: EvaluatorFiles, path: Path) -> str:
    """A picture as a data address, made smaller where it is large."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels are more than a report shows")
        picture = opened.convert("RGB")
        mime = Image.MIME[opened.format or "PNG"]
    if len(content) > MOST_BYTES_EACH:
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
        text = data_address(picture, "JPEG")
    else:
        text = address_of(content, mime)
    if found.bytes + len(text) > MOST_BYTES:
        raise ValueError(f"left out, to keep the page below 5 MB; it lies there ({len(content)} bytes)")
    found.bytes += len(text)
    return text


def charts_of(content: Any, title: str = "") -> Iterator[Chart]:
    """Curves in what a JSON file holds: columns of numbers of one length, the first of which is the axis.

    They may stand as a mapping of columns, as a list of records, or as a mapping of names to either.
    """
    columns = _columns(content)
    if columns is not None:
        (axis, x), *others = columns.items()
        lines = tuple(ChartLine(name, x, y, i) for i, (name, y) in enumerate(others))
        single = len(lines) == 1
        yield Chart(title, lines[0].name if single else "value", lines, x_label=axis)
    elif isinstance(content, Mapping):
        for name, part in content.items():
            yield from charts_of(part, f"{title} {name}".strip())


def _columns(content: Any) -> dict[str, list[float]] | None:
    if isinstance(content, list) and content and all(isinstance(item, Mapping) for item in content):
        names = [name for name in content[0] if all(_is_number(item.get(name)) for item in content)]
        content = {name: [item[name] for item in content] for name in names}
    if not isinstance(content, Mapping):
        return None
    found = {
        str(name): list(map(float, values))
        for name, values in content.items()
        if isinstance(values, list) and values and all(map(_is_number, values))
    }
    lengths = {len(values) for values in found.values()}
    return found if len(found) > 1 and len(lengths) == 1 and lengths != {1} else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}\n... ({len(text)} characters)"

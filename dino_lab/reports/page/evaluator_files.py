"""The files that evaluators left in a run's folder, made fit for a page."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from dino_lab.imaging.decode import MAX_PIXELS
from dino_lab.reports.page.chart import Chart, Line
from dino_lab.reports.page.gallery import encoded

MOST_BYTES = 2_000_000  # of all pictures together, as they stand in the page
MOST_BYTES_EACH = 700_000
MOST_PIXELS = 1600  # of a side, of a picture that had to be made smaller
MOST_TEXT = 4000  # characters


@dataclass(frozen=True)
class Kept:
    """One file: a picture, charts or a text; `earlier` is the same picture at the first evaluation."""

    title: str
    step: int
    picture: str = ""
    earlier: str = ""
    earlier_step: int = 0
    charts: tuple[Chart, ...] = ()
    text: str = ""


@dataclass
class Evaluations:
    """Everything that can be shown, and a line for each file that cannot."""

    shown: list[Kept] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    bytes: int = 0


def read_evaluations(folder: Path) -> Evaluations:
    """The last of each `evaluations/<step>/<evaluator>.<network>.<file>`; of a picture also the first."""
    found = Evaluations()
    steps: dict[str, dict[int, Path]] = {}
    for path in sorted((folder / "evaluations").glob("*/*.*.*")):
        if path.parent.name.isdecimal() and path.suffix != ".tmp":
            steps.setdefault(path.name, {})[int(path.parent.name)] = path
    for name, files in steps.items():
        evaluator, network, rest = name.split(".", 2)
        first, last = min(files), max(files)
        title = f"{evaluator}: {rest.rpartition('.')[0].replace('_', ' ') or rest} ({network})"
        try:
            kept = _kept(found, title, last, files[last])
            if kept.picture and first != last:
                kept = Kept(title, last, kept.picture, _picture(found, files[first]), first)
            found.shown.append(kept)
        except (OSError, ValueError, UnidentifiedImageError) as error:
            found.left_out.append(f"{files[last]}: {error}")
    return found


def _kept(found: Evaluations, title: str, step: int, path: Path) -> Kept:
    if path.suffix in (".png", ".jpg", ".jpeg"):
        return Kept(title, step, picture=_picture(found, path))
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        charts = tuple(charts_of(content))
        return (
            Kept(title, step, charts=charts)
            if charts
            else Kept(title, step, text=_cut(json.dumps(content, indent=1)))
        )
    if path.suffix in (".txt", ".md", ".csv"):
        return Kept(title, step, text=_cut(path.read_text()))
    raise ValueError("neither PNG, JPEG, JSON nor text, so it is not shown")


def _picture(found: Evaluations, path: Path) -> str:
    """A picture as a data address, made smaller where it is large."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels are more than a report shows")
        picture = opened.convert("RGB")
        address = f"data:{Image.MIME[opened.format or 'PNG']};base64,"
    if len(content) > MOST_BYTES_EACH:
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
        text = "data:image/jpeg;base64," + encoded(picture, "JPEG")
    else:
        import base64

        text = address + base64.b64encode(content).decode()
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
        lines = tuple(Line(name, x, y, i) for i, (name, y) in enumerate(others))
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

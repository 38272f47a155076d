"""Features of the test split in two dimensions, with the images behind the points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from dino_lab.imaging.pictures import data_address, picture_of
from dino_lab.reports.page.samples import Samples
from dino_lab.reports.theme import SERIES, colour, inline_svg

WIDTH, HEIGHT = 7.2, 4.8  # inches
THUMBNAIL = 40  # pixels
COLUMNS = 25  # of the sheet of thumbnails
MARKERS = "osD^"
FEWEST = 20  # points for t-SNE; fewer are placed by PCA


@dataclass(frozen=True)
class Scatter:
    """The picture; `data` has the place and class of each point, `sheet` the thumbnails in their order."""

    method: str
    points: int
    svg: Markup
    data: dict[str, Any]
    sheet: str
    legend: tuple[tuple[str, int], ...]


def scatter(samples: Samples) -> Scatter:
    """All sampled test images; matplotlib's settings are the caller's."""
    method, places = embedded(samples.test.features)
    labels = samples.test.labels
    svg, pixels = _drawn(places, labels, method)
    present = sorted(set(labels.tolist()))
    return Scatter(
        method,
        len(labels),
        svg,
        {
            "points": [
                [round(x, 1), round(y, 1), label]
                for (x, y), label in zip(pixels, labels.tolist(), strict=True)
            ],
            "names": list(samples.names),
            "thumbnail": THUMBNAIL,
            "columns": COLUMNS,
        },
        _sheet(samples.test.images),
        tuple((samples.names[label], label) for label in present),
    )


def embedded(features: Tensor) -> tuple[str, Tensor]:
    """The method and the places [N, 2] of unit-length features [N, D].

    t-SNE (van der Maaten and Hinton, JMLR 9, 2008) from the first two principal components; those alone where
    points are few or all the same.
    """
    centred = features.double() - features.double().mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    components = torch.nn.functional.pad(centred @ axes[:2].T, (0, max(0, 2 - len(axes))))
    deviation = components[:, 0].std() if len(features) > 1 else torch.tensor(0.0)
    if len(features) < FEWEST or deviation < 1e-6:
        return "PCA", components
    from sklearn.manifold import TSNE

    # A small start, from which t-SNE can still move every point.
    start = (components / deviation * 1e-4).float().numpy()
    model = TSNE(init=start, perplexity=min(30.0, (len(features) - 1) / 3), random_state=0, max_iter=500)
    return "t-SNE", torch.from_numpy(model.fit_transform(features.numpy()))


def _drawn(places: Tensor, labels: Tensor, method: str) -> tuple[Markup, list[tuple[float, float]]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panel = figure.add_subplot()
    for label in sorted(set(labels.tolist())):
        own = places[labels == label]
        marker = MARKERS[label // SERIES % len(MARKERS)]
        drawn = panel.scatter(own[:, 0], own[:, 1], s=16, marker=marker, color=colour(label), linewidths=0)
        drawn.set_gid(f"series-{label}")
    panel.set_xlabel(f"{method} 1")
    panel.set_ylabel(f"{method} 2")
    if method == "t-SNE":  # whose axes have no unit
        panel.set_xticks([])
        panel.set_yticks([])
    panel.grid(False)
    svg = inline_svg(figure, f"{method} of the features of test images")
    scale = 72 / figure.dpi
    inside = panel.transData.transform(places.numpy()) * scale
    return svg, [(float(x), HEIGHT * 72 - float(y)) for x, y in inside]


def _sheet(images: Tensor) -> str:
    rows = math.ceil(len(images) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * THUMBNAIL, rows * THUMBNAIL))
    for i, image in enumerate(images):
        small = picture_of(image).resize((THUMBNAIL, THUMBNAIL))
        sheet.paste(small, (i % COLUMNS * THUMBNAIL, i // COLUMNS * THUMBNAIL))
    return data_address(sheet, "JPEG", 80)

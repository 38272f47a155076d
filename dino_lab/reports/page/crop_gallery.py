"""The crops of the first step, as the networks saw them."""

from __future__ import annotations

from dino_lab.imaging.pictures import bytes_of
from dino_lab.reports.page.gallery import Gallery, tile
from dino_lab.runs.open import SavedRun
from dino_lab.training.crops import crops_of

IMAGES = 6


def crops(run: SavedRun) -> Gallery:
    """One row an image: itself, then its views; a name says how large a view is and who sees it."""
    images, views = crops_of(run.spec, run.data, run.augment, run.device, IMAGES)
    teacher = views.pairs.shape[1]
    headings, columns = ["image"], [[tile(image) for image in images]]
    for group in views.crops:
        for view in group:  # [B, C, H, W]
            who = "both" if len(headings) <= teacher else "student"
            headings.append(f"{view.shape[-1]} px, {who}")
            columns.append([tile(bytes_of(crop)) for crop in view])
    return Gallery(tuple(headings), [list(row) for row in zip(*columns, strict=True)])

"""Images with masks of what is in them, cut out square together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_lab.components.data._storage import Source, Storage
from dino_lab.errors import UserError
from dino_lab.imaging.decode import PLAIN, BadImage, Pixels, Reading, decode, decode_mask, upright_size
from dino_lab.types import VOID

Objects = Literal["binary", "numbered"]


class MaskedSource(Source, Protocol):
    """Encoded images, their labels, and masks of their objects."""

    def open_objects(self, index: int) -> Image.Image: ...
    def open_classes(self, index: int) -> Image.Image | None:
        """Label + 1 of each pixel, 0 background, 255 void; None where objects are of the image's label."""
        ...


class Masks:
    """The masks of one split: those of the rows that its storage kept."""

    def __init__(
        self, source: MaskedSource, storage: Storage, size: int, objects: Objects, reading: Reading = PLAIN
    ) -> None:
        self.source, self.storage, self.size, self.objects = source, storage, size, objects
        self.reading = reading  # of the images

    def annotated(self, indices: Tensor) -> tuple[Tensor, ...]:
        """See the protocol `Data`; objects have no parts, so that each is one."""
        images, objects, _ = self._read(indices)
        masks = (objects > 0) & (objects != VOID)
        return images, self.source.labels[self._rows(indices)], masks, masks.to(torch.uint8), boxes(masks)

    def segmented(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """See the protocol `Data`."""
        _, objects, classes = self._read(indices)
        return objects, classes

    def _rows(self, indices: Tensor) -> Tensor:
        return self.storage.rows[indices.cpu()]

    def _read(self, indices: Tensor) -> tuple[Tensor, ...]:
        """Images [N, 3, size, size], objects and classes [N, size, size], all uint8."""
        read = [self._read_row(row) for row in self._rows(indices).tolist()]
        return tuple(torch.from_numpy(np.stack(column)) for column in zip(*read, strict=True))

    def _read_row(self, row: int) -> tuple[Pixels, Pixels, Pixels]:
        where = self.source.where(row)
        image = _tried(lambda: self.source.open(row), f"{where}: unreadable image")
        like = upright_size(image)  # before a JPEG is read as a smaller one
        pixels = _tried(lambda: decode(image, self.size, self.reading), f"{where}: unreadable image")
        what = f"{where}: its mask cannot be used"
        mask = _tried(lambda: self.source.open_objects(row), what)
        objects = _tried(lambda: decode_mask(mask, like, self.size), what)
        whole = np.asarray(mask)
        if self.objects == "binary":
            whole, objects = whole != 0, (objects != 0).astype(np.uint8)
        if not ((whole > 0) & (whole != VOID)).any():
            raise UserError(f"{where}: its mask has no object in it")
        kinds = _tried(lambda: self.source.open_classes(row), what)
        if kinds is not None:
            return pixels, objects, _tried(lambda: decode_mask(kinds, like, self.size), what)
        name = int(self.source.labels[row]) + 1
        return pixels, objects, np.where((objects > 0) & (objects != VOID), name, objects).astype(np.uint8)


def boxes(masks: Tensor) -> Tensor:
    """Boxes int64 [N, 4] (x0 y0 x1 y1, the last two exclusive) around masks [N, H, W], 0 where empty."""
    edges = []
    for line in (masks.any(1), masks.any(2)):  # columns, rows: [N, size]
        first = line.int().argmax(1)
        end = line.shape[1] - line.flip(1).int().argmax(1)
        edges += [torch.stack((first, end)) * line.any(1)]
    (x0, x1), (y0, y1) = edges
    return torch.stack((x0, y0, x1, y1), 1)


def _tried(read: Callable[[], Any], what: str) -> Any:
    try:
        return read()
    except Exception as error:  # as many kinds as Pillow has plug-ins
        reason = error if isinstance(error, BadImage) else " ".join(str(error).split())
        raise UserError(f"{what} ({reason or type(error).__name__})") from error

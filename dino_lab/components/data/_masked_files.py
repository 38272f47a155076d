"""Data of encoded images with masks of their objects."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dino_lab.components.data._labelled import FileOptions, FromFiles
from dino_lab.components.data._masks import MaskedSource, Masks, Objects
from dino_lab.components.data._storage import Split
from dino_lab.errors import UserError


class FromMaskedFiles(FromFiles):
    """One or two splits of encoded images with masks; without `objects` there are none.

    `without` is what is said where masks are asked for and there are none.
    """

    without = "there is no training split (data.train: null)"

    def __init__(
        self,
        device: torch.device,
        sources: Mapping[Split, MaskedSource],
        class_names: tuple[str, ...] | None,
        *,
        size: int,
        options: FileOptions,
        objects: Objects | None = "numbered",
    ) -> None:
        train, test = sources.get("train"), sources["test"]
        super().__init__(device, train, test, class_names, size=size, **options.model_dump())
        self._masks: dict[Split, Masks] = {}
        if objects is not None:
            self._masks = {
                split: Masks(source, self.storage(split), size, objects, self.reading)
                for split, source in sources.items()
            }

    def annotated(self, split: Split, indices: Tensor) -> tuple[Tensor, ...]:
        """Images, labels, object masks, part masks and boxes: see the protocol; objects are one part."""
        return self._of(split).annotated(indices)

    def segmented(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The objects one by one, and their classes: see the protocol."""
        return self._of(split).segmented(indices)

    def _of(self, split: Split) -> Masks:
        if split not in self._masks:
            raise UserError(self.without)
        return self._masks[split]

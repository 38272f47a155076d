"""Whether what was written gives the features of the run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.exports.exported_backbone import ExportedBackbone

# Other kernels sum in another order: of float32 that is some 1e-6 of the largest feature. A weight that is
# missing, another normalisation or another activation is 1e-3 and more.
LIMIT = 1e-4


def check_round_trip(subject: ExportedBackbone, load: Callable[[], Callable[[Tensor], Tensor]]) -> float:
    """The largest difference of a feature, over the largest feature; a UserError where it is above LIMIT.

    Images are given all at once and one by one, so that a batch size which was fixed by mistake shows.
    """
    read = load()
    with torch.no_grad():
        together = read(subject.images)
        alone = torch.cat([read(image[None]) for image in subject.images])
    return max(_compare(subject.features, found) for found in (together, alone))


def _compare(wanted: Tensor, found: Tensor) -> float:
    if found.shape != wanted.shape:
        raise UserError(
            f"the export gives features {list(found.shape)}, not {list(wanted.shape)}; nothing was written"
        )
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= LIMIT:  # NaN is no agreement
        raise UserError(
            f"the export gives other features than the run, by {difference:.1e} of the largest one (up to "
            f"{LIMIT:g} is rounding); nothing was written"
        )
    return difference

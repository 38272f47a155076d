"""One box of an image, from a mask or by a normalised cut of its tokens, and how well it fits."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, the last two exclusive
LEAST = 1e-5  # of the affinity of two tokens that are not alike: TokenCut, arXiv 2202.11539, Sec. 3


def box_of(mask: Tensor) -> Box:
    """The box of a mask bool [h, w], in cells; of an empty one the whole."""
    if not mask.any():
        return 0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def largest_component(mask: Tensor) -> Tensor:
    """The largest part of a mask bool [h, w] whose cells touch along an edge; of equal ones the first."""
    names, count = _components(mask)
    if count == 0:
        return mask
    sizes = np.bincount(names.ravel())[1:]
    return torch.from_numpy(names == sizes.argmax() + 1)


def token_cut(tokens: Tensor, threshold: float) -> Tensor:
    """The foreground bool [h, w] of tokens [D, h, w] by a normalised cut: TokenCut, arXiv 2202.11539, Sec. 3.

    Two tokens have the affinity 1 where their cosine is at least `threshold`, else `LEAST`. The second
    eigenvector of (degree - affinity) x = eigenvalue degree x is cut at its mean; the side of its largest
    absolute entry is the foreground, and of that what is connected with this entry is kept. If all affinities
    are equal, nothing is cut, and all is foreground.
    """
    from scipy.linalg import eigh

    size = tokens.shape[1:]
    unit = F.normalize(tokens.flatten(1).double(), dim=0)  # [D, h w]
    affinity = torch.where(unit.T @ unit >= threshold, 1.0, LEAST).double()
    if (affinity == affinity[0, 0]).all():
        return torch.ones(size, dtype=torch.bool)  # any vector would do
    degree = affinity.sum(1).diag()
    _, vectors = eigh((degree - affinity).numpy(), degree.numpy(), subset_by_index=[1, 1])
    vector = torch.from_numpy(vectors[:, 0])
    seed = int(vector.abs().argmax())
    above = vector > vector.mean()
    names, _ = _components((above == above[seed]).view(size))
    return torch.from_numpy(names == names.ravel()[seed])


def overlap(box: Box, others: Tensor) -> Tensor:
    """Intersection over union of a box and boxes [M, 4]: float64 [M]."""
    one, others = torch.tensor(box, dtype=torch.float64), others.double()
    low, high = torch.maximum(one[:2], others[:, :2]), torch.minimum(one[2:], others[:, 2:])
    both = (high - low).clamp_min(0).prod(1)
    areas = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return both / (areas - both)


def scaled(box: Box, grid: tuple[int, int], size: int) -> Box:
    """A box in cells of a grid (h, w), in pixels of an image of `size`."""
    x, y = size / grid[1], size / grid[0]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _components(mask: Tensor) -> tuple[NDArray[np.int32], int]:
    """Numbers 1, 2, ... [h, w] of the parts of a mask, 0 outside, and how many there are."""
    from scipy import ndimage

    names, count = ndimage.label(mask.numpy())
    return names, int(count)

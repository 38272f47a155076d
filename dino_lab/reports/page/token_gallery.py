"""Patch tokens as colours."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.linalg import eigh

from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.imaging.pictures import bytes_of
from dino_lab.reports.page.gallery import SIDE, Gallery, tile
from dino_lab.reports.page.samples import Samples, ask_shown


def tokens(encode: Encoder, samples: Samples) -> Gallery:
    """One column an image: itself above, its tokens below; a UserError where the backbone has none."""
    images = samples.test.images[samples.shown]
    found = ask_shown(encode, samples, "tokens")  # [N, D, h, w]
    if not found.isfinite().all():
        raise UserError("the tokens are not finite; the network has diverged")
    coloured = F.interpolate(principal_colours(found), (SIDE, SIDE), mode="nearest-exact")
    rows = [[tile(image) for image in images], [tile(bytes_of(one)) for one in coloured]]
    return Gallery(samples.shown_names, rows, ("image", "tokens"))


def principal_colours(tokens: Tensor) -> Tensor:
    """Tokens [N, D, h, w] to red, green and blue in 0..1, [N, 3, h, w].

    The colours are the first three principal components over all tokens, each scaled between its 1st and 99th
    percentile.
    """
    flat = tokens.movedim(1, -1).flatten(0, 2).double()  # [N h w, D]
    centred = flat - flat.mean(0)
    _, vectors = eigh(centred.T @ centred)  # by rising eigenvalue
    axes = vectors.flip(1)[:, :3]
    # A component is known up to its sign: here its largest entry is positive.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    projected = F.pad(centred @ axes, (0, 3 - axes.shape[1]))  # [N h w, 3]
    low, high = projected.quantile(0.01, 0), projected.quantile(0.99, 0)
    scaled = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return scaled.float().unflatten(0, (len(tokens), *tokens.shape[2:])).movedim(-1, 1)

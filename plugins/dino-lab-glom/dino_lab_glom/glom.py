"""Columns of levels that settle into islands of agreement."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dino_lab.registry import register

Weight = Annotated[float, Field(ge=0)]


@register("backbone", "glom")
class Glom(nn.Module):
    """GLOM (Hinton, arXiv 2102.12627): one column for each patch, in it one embedding for each level.

    A column begins with one pass through its bottom-up networks. In each iteration an embedding then becomes
    the average of four: the bottom-up network of the level below (of the patch, for the lowest), the top-down
    network of the level above and the place of the column, itself, and the consensus of its level: the
    average over columns y, weighted by the softmax of `beta` x.y / sqrt(width). `weights` are those of the
    four in the average, which is scaled to the length sqrt(width). Networks are shared by all columns; each
    level has its own. Consensus is sought among columns at most `radius` apart at the lowest level, and twice
    as far at each next one; without `radius`, in the whole image. Places lie in -1..1 of the image, and are
    given as sines and cosines of so many `frequencies`. Features are the mean of the top level over columns.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        width: Annotated[int, Field(gt=1, description="dimensions D of an embedding")] = 96,
        levels: Annotated[int, Field(ge=2, description="embeddings in a column, from part to whole")] = 3,
        patch: Annotated[int, Field(gt=0, description="side of the patch of a column, in pixels")] = 4,
        iterations: Annotated[int, Field(gt=0, description="rounds of averaging after the first pass")] = 4,
        mlp_ratio: Annotated[
            float, Field(gt=0, description="hidden width of a network between levels, relative to `width`")
        ] = 2.0,
        beta: Annotated[
            float, Field(gt=0, description="inverse temperature of the attention in the consensus")
        ] = 1.0,
        radius: Annotated[
            float | None,
            Field(gt=0, description="distance of the consensus at the lowest level, in columns; null: all"),
        ] = None,
        frequencies: Annotated[int, Field(gt=0, description="octaves that encode the place of a column")] = 3,
        weights: Annotated[
            tuple[Weight, Weight, Weight, Weight],
            Field(description="of bottom-up, top-down, the embedding itself and the consensus"),
        ] = (1.0, 1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        bottom_up, _, itself, consensus = weights
        if not bottom_up + itself + consensus:
            raise ValueError("weights leave nothing to the top level, which has no level above")
        self.patch, self.iterations, self.weights = patch, iterations, weights
        self.check_size(size)
        self.beta, self.radius, self.frequencies = beta, radius, frequencies
        hidden = max(1, round(width * mlp_ratio))
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        nn.init.trunc_normal_(self.embed.weight, std=1 / math.sqrt(channels * patch**2))
        nn.init.zeros_(self.embed.bias)  # type: ignore[arg-type]
        self.bottom_up = Perceptrons(levels, width, hidden, width)
        self.top_down = Perceptrons(levels - 1, width + 4 * frequencies, hidden, width)
        self.dim = width

    def check_size(self, size: int) -> None:
        """ValueError where images of this size cannot be cut into patches."""
        if size % self.patch:
            raise ValueError(f"{size} is not a multiple of patch {self.patch}")

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, D]."""
        return self.tokens(images).mean((2, 3))

    def tokens(self, images: Tensor) -> Tensor:
        """The top level [N, D, h, w]."""
        return self.levels(images)[:, -1]

    def levels(self, images: Tensor) -> Tensor:
        """All levels after the last iteration, lowest first, [N, L, D, h, w]."""
        patches = self.embed(images)  # [N, D, h, w]
        height, width = patches.shape[2:]
        columns = _scaled(patches.flatten(2).transpose(1, 2))  # [N, P, D]
        place = self._place(height, width).to(columns.dtype)  # [P, 4 frequencies]
        near = None if self.radius is None else self._near(height, width)
        state = self._begin(columns)  # [L, N, P, D]
        for _ in range(self.iterations):
            state = self._iterate(state, columns, place, near)
        return state.permute(1, 0, 3, 2).unflatten(3, (height, width))

    def _begin(self, columns: Tensor) -> Tensor:
        """One pass from the patches [N, P, D] to the top: [L, N, P, D]."""
        state = [columns]
        for level in range(self.bottom_up.count):
            state.append(_scaled(self.bottom_up.one(level, state[-1])))
        return torch.stack(state[1:])

    def _iterate(self, state: Tensor, columns: Tensor, place: Tensor, near: Tensor | None) -> Tensor:
        bottom_up, top_down, itself, consensus = self.weights
        below, above = torch.cat((columns[None], state[:-1])), state[1:]  # [L, N, P, D], [L - 1, N, P, D]
        placed = torch.cat((above, place.expand(*above.shape[:2], -1, -1)), -1)
        agreed = F.scaled_dot_product_attention(
            state, state, state, attn_mask=near, scale=self.beta / math.sqrt(state.shape[-1])
        )
        # A sum instead of an average, of which the scaling leaves the direction alone.
        new = bottom_up * self.bottom_up(below)
        new = new.add(state, alpha=itself).add(agreed, alpha=consensus)
        told = new[:-1].add(self.top_down(placed), alpha=top_down)
        return _scaled(torch.cat((told, new[-1:])))

    def _place(self, height: int, width: int) -> Tensor:
        """Sine and cosine of the centres of columns, [P, 4 frequencies]."""
        weight = self.embed.weight
        y, x = (line.to(weight.dtype) for line in _grid(height, width, weight.device))
        centre = torch.stack(((2 * y + 1) / height - 1, (2 * x + 1) / width - 1), -1)  # [P, 2]
        octaves = 2 ** torch.arange(self.frequencies, device=weight.device)
        angle = centre[:, :, None] * octaves * (math.pi / 2)  # [P, 2, frequencies]
        return torch.cat((angle.sin(), angle.cos()), -1).flatten(1)

    def _near(self, height: int, width: int) -> Tensor:
        """Which columns ask which, [L, 1, P, P]."""
        assert self.radius is not None
        y, x = _grid(height, width, self.embed.weight.device)
        squared = (y[:, None] - y).square() + (x[:, None] - x).square()  # [P, P]
        radius = self.radius * 2 ** torch.arange(self.bottom_up.count, device=squared.device)
        return (squared <= radius.square()[:, None, None]).unsqueeze(1)


class Perceptrons(nn.Module):
    """`count` MLPs of one hidden layer with GELU, side by side: [count, ..., wide] to [count, ..., out]."""

    def __init__(self, count: int, wide: int, hidden: int, out: int) -> None:
        super().__init__()
        self.count = count
        self.weight1 = nn.Parameter(torch.empty(count, wide, hidden))
        self.weight2 = nn.Parameter(torch.empty(count, hidden, out))
        # Of one dimension, which optimizers take for biases and leave undecayed.
        self.bias1 = nn.Parameter(torch.zeros(count * hidden))
        self.bias2 = nn.Parameter(torch.zeros(count * out))
        nn.init.trunc_normal_(self.weight1, std=1 / math.sqrt(wide))
        nn.init.trunc_normal_(self.weight2, std=1 / math.sqrt(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """All of them at once."""
        bias1, bias2 = (bias.view(self.count, 1, -1) for bias in (self.bias1, self.bias2))
        hidden = F.gelu(torch.baddbmm(bias1, x.flatten(1, -2), self.weight1))
        return torch.baddbmm(bias2, hidden, self.weight2).view(*x.shape[:-1], -1)

    def one(self, index: int, x: Tensor) -> Tensor:
        """A single one: [..., wide] to [..., out]."""
        bias1, bias2 = (bias.view(self.count, -1)[index] for bias in (self.bias1, self.bias2))
        return F.gelu(x @ self.weight1[index] + bias1) @ self.weight2[index] + bias2


def _scaled(x: Tensor) -> Tensor:
    """Embeddings [..., D] less their mean, at the length sqrt(D), so that `beta` keeps its meaning."""
    return F.layer_norm(x, x.shape[-1:])


def _grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column, from 0, of each of the P = height * width columns."""
    index = torch.arange(height * width, device=device)
    return index // width, index % width

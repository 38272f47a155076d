"""One component of each kind, each the smallest that is of use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from kornia.augmentation import IntensityAugmentationBase2D
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.errors import Misfit
from dino_lab.network import Network
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register
from dino_lab.types import Output, Views

# What a spec may say: type, bounds, and what it means.
File = Annotated[str, Field(description="the .npz file")]
Size = Annotated[int, Field(gt=0, description="side of the views, in pixels")]
Strength = Annotated[
    float, Field(ge=0, le=1, description="largest share that a channel loses, or that is white")
]
Chance = Annotated[float, Field(ge=0, le=1, description="probability of it")]
Width = Annotated[int, Field(gt=0, multiple_of=8, description="channels of each layer")]
Outputs = Annotated[int, Field(gt=0, description="outputs K")]
Smoothing = Annotated[float, Field(ge=0, le=1, description="share of the target that goes to all outputs")]
Delta = Annotated[float, Field(gt=0, description="distance at which the square gives way to a line")]
Weight = Annotated[float, Field(ge=0, description="factor of it in the loss")]
Penalty = Annotated[float, Field(gt=0, description="lambda, weight of the squared coefficients")]
Options = Flat[EvaluatorOptions]  # every evaluator's `every` and `of`, flat among its own keys


@register("data", "npz")
class Npz:
    """A NumPy file as MedMNIST has it: train_images uint8 [N, H, W(, 3)], train_labels, the same for test."""

    channels, mean, std = 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def __init__(self, device: torch.device, *, path: File) -> None:
        try:
            with np.load(path) as file:
                train, test = ((file[f"{of}_images"], file[f"{of}_labels"]) for of in ("train", "test"))
        except (OSError, ValueError, KeyError) as error:
            raise Misfit(("data", "path"), f"{path} is no file like MedMNIST's ({error})") from error
        self._train, self._test = _tensors(*train, device), _tensors(*test, device)
        self.size, self.classes = self._train[0].shape[-1], int(self._train[1].max()) + 1
        self.train_images, self.test_images = len(self._train[1]), len(self._test[1])

    def train(self, batch_size: int, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in itertools.count(start):
            epoch, i = divmod(step, self.train_images // batch_size)
            generator = torch.Generator().manual_seed(seed + 2**32 * epoch)
            rows = torch.randperm(self.train_images, generator=generator)[i * batch_size :][:batch_size]
            yield self._train[0][rows], self._train[1][rows]

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(tensor.split(batch_size) for tensor in self._test), strict=True)

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(tensor.split(batch_size) for tensor in self._train), strict=True)


def _tensors(images: np.ndarray, labels: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    colour = np.broadcast_to(images.reshape(*images.shape[:3], -1), (*images.shape[:3], 3)).copy()
    pixels = torch.from_numpy(colour).movedim(-1, 1)  # [N, C, H, W]
    return pixels.to(device), torch.from_numpy(labels).flatten().long().to(device)


@register("augment", "tint")
class Tint(nn.Module):
    """Two views of the whole image that differ in colour alone: each channel times 1 - strength to 1."""

    pairs: Tensor

    def __init__(self, *, size: Size = 32, strength: Strength = 0.5) -> None:
        super().__init__()
        self.groups, self.strength = ((2, size),), strength
        self.register_buffer("pairs", 1 - torch.eye(2, dtype=torch.int8))

    def forward(self, images: Tensor, generator: torch.Generator) -> Views:
        x = F.interpolate(images / 255, self.groups[0][1], mode="bilinear", antialias=True).clamp(0, 1)
        uniform = torch.rand(2, *x.shape[:2], 1, 1, generator=generator).to(x.device)
        return Views([x * (1 - self.strength * uniform)], self.pairs)


@register("operation", "fog")
class Fog(IntensityAugmentationBase2D):
    """White mixed into each crop, a share that is drawn for it."""

    def __init__(self, pixels: int, *, thickest: Strength = 0.5, p: Chance = 0.5) -> None:
        super().__init__(p=p)
        self.thickest = thickest

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        return {"fog": self.thickest * torch.rand(batch_shape[0])}

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: Any, transform: Tensor | None = None
    ) -> Tensor:
        return input.lerp(torch.ones_like(input), params["fog"].to(input).view(-1, 1, 1, 1))


@register("backbone", "convnet")
class ConvNet(nn.Module):
    """Four convolutions of stride 2 with group norm, mean over positions: a baseline that a CPU trains."""

    def __init__(self, channels: int, size: int, *, width: Width = 64) -> None:
        super().__init__()
        self.dim = width
        pairs = itertools.pairwise([channels, width, width, width, width])
        layers = ((nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(8, b), nn.GELU()) for a, b in pairs)
        self.layers = nn.Sequential(*itertools.chain(*layers))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))  # [N, C, H, W] to [N, D]


@register("head", "random_projection")
class RandomProjection(nn.Module):
    """A fixed random matrix: what is left of a method if its head learns nothing."""

    matrix: Tensor

    def __init__(self, in_dim: int, *, dim: Outputs = 64) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("matrix", torch.randn(in_dim, dim) / in_dim**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.matrix


@register("teacher", "consensus")
class Consensus(nn.Module):
    """The mean of the student's outputs over all views it saw, without gradient."""

    network = None

    def __init__(self, student: Network) -> None:
        super().__init__()

    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        return student.z.detach().mean(0).expand(len(views.crops[0]), -1, -1)

    def update(self, student: Network, progress: float, ends_epoch: bool) -> None: ...


@register("targets", "hard")
class Hard(nn.Module):
    """The largest output as a pseudo-label; a share `smoothing` goes to all (arXiv 1512.00567, Sec. 7)."""

    distribution = True

    def __init__(self, dim: int, *, smoothing: Smoothing = 0.1) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        one_hot = F.one_hot(teacher.argmax(-1), teacher.shape[-1]).float()
        return one_hot * (1 - self.smoothing) + self.smoothing / teacher.shape[-1]


@register("loss", "huber")
class Huber(nn.Module):
    """Huber distance (Huber, 1964), mean over positive pairs, samples and outputs."""

    negatives = cross_entropy = False

    def __init__(self, dim: int, *, delta: Delta = 1.0) -> None:
        super().__init__()
        self.delta = delta

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        distance = (student[:, None] - target[None]).abs()  # [S, T, B, K]
        near = distance.clamp(max=self.delta)
        huber = (near * (distance - near / 2)).mean((2, 3))  # [S, T]
        return (huber * (pairs > 0)).sum() / (pairs > 0).sum()


@register("regularizer", "uniformity")
class Uniformity(nn.Module):
    """log mean exp(-2 |x - y|^2) over pairs of samples x, y of a view (arXiv 2005.10242, Sec. 4.1.2)."""

    def __init__(self, *, weight: Weight = 0.1) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, views: Views, student: Output) -> Tensor:
        x = F.normalize(student.features.float(), dim=-1)  # [S, B, D]
        others = collectives.gather(x.transpose(0, 1)).transpose(0, 1)  # of every process, [S, N, D]
        return collectives.mean((4 * x @ others.mT - 4).exp().mean()).log()


@register("evaluator", "ridge")
class Ridge:
    """Linear probe in closed form: ridge regression to one-hot labels, accuracy on the test split."""

    def __init__(self, *, penalty: Penalty = 1e-3, options: Options = EvaluatorOptions()) -> None:
        self.penalty, self.every, self.of = penalty, options.every, options.of
        self.protocol = f"ridge/2: penalty={penalty:g}, {self.of}, standardised training split, test scored"

    def forward(self, encode: Callable[[Tensor], Tensor], data: Data) -> dict[str, float]:
        splits = [[(encode(x).double(), y) for x, y in split(256)] for split in (data.bank, data.test)]
        (x, y), (test, truth) = ([torch.cat(part) for part in zip(*split, strict=True)] for split in splits)
        mean, std = x.mean(0), x.std(0) + 1e-6
        x, test = (F.pad((z - mean) / std, (0, 1), value=1.0) for z in (x, test))
        gram = x.T @ x / len(x) + self.penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(gram, x.T @ F.one_hot(y, data.classes).double() / len(x))
        return {"accuracy": ((test @ weights).argmax(1) == truth).double().mean().item()}

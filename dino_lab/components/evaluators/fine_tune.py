"""Accuracy after a copy of the network was trained with labels."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.evaluators._probing import (
    accuracies,
    floors_of_accuracies,
    labelled_part,
    only_seen,
)
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import BATCH, Encoder
from dino_lab.kernels.batch_norm import unsynchronised
from dino_lab.kernels.crops.resize import resample, sample_boxes
from dino_lab.network import Network
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register
from dino_lab.registry.ranges import Scale

MOMENTUM = 0.9
INITIAL_STD = 0.01  # of the classifier's weights, in SimCLR's code
REFERENCE_BATCH = 256  # images for which `rate` is meant
FLIPPED = 0.5


@register("evaluator", "fine_tune")
class FineTune:
    """Accuracy of a copy of the backbone and a new linear layer, both trained with a share of the labels.

    SimCLR, arXiv 2002.05709, appendix B.5: cross-entropy, Nesterov momentum 0.9, learning rate 0.05 x batch /
    256 without warmup, no regularization, random crops and flips alone; 30 epochs for 10 % of the labels, 60
    for 1 %. The paper does not name the schedule and the first weights: a cosine to 0 and N(0, 0.01) are
    those of its code. It differs in the batch (the paper: 4096), in test images, which are seen whole, and in
    the draw of images, which is no published list. Labelled images are held in memory.
    """

    compares_labels: tuple[Literal["train", "test"], ...] = ("train", "test")

    def __init__(
        self,
        *,
        share: Annotated[
            float, Field(gt=0, le=1, description="of the labels of every class, at least one image")
        ] = 0.1,
        epochs: Annotated[
            int, Field(gt=0, description="passes over the labelled images; SimCLR: 30 for 10 %, 60 for 1 %")
        ] = 30,
        rate: Annotated[
            float, Field(gt=0, le=100, description="first learning rate, for 256 images a batch")
        ] = 0.05,
        batch_size: Annotated[
            int, Field(ge=2, description="images of one step; at most those with labels. SimCLR: 4096")
        ] = 256,
        scale: Scale = (0.08, 1.0),
        seed: Annotated[
            int, Field(ge=0, lt=2**32, description="of the labelled images, the classifier and the training")
        ] = 0,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.share, self.epochs, self.rate, self.batch_size = share, epochs, rate, batch_size
        self.scale, self.seed = scale, seed
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        least, most = self.scale
        return (
            f"fine_tune/1: copy of the {self.of}'s backbone in training mode, float32, with a linear layer, "
            f"weights N(0, 0.01), biases 0; labels of {self.share:g} of every class, rounded, at least one "
            f"image; cross-entropy, crops of {least:g} to {most:g} of the area, sides 3/4 to 4/3, flipped "
            f"half the time; SGD Nesterov momentum 0.9, no weight decay, {self.epochs} epochs of batches of "
            f"{self.batch_size} (at most the labelled images; an incomplete one is left out), rate "
            f"{self.rate:g} times batch/256, cosine to 0 by step, seed={self.seed}; test split scored "
            "once in evaluation mode, whole images, seen classes only"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Top-1, and top-5 for more than five classes; the network that `encode` has stays as it is."""
        labels = encode.split(data, "bank").labels.cpu()
        if len(labels.unique()) < 2:
            raise UserError("evaluator fine_tune: all training images are of one class; it takes two")
        generator = torch.Generator().manual_seed(self.seed)
        chosen = labelled_part(labels, self.share, generator)
        images, labels = _chosen_images(data, chosen), labels[chosen]
        model = _classifier(encode.network, data.classes, generator)
        self._train(model, images, labels, encode.size, generator)
        test = Encoder(model.eval(), encode.size, nullcontext).split(data, "test")
        return accuracies(only_seen(test.features, labels.to(test.features.device)), test.labels)

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance; pixels have no network to train."""
        bank, test = pixels.split(data, "bank"), pixels.split(data, "test")
        return floors_of_accuracies(bank, test, data.classes, {})

    def _train(
        self, model: Network, images: Tensor, labels: Tensor, size: int, generator: torch.Generator
    ) -> None:
        """Change the model by its labelled images, uint8 [N, C, H, W]; a UserError where it diverges."""
        device = model.mean.device
        batch = min(self.batch_size, len(labels))
        each = len(labels) // batch
        optimizer = torch.optim.SGD(model.parameters(), lr=self.rate, momentum=MOMENTUM, nesterov=True)
        model.train()
        with (
            torch.enable_grad(),
            unsynchronised(),  # the other processes do not evaluate
            torch.random.fork_rng([device] if device.type == "cuda" else []),
        ):
            torch.manual_seed(self.seed)  # of what the backbone itself draws, such as dropout
            for epoch in range(self.epochs):
                order = torch.randperm(len(labels), generator=generator)
                for i, rows in enumerate(order.split(batch)[:each]):
                    progress = (epoch * each + i) / (self.epochs * each)
                    for group in optimizer.param_groups:
                        group["lr"] = self._rate(batch, progress)
                    x = self._crops(images[rows.to(images.device)].to(device), size, generator)
                    optimizer.zero_grad()
                    F.cross_entropy(model.encode(x), labels[rows].to(device)).backward()
                    optimizer.step()
        if not all(weight.isfinite().all() for weight in model.parameters()):
            raise UserError(f"evaluator fine_tune: training with rate {self.rate:g} diverged; take a smaller")

    def _rate(self, batch: int, progress: float) -> float:
        return self.rate * batch / REFERENCE_BATCH * (1 + math.cos(math.pi * progress)) / 2

    def _crops(self, images: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Random parts of images, uint8 [B, C, H, W], as floats [B, C, size, size] in 0..1."""
        B, _, H, W = images.shape
        x = images.float() / 255
        boxes = sample_boxes((B,), H, W, self.scale, generator).to(x)
        flip = (torch.rand(B, generator=generator) < FLIPPED).to(x.device)
        return resample(x, boxes[None], flip[None], size)[0]


def _chosen_images(data: Data, chosen: Tensor) -> Tensor:
    """Of the training split in order, those that bool [N] names."""
    kept, start = [], 0
    for images, _ in data.bank(BATCH):
        kept.append(images[chosen[start : start + len(images)].to(images.device)])
        start += len(images)
    return torch.cat(kept)


def _classifier(network: Network, classes: int, generator: torch.Generator) -> Network:
    """A network whose features are logits [N, classes]: a copy of the backbone, and a linear layer."""
    backbone: Any = copy.deepcopy(network.backbone).requires_grad_(True)
    # Not drawn from the global generator, which is the run's.
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, backbone.dim, classes)
    with torch.no_grad():
        linear.weight.copy_(INITIAL_STD * torch.randn(linear.weight.shape, generator=generator))
        linear.bias.zero_()
    made = Network(nn.Sequential(backbone, linear), nn.Identity()).to(network.mean.device)
    made.mean, made.std = network.mean.clone(), network.std.clone()
    return made

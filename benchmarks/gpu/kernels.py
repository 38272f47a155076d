"""Every kernel of `dino_lab.kernels` on the GPU against the CPU; a new kernel is a line of `KERNELS`.

Crops are in 0..1, so that a difference of 1e-4 is a fortieth of a grey level. The layers' differences are
relative to the norm of what the CPU gives. The first use of Numba's and Triton's kernels compiles them,
which is most of their seconds. `TRITON_INTERPRET=1` lets Triton's kernels be compared on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.augment import pictures
from benchmarks.gpu.comparing import CPU, Comparison, compare, largest, relative
from benchmarks.gpu.worker import Work
from dino_lab.building.seeding import drawing_from
from dino_lab.components.augment._lists import policy
from dino_lab.components.augment._policy import FusedPass, Share
from dino_lab.components.backbones.vit import Vit
from dino_lab.kernels.batch_norm import batch_norm
from dino_lab.kernels.class_token import class_token_features, class_token_features_of_sizes
from dino_lab.kernels.convolution import OnePositionConv2d
from dino_lab.kernels.crops import by_batch, by_crop, passes
from dino_lab.kernels.crops.blur import gaussian_blur
from dino_lab.kernels.crops.colour import grayscale, jitter, solarize
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.kernels.cross_entropy import cross_entropy
from dino_lab.kernels.linear import linear
from dino_lab.kernels.scaling import scale_each
from dino_lab.types import WholeImages

VIEWS = 2
CUT: list[Any] = [{"crop": {"scale": [0.2, 1]}}, "flip"]
COLOURS: list[Any] = [{"jitter": {"hue": 0.5, "contrast": 0.9, "p": 0.9}}, {"grey": 0.3}]
ENDS: list[Any] = [{"blur": 0.6}, {"solarize": 0.6}]
ROTATE: list[Any] = [{"rotate": {"degrees": 20}}]
LEVEL = 1 / 255  # Numba cuts in whole grey levels, as Pillow does
Layer = Callable[[torch.device, bool], list[Tensor]]


def seeded(seed: int = 0) -> torch.Generator:
    """A source of the same numbers on every device."""
    return torch.Generator().manual_seed(seed)


def drawn(ops: Sequence[Any], size: int, shape: tuple[int, ...]) -> tuple[SampledParameters, int]:
    """What a list of operations draws for images of this shape, and the radius of its blur."""
    (fused,) = policy(VIEWS, size, ops).passes
    assert isinstance(fused, FusedPass)
    with drawing_from(seeded()):
        sampled = fused.sample((VIEWS * shape[0], *shape[1:]), Share(VIEWS, shape[0], slice(0, shape[0])))
    return sampled, max(
        (operation.radius for operation in fused.operations if operation.step == "blur"), default=0
    )


def _images(toy: bool, channels: int = 3) -> tuple[Tensor, int]:
    """A batch, and the size of its crops."""
    images = pictures(4 if toy else 16, 40 if toy else 256)
    return images[:, :channels].contiguous(), 18 if toy else 224


def _own(device: torch.device) -> ModuleType:
    """What makes crops of a batch on the GPU; on a CPU Triton's interpreter does, if it was asked for."""
    if device.type == "cuda":
        return passes._kernels(torch.empty(1, dtype=torch.uint8, device=device))
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return import_module("dino_lab.kernels.crops.by_program") if interpreted else by_batch


def crops(
    ops: Sequence[Any], base: ModuleType, other: ModuleType | None = None, channels: int = 3
) -> Callable[[torch.device, bool], float]:
    """Crops of the device's own kernels, or of `other`, there, against those of `base` on the CPU."""

    def find(device: torch.device, toy: bool) -> float:
        images, size = _images(toy, channels)
        sampled, radius = drawn(ops, size, tuple(images.shape))
        ours = (other or _own(device)).make(images.to(device), sampled, size, radius)
        theirs = base.make(images, sampled, size, radius)
        if base is by_crop:
            return float((ours.cpu() - theirs).abs().mean())
        return largest(ours, theirs)

    return find


def whole(device: torch.device, toy: bool) -> float:
    """Crops of images of many sizes, of the device's own kernels there, and of torch on the CPU."""
    images, size = _images(toy)
    many = WholeImages.of([image[:, : image.shape[1] - 3 * i] for i, image in enumerate(images)])
    (fused,) = policy(VIEWS, size, _ALL).passes
    assert isinstance(fused, FusedPass)
    share = Share(VIEWS, len(many), slice(0, len(many)))
    with drawing_from(seeded()):
        sampled = fused.sample((VIEWS * len(many), many.channels, size, size), share, share.sizes(many))
    ours = _own(device).make(many.to(device), sampled, size, 8)
    return largest(ours, by_batch.make(many, sampled, size, 8))


def changed(device: torch.device, toy: bool) -> float:
    """Crops that are there, changed by the device's own kernels and by Numba's, which round nothing then."""
    images, size = _images(toy)
    sampled, radius = drawn([*CUT, *COLOURS, *ENDS], size, tuple(images.shape))
    x = by_batch.make(images, sampled, size, 0).flatten(0, 1)
    rest = SampledParameters(**{**vars(sampled), "boxes": None})
    return largest(_own(device).change(x.to(device), rest, radius), by_crop.change(x, rest, radius))


def operation(
    function: Callable[[Tensor, SampledParameters, int], Tensor],
) -> Callable[[torch.device, bool], float]:
    """One of torch's operations on crops, there and on the CPU."""

    def find(device: torch.device, toy: bool) -> float:
        images, size = _images(toy)
        sampled, radius = drawn([*CUT, *COLOURS, *ENDS], size, tuple(images.shape))
        each, x = sampled.flat(), torch.rand(VIEWS * len(images), 3, size, size, generator=seeded())
        there = function(x.clone().to(device), each.to(device), radius)
        return largest(there, function(x, each, radius))

    return find


def layer(function: Layer) -> Callable[[torch.device, bool], float]:
    """Outputs and gradients of a layer, there and on the CPU."""
    return lambda device, toy: relative(function(device, toy), function(CPU, toy))


def _linear(device: torch.device, toy: bool) -> list[Tensor]:
    rows, width = (64, 48) if toy else (4096, 384)
    x, weight = (torch.randn(n, width, generator=seeded(n)).to(device) for n in (rows, 4 * width))
    weight.requires_grad_()
    y = linear(x, weight, torch.ones(4 * width, device=device))
    y.square().mean().backward()
    assert weight.grad is not None
    return [y, weight.grad]


def _batch_norm(device: torch.device, toy: bool) -> list[Tensor]:
    x = torch.randn(8 if toy else 64, 16, 8, 8, generator=seeded()).mul(3).add(1).to(device).requires_grad_()
    mean, variance, weight, bias = (torch.full((16,), value, device=device) for value in (0.0, 1.0, 2.0, 1.0))
    weight.requires_grad_()
    y = batch_norm(x, mean, variance, weight, bias, training=True)
    y.pow(3).mean().backward()
    assert x.grad is not None
    assert weight.grad is not None
    return [y, x.grad, weight.grad, mean, variance]


def _convolution(device: torch.device, toy: bool) -> list[Tensor]:
    torch.manual_seed(0)
    part = OnePositionConv2d(16, 32, 3, stride=2, padding=1).to(device)
    x = torch.randn(8, 16, 1, 1, generator=seeded()).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        y = part(x)
    y.float().square().mean().backward()
    assert part.weight.grad is not None
    return [y, part.weight.grad]


def _class_token(device: torch.device, toy: bool) -> list[Tensor]:
    model, images = _vit(device, toy)
    y = class_token_features(model, images)
    y.square().mean().backward()
    return [y, *(p.grad for p in model.parameters() if p.grad is not None)]


def _class_token_of_sizes(device: torch.device, toy: bool) -> list[Tensor]:
    model, images = _vit(device, toy)
    y = class_token_features_of_sizes(model, [images, images[:, :, ::2, ::2]])
    y.square().mean().backward()
    return [y, *(p.grad for p in model.parameters() if p.grad is not None)]


def whole_model(device: torch.device, toy: bool) -> float:
    """Features without what nobody reads of the last block, against timm's whole model on the CPU."""
    model, images = _vit(device, toy)
    ours = class_token_features(model, images)
    return relative([ours], [model.cpu()(images.cpu())])


def _attention(device: torch.device, toy: bool) -> list[Tensor]:
    """In bfloat16, where a CPU multiplies matrices and a GPU has a kernel of its own."""
    model, images = _vit(device, toy)
    with torch.autocast(device.type, torch.bfloat16):
        return [model(images)]


def _vit(device: torch.device, toy: bool) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    width, depth, size = (48, 2, 16) if toy else (384, 12, 96)
    backbone = Vit(3, size, width=width, depth=depth, heads=width // 16, patch=8)
    images = torch.randn(4 if toy else 16, 3, size, size, generator=seeded())
    model: nn.Module = backbone.model.to(device).eval()
    return model, images.to(device)


def _cross_entropy(device: torch.device, toy: bool) -> list[Tensor]:
    S, T, B, K = 3, 2, 4, 1_000 if toy else 65_536
    student = torch.randn(S, B, K, generator=seeded()).to(device).requires_grad_()
    target = torch.randn(T, B, K, generator=seeded(1)).mul(3).softmax(-1).to(device)
    loss = cross_entropy(student, target, 1 - torch.eye(S, T, device=device), 0.1)
    loss.backward()
    assert student.grad is not None
    return [loss, student.grad]


def _scaling(device: torch.device, toy: bool) -> list[Tensor]:
    sizes = (3, 1_000) if toy else (3, 1_000, 40_000, 2_000_000)
    tensors = [torch.randn(size, generator=seeded(size)).to(device) for size in sizes]
    scale_each(tensors, torch.rand(len(sizes), generator=seeded()).to(device))
    return tensors


_ALL = [*CUT, *COLOURS, *ENDS]
KERNELS = (
    Comparison("crops: the device's kernels against torch on the CPU", 1e-4, crops(_ALL, by_batch)),
    Comparison("crops: grey images, against torch on the CPU", 1e-4, crops(_ALL, by_batch, channels=1)),
    Comparison("crops: rotated, against torch on the CPU", 1e-3, crops([*CUT, *ROTATE, *ENDS], by_batch)),
    Comparison("crops: torch there against torch on the CPU", 1e-4, crops(_ALL, by_batch, by_batch)),
    Comparison("crops: mean difference from Numba's whole levels", 0.5 * LEVEL, crops(_ALL, by_crop)),
    Comparison("crops: of images of many sizes, against torch on the CPU", 1e-4, whole),
    Comparison("crops that are there, changed, against Numba", 1e-4, changed),
    Comparison(
        "blur",
        1e-5,
        operation(lambda x, each, radius: gaussian_blur(x, _there(each.sigma), _there(each.blurred), radius)),
    ),
    Comparison(
        "jitter",
        1e-4,
        operation(lambda x, each, radius: jitter(x, _there(each.blends), _there(each.hue_shift))),
    ),
    Comparison("grey", 1e-5, operation(lambda x, each, radius: grayscale(x, _there(each.grey)))),
    Comparison("solarize", 1e-6, operation(lambda x, each, radius: solarize(x, _there(each.solarized)))),
    Comparison("linear, float32", 1e-5, layer(_linear)),
    Comparison("batch norm, float32", 1e-5, layer(_batch_norm)),
    Comparison("convolution at one position, bfloat16", 1e-2, layer(_convolution)),
    Comparison("CLS token of a ViT, float32, with gradients", 1e-4, layer(_class_token)),
    Comparison("CLS token of a ViT, two sizes at once", 1e-4, layer(_class_token_of_sizes)),
    Comparison("CLS token of a ViT, against timm's whole model", 1e-4, whole_model),
    Comparison("cross-entropy and its gradient, float32", 1e-5, layer(_cross_entropy)),
    Comparison("tensors times a number each", 0.0, layer(_scaling)),
    Comparison("attention in a ViT, bfloat16", 5e-2, layer(_attention)),
)


def _there(part: Tensor | None) -> Tensor:
    assert part is not None
    return part


def measure(work: Work) -> None:
    """All of them."""
    compare(work, "Difference of kernels", KERNELS, 25)

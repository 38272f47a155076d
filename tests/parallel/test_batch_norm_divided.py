"""Batch norm over several processes is torch's own over the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.kernels.batch_norm import synchronise_batch_norm
from dino_lab.testing.ranks import on_processes

B, C = 7, 3
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vectors": (lambda: nn.BatchNorm1d(C), ()),
    "sequences": (lambda: nn.BatchNorm1d(C), (4,)),
    "without scale and shift": (lambda: nn.BatchNorm1d(C, affine=False), ()),
    "maps": (lambda: nn.BatchNorm2d(C, momentum=0.3), (4, 2)),
    "cumulative": (lambda: nn.BatchNorm2d(C, momentum=None), (4, 2)),
    "without running statistics": (lambda: nn.BatchNorm2d(C, track_running_stats=False), (4, 2)),
    "with activation": (lambda: BatchNormAct2d(C), (4, 2)),
}


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A batch [B, C, ...] with another mean for every image, and what its outputs are multiplied by."""
    generator = torch.Generator().manual_seed(1)
    x, factors = torch.randn(2, B, C, *shape, generator=generator, dtype=torch.float64)
    return x + torch.arange(B).view(B, 1, *[1] * len(shape)), factors


def normalised(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Two steps of a layer on this process's images: output, gradients, buffers."""
    layer = make().double().train()
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(torch.linspace(0.5 + i, 1.5, C))
    synchronise_batch_norm(layer)
    mine = collectives.share(B)
    x, factors = (whole[mine] for whole in inputs(shape))
    x.requires_grad_()
    with collectives.dividing(B):
        layer(x.detach() + 1)
        y = layer(x)
        # As in training: a mean over the images, whose gradients are averaged by share.
        ((y**2 * factors).sum() / len(x)).backward()
        weight = collectives.weight()
        parameters = {
            name: collectives.mean(p.grad) for name, p in layer.named_parameters() if p.grad is not None
        }
    assert x.grad is not None
    return {"y": y.detach(), "of x": x.grad * weight} | parameters | dict(layer.named_buffers())


@pytest.mark.parametrize("processes", [2, 3])
def test_it_is_that_of_the_whole_batch(processes: int) -> None:
    def work() -> dict[str, dict[str, Tensor]]:
        return {name: normalised(*layer) for name, layer in LAYERS.items()}

    whole, ranks = work(), on_processes(processes, work)
    parts = [torch.arange(B).tensor_split(processes)[rank] for rank in range(processes)]
    for name, found in whole.items():
        for part, rank in zip(parts, ranks, strict=True):
            for key, value in found.items():
                wanted = value[part] if key in ("y", "of x") else value
                torch.testing.assert_close(
                    rank[name][key],
                    wanted,
                    rtol=1e-10,
                    atol=1e-12,
                    msg=lambda text, n=name, k=key: f"{n}, {k}: {text}",
                )


def test_one_process_keeps_the_layers_of_torch() -> None:
    layer = nn.BatchNorm1d(C)
    synchronise_batch_norm(layer)
    assert type(layer) is nn.BatchNorm1d


def test_evaluation_uses_the_running_statistics() -> None:
    def work() -> Tensor:
        layer = nn.BatchNorm1d(C).double().eval()
        synchronise_batch_norm(layer)
        return layer(inputs(())[0][collectives.share(B)]).detach()

    wanted = nn.BatchNorm1d(C).double().eval()(inputs(())[0])
    torch.testing.assert_close(torch.cat(on_processes(2, work)), wanted)

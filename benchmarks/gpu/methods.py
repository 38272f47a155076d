"""Methods of experiments/methods, trained for some steps on the CPU and on the GPU, in float32.

Both start from the same weights and get the same crops, made on the CPU. The first loss and gradient differ
by rounding alone. That grows with every step, most where Adam divides a small gradient by its own size; how
fast is seen on the CPU alone, where the same method starts from weights that differ in the last bit. There
losses of BYOL differ by 0.003 after 20 steps, and its weights by 0.04 of how far they have moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.gpu.comparing import CPU, relative
from benchmarks.gpu.worker import Work
from dino_lab.protocols import Augment
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import Run, build
from dino_lab.training.data_cache import Shelf
from dino_lab.training.loop import train
from dino_lab.types import Images, Views

FOLDER = Path(__file__).parents[2] / "experiments" / "methods"
METHODS = ("dino", "simclr", "byol", "vicreg", "moco_v3")
STEPS = 20
MOST = {"first loss": 1e-5, "first gradient": 1e-3, "losses": 0.02, "weights": 0.2}  # differences that pass
SMALL = (
    "data.train_images=256",
    "data.test_images=64",
    "train.batch_size=64",
    "train.epochs=10",
    "train.log_every=1",
    "evaluators=[]",
)
TOY = ("backbone={width: 24, depth: 2, heads: 2}", "train.batch_size=16", "data.train_images=64")
LAST_BIT = 2.0**-23


class OnHost:
    """Crops that are made on the CPU, wherever they go: kernels of their own have other rounding."""

    def __init__(self, augment: Augment) -> None:
        self._augment, self.pairs, self.groups = augment, augment.pairs, augment.groups

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """As the augmentation that was given."""
        views = self._augment.forward(images.to(torch.device("cpu")), generator)
        return Views([crops.to(images.device) for crops in views.crops], self.pairs)


@dataclass(frozen=True)
class Trained:
    """Losses and norms of the gradient of each step, and the weights after and before."""

    losses: list[float]
    gradients: list[float]
    weights: list[Tensor]
    first: list[Tensor]


def trained(
    method: str, settings: Sequence[str], device: torch.device, steps: int, shelf: Shelf, moved: float = 0.0
) -> Trained:
    """Some steps of a method; each first weight is changed by its share `moved`, up or down."""
    spec = load(FOLDER / f"{method}.yaml", settings).spec
    run: Run = build(spec, registry, device, shelf.data(spec, registry))
    run = replace(run, augment=OnHost(run.augment))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in run.parameters if moved else ():
            p.mul_(1 + moved * torch.randn(p.shape, generator=generator).sign().to(device))
    first = [p.detach().cpu().clone() for p in run.parameters]
    rows = [row.numbers for row in islice(train(run), steps)]
    losses, gradients = ([row[name] for row in rows] for name in ("loss", "gradient_norm"))
    return Trained(losses, gradients, [p.detach().cpu() for p in run.parameters], first)


def differences(one: Trained, base: Trained) -> dict[str, float]:
    """As `MOST` names them: relative ones, the largest of all losses, the norm of those of the weights."""
    losses = [abs(a - b) / abs(b) for a, b in zip(one.losses, base.losses, strict=True)]
    moved, its = (
        [after - before for after, before in zip(run.weights, base.first, strict=True)] for run in (base, one)
    )
    return {
        "first loss": losses[0],
        "first gradient": abs(one.gradients[0] - base.gradients[0]) / base.gradients[0],
        "losses": max(losses),
        "weights": relative(its, moved),
    }


def measure(work: Work) -> None:
    """A row for each method."""
    device, shelf = torch.device(work.device), Shelf()
    settings, steps = ((*SMALL, *TOY), 3) if work.toy else (SMALL, STEPS)
    table = f"Relative difference in {steps} steps"
    for method in METHODS:

        def job(method: str = method) -> None:
            base = trained(method, settings, CPU, steps, shelf)
            there = trained(method, settings, device, steps, shelf)
            assert all(map(torch.equal, there.first, base.first)), "the first weights differ"
            found = differences(there, base)
            bit = differences(trained(method, settings, CPU, steps, shelf, LAST_BIT), base)
            wrong = [name for name, most in MOST.items() if not found[name] <= most]
            cells = {name.replace(" ", "_"): value for name, value in found.items()}
            work.row(table, method=method, **cells, passed=not wrong)
            cells = {name.replace(" ", "_"): value for name, value in bit.items()}
            work.row(f"The CPU against itself, {steps} steps", method=method, **cells)
            assert not wrong, f"{', '.join(wrong)}: {found}, at most {MOST} is right"

        work.attempt(method, job, 30)
    work.note(
        table,
        f"At most {', '.join(f'{most:g} ({name})' for name, most in MOST.items())}. Of weights: the norm of "
        "their difference over that of how far they moved. The CPU against itself: two runs, of which one "
        "starts from weights that differ in the last bit.",
    )

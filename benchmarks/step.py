"""A training step against the same step as facebookresearch/dino writes it; on the GPU if there is one.

Both get the same crops and start from the same weights; the first losses must agree. The step of the
reference, from a reading of it: one backbone call per crop size and one head call, a Python loop over pairs
of views, a clip per tensor that reads each norm with `.item()`, `torch.optim.AdamW` with its defaults, and a
Python loop for the moving average. On a GPU it runs as it is shipped, in float16 with a gradient scaler.

The share of what the device can do is that of the matrix products and convolutions of our step over one
product of large matrices in the same precision, measured in the same process.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import section, spread, table
from benchmarks.timing import Job, interleaved, ratios, timed
from dino_lab.building.execution import use_tf32
from dino_lab.components.data._labelled import IMAGENET_MEAN, IMAGENET_STD, Labelled
from dino_lab.components.data._storage import Batch, Resident
from dino_lab.kernels import linear
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train
from dino_lab.types import Images, Views


@dataclass(frozen=True)
class Setting:
    """What is trained where."""

    title: str
    device: str
    settings: tuple[str, ...] = ()  # over step.yaml
    pixels: int = 32  # of a side of the images
    rounds: int = 9
    large: int = 2048  # rows of the matrices whose product is the ceiling


ON_CPU = Setting("ViT-T/4, 32 px, 2 + 6 crops, batch 64", "cpu")
ON_GPU = Setting(
    "ViT-S/16, 2 x 224 + 8 x 96 px, 65,536 prototypes, batch 128",
    "cuda",
    (
        "data.size=256",
        "augment={name: multicrop, preset: dino_v1}",
        "backbone={name: vit, width: 384, depth: 12, heads: 6, patch: 16, drop_path: 0.1}",
        "head.dim=65536",
        "train.batch_size=128",
    ),
    pixels=256,
    rounds=20,
    large=8192,
)


@dataclass(frozen=True)
class Way:
    """How one of our steps is computed."""

    precision: str
    compile: str = "false"  # of `train.compile`


REFERENCE, FULL, HALF = "as the reference", "dino-lab, float32", "dino-lab, bfloat16"
TF32, COMPILED = "dino-lab, TF32", "dino-lab, bfloat16, compiled"
GRAPHS = "dino-lab, bfloat16, CUDA graphs"
WAYS = {
    FULL: Way("float32"),
    TF32: Way("tf32"),
    HALF: Way("bfloat16"),
    COMPILED: Way("bfloat16", "true"),
    GRAPHS: Way("bfloat16", "graphs"),
}


class OneBatch(Labelled):
    """Random images whose every batch is the same, so that reading them takes no time."""

    def __init__(self, images: int, pixels: int, steps: int = 100) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, 256, (images, 3, pixels, pixels), dtype=torch.uint8, generator=generator)
        split = Resident(drawn, torch.arange(images) % 10)
        names = tuple(map(str, range(10)))
        super().__init__(split, split, names, pixels, IMAGENET_MEAN, IMAGENET_STD)
        self.train_images = steps * images  # an epoch, at whose end a row is written

    def train_share(self, batch_size: int, seed: int, start: int, images: slice) -> Iterator[Batch]:
        """The images, without end."""
        storage = self.storage("train")
        assert isinstance(storage, Resident)
        while True:
            yield storage.images[images], storage.labels[images]


class Fixed:
    """An augmentation that gives the same crops for every batch, so that only the step is timed."""

    def __init__(self, views: Views, like: Run) -> None:
        self.views, self.pairs, self.groups = views, like.augment.pairs, like.augment.groups

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        return self.views


class ReferenceStep:
    """The reference's way of doing one step."""

    def __init__(self, run: Run) -> None:
        self.student, self.teacher = copy.deepcopy(run.student), copy.deepcopy(run.student)
        self.teacher.requires_grad_(False)
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4 / 4, weight_decay=0.04)
        self.center = torch.zeros(1, device=run.device)
        self.half = run.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(run.device.type, enabled=self.half)

    def __call__(self, crops: list[Tensor]) -> float:
        """One step on normalised crops by size, each [V, B, C, H, W]; the loss."""
        with as_shipped():
            return self._step(crops)

    def _step(self, crops: list[Tensor]) -> float:
        with torch.autocast(self.center.device.type, torch.float16, enabled=self.half):
            teacher = _forward(self.teacher, crops[:1]).detach()
            student = _forward(self.student, crops)
            loss = self._loss(student, teacher, len(crops[0]), sum(len(group) for group in crops))
        value = loss.item()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        _clip(self.student, 3.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.data.mul_(0.996).add_((1 - 0.996) * ours.detach().data)
        return value

    def _loss(self, student: Tensor, teacher: Tensor, T: int, S: int) -> Tensor:
        predictions = (student / 0.1).chunk(S)
        targets = F.softmax((teacher - self.center) / 0.04, dim=-1).detach().chunk(T)
        total, terms = torch.zeros((), device=student.device), 0
        for t, target in enumerate(targets):
            for s, prediction in enumerate(predictions):
                if s == t:
                    continue
                total = total + torch.sum(-target * F.log_softmax(prediction, dim=-1), dim=-1).mean()
                terms += 1
        self.center = self.center * 0.9 + teacher.mean(0, keepdim=True) * 0.1
        return total / terms


@contextmanager
def as_shipped() -> Iterator[None]:
    """Layers that were taken from a run multiply as torch does by itself."""
    before, linear.LEAST = linear.LEAST, sys.maxsize
    try:
        yield
    finally:
        linear.LEAST = before


def _forward(network: Any, crops: list[Tensor]) -> Tensor:
    # timm's model, which computes its last block for all tokens as the reference does, not our backbone.
    model: Any = network.backbone.model
    features = torch.cat([model(group.flatten(0, 1)) for group in crops])
    return network.head(features)


def _clip(network: nn.Module, limit: float) -> None:
    for parameter in network.parameters():
        if parameter.grad is not None:
            norm = parameter.grad.data.norm(2).item()
            if limit / (norm + 1e-6) < 1:
                parameter.grad.data.mul_(limit / (norm + 1e-6))


def prepare(setting: Setting, way: Way, *, crops: bool = False) -> Run:
    """A run of the setting, whose every batch gives the same crops unless `crops` are to be made."""
    settings = [*setting.settings, f"train.precision={way.precision}", f"train.compile={way.compile}"]
    spec = load(Path(__file__).with_name("step.yaml"), settings).spec
    data = OneBatch(spec.train.batch_size, setting.pixels)
    device = torch.device(setting.device)
    run = build(spec, registry, device, data)
    if crops:
        return run
    images, _ = next(run.data.train(spec.train.batch_size, 0, 0))
    return replace(run, augment=Fixed(run.augment.forward(images, run.generator(0)), run))


def views_of(run: Run) -> Views:
    """The crops of every batch of a prepared run."""
    assert isinstance(run.augment, Fixed)
    return run.augment.views


def first_losses(setting: Setting) -> tuple[float, float]:
    """Loss of the first step, ours and the reference's, without stochastic depth."""
    run = prepare(setting, WAYS[FULL])
    for module in run.student.modules():
        if hasattr(module, "drop_prob"):
            vars(module)["drop_prob"] = 0.0
    reference = ReferenceStep(run)
    # log_every hides most losses: take the one number that the step itself computes.
    row = next(train(replace(run, spec=_every_row(run))))
    return row.numbers["loss"], reference(_normalised(run))


def _normalised(run: Run) -> list[Tensor]:
    # The reference's loaders do it; ours is a part of the step.
    return [run.student.normalize(group) for group in views_of(run).crops]


def _every_row(run: Run) -> Spec:
    return run.spec.model_copy(update={"train": run.spec.train.model_copy(update={"log_every": 1})})


def make_step(setting: Setting, name: str) -> Job:
    """A step that is computed in the way of that name: the reference's, or one of `WAYS`."""
    if name == REFERENCE:
        run = prepare(setting, WAYS[FULL])
        reference, crops = ReferenceStep(run), _normalised(run)
        return lambda: reference(crops)
    rows = train(prepare(setting, WAYS[name]))
    return lambda: next(rows)


def peak_memory(make: Iterable[Job]) -> float:
    """GiB of the GPU's memory at most, of two steps by themselves."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for step in make:
        step()
        step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def operations(setting: Setting) -> float:
    """Multiplications and additions of the products of one of our steps."""
    steps = train(prepare(setting, WAYS[FULL]))
    next(steps)
    with FlopCounterMode(display=False) as counter:
        next(steps)
    return float(counter.get_total_flops())


def ceiling(setting: Setting, dtype: torch.dtype, *, tf32: bool = False) -> float:
    """Operations a second of one product of large matrices."""
    n = setting.large
    a, b = (torch.randn(n, n, device=setting.device, dtype=dtype) for _ in range(2))
    use_tf32(tf32)
    times = [timed(lambda: linear.linear(a, b), setting.device) for _ in range(9)]
    return 2 * n**3 / statistics.median(times[2:])


def batch_size(setting: Setting) -> int:
    """Images of a step."""
    return load(Path(__file__).with_name("step.yaml"), setting.settings).spec.train.batch_size


def rows_of(
    times: Mapping[str, list[float]], batch: int, work: float, ceilings: Mapping[str, float]
) -> list[list[str]]:
    """Name, images/s, times the reference and % of the ceiling, of seconds of rounds."""
    return [
        [
            name,
            spread([batch / t for t in seconds], 1),
            spread(ratios(times[REFERENCE], seconds)),
            spread([100 * work / t / ceilings[name] for t in seconds], 0) if name in ceilings else "",
        ]
        for name, seconds in times.items()
    ]


def main() -> str:
    """Interleaved rounds of the three steps."""
    setting = ON_GPU if torch.cuda.is_available() else ON_CPU
    on_gpu = setting.device == "cuda"
    ours, theirs = first_losses(setting)
    assert abs(ours - theirs) < (1e-2 if on_gpu else 1e-4) * theirs, (ours, theirs)
    names, batch = (REFERENCE, FULL, HALF), batch_size(setting)
    peaks = [f"{peak_memory(make_step(setting, n) for n in [name]):.1f}" for name in names if on_gpu]
    work = operations(setting)
    ceilings = {FULL: ceiling(setting, torch.float32), HALF: ceiling(setting, torch.bfloat16)}
    steps = {name: make_step(setting, name) for name in names}
    rows = rows_of(interleaved(steps, setting.device, setting.rounds), batch, work, ceilings)
    header = ["step", "images/s, median (range)", "times the reference, in pairs", "% of the ceiling"]
    if on_gpu:
        header.append("peak memory, GiB")
        rows = [[*row, peak] for row, peak in zip(rows, peaks, strict=True)]
    text = (
        f"First loss, same weights and crops: {ours:.6f} here, {theirs:.6f} as the reference writes it.\n\n"
    )
    text += table(header, rows)
    text += f"\n\nOur step has {work / batch / 1e9:.1f} GFLOP an image. The ceiling: "
    text += ", ".join(f"{rate / 1e12:.2f} TFLOP/s ({name.split()[-1]})" for name, rate in ceilings.items())
    text += (
        ". Asked on the CPU: 1.1 and 1.6 times the reference; on a GPU 2.5 times, 45 % and 0.7 of the memory."
    )
    return section(f"Training step: {setting.title}", "python -m benchmarks.step", text)


if __name__ == "__main__":
    print(main())

"""From files to weights: images a second of whole training loops that read, decode, augment and step.

Every way trains the same network on the same JPEG files with DINO's multi-crop, batch size and head, in a
process of its own, with as many loader workers as there are cores: the reference's loop around torchvision's
ImageFolder and Pillow; lightly's DINOTransform, DINOProjectionHead and DINOLoss around the same data set; and
`dino-lab`'s. The first steps are not timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.augment import missing
from benchmarks.augment_peers import Setting, pillow_views
from benchmarks.packed import write_photographs
from benchmarks.report import section, spread, table
from benchmarks.step import ReferenceStep, as_shipped
from dino_lab.components.data._storage import never_resident
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train

ROUNDS = 3
BATCH, WARM, STEPS = 16, 3, 5
IMAGES = BATCH * (WARM + STEPS)
SETTING = Setting("ImageNet", pixels=256, global_size=224, local_size=96, local_views=8, batch=BATCH)
DIM = 4096
REFERENCE, LIGHTLY, OURS = "as facebookresearch/dino", "lightly", "dino-lab"


def _run(files: Path, *settings: str) -> Run:
    at = [f"data.path={files}", f"train.batch_size={BATCH}", *settings]
    return build(load(Path(__file__).with_name("pipeline.yaml"), at).spec, registry, torch.device("cpu"))


def _loader(files: Path, transform: Callable[[Any], list[Tensor]]) -> Iterator[list[Tensor]]:
    """Views of a batch, each [B, 3, size, size]."""
    from torchvision.datasets import ImageFolder

    workers = os.cpu_count() or 1
    loader: DataLoader[Any] = DataLoader(
        ImageFolder(str(files / "train"), transform), BATCH, shuffle=True, num_workers=workers, drop_last=True
    )
    return (views for views, _ in loader)


def reference(files: Path) -> Iterator[None]:
    """The reference's loop."""
    step = ReferenceStep(_run(files))
    for views in _loader(files, pillow_views(SETTING)):
        step([torch.stack(views[:2]), torch.stack(views[2:])])
        yield


def lightly(files: Path) -> Iterator[None]:
    """As lightly's documentation combines its parts, on the same backbone."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import DINOTransform

    def network() -> nn.Module:
        backbone: Any = _run(files).student.backbone
        head = DINOProjectionHead(192, 2048, 256, DIM, norm_last_layer=True)
        return nn.Sequential(backbone.model, head)

    student, teacher = network(), network()
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(output_dim=DIM)
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-4, weight_decay=0.04)
    for views in _loader(files, DINOTransform(n_local_views=SETTING.local_views)):
        update_momentum(student, teacher, m=0.996)
        targets = [teacher(view) for view in views[:2]]
        loss = criterion(targets, [student(view) for view in views], epoch=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def dino_lab(files: Path, precision: str) -> Iterator[None]:
    """A run, without its rows and checkpoints; the images are not kept decoded."""
    with never_resident():
        for _ in train(_run(files, f"train.precision={precision}")):
            yield


WAYS: dict[str, Callable[[Path], Iterator[None]]] = {
    REFERENCE: reference,
    LIGHTLY: lightly,
    f"{OURS}, float32": lambda files: dino_lab(files, "float32"),
    f"{OURS}, bfloat16": lambda files: dino_lab(files, "bfloat16"),
}


def measure(way: str, files: Path) -> float:
    """Images a second, in this process."""
    steps = WAYS[way](files)
    with nullcontext() if way.startswith(OURS) else as_shipped():
        for _ in islice(steps, WARM):
            pass
        began = time.perf_counter()
        done = sum(1 for _ in islice(steps, STEPS))
    assert done == STEPS
    return BATCH * STEPS / (time.perf_counter() - began)


def _in_process(way: str, files: Path) -> float:
    command = [sys.executable, "-m", "benchmarks.pipeline", way, str(files)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


def main() -> str:
    """Interleaved rounds."""
    ways = [way for way in WAYS if missing(way) is None]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as place:
        files = Path(place)
        write_photographs(files, IMAGES)
        for _ in range(ROUNDS):
            for way, results in rates.items():
                results.append(_in_process(way, files))
    lines = [
        [way, spread(rate, 2), *(_times(rate, rates.get(base)) for base in (REFERENCE, LIGHTLY))]
        for way, rate in rates.items()
    ]
    lines += [[way, f"skipped: {missing(way)}", "", ""] for way in WAYS if way not in ways]
    header = ["loop", "images/s, median (range)", "times the reference, in pairs", "times lightly, in pairs"]
    text = table(header, lines) + "\n\nAsked: 1.5 times both."
    title = f"Files to weights: ViT-T/16, 2 x 224 + 8 x 96 pixels, batch {BATCH}"
    return section(title, "python -m benchmarks.pipeline", text)


def _times(rate: list[float], base: list[float] | None) -> str:
    return "" if base is None else spread([a / b for a, b in zip(rate, base, strict=True)])


if __name__ == "__main__":
    print(measure(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main())

"""Whether a run computes the same however its batches are divided: over processes, or in parts."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dino_lab.building.execution import arrange
from dino_lab.errors import Misfit
from dino_lab.testing.ranks import RankFailed, on_processes
from dino_lab.testing.tested_component import CPU, TestedComponent, tensors
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train

BATCH = 5  # divided as 3 + 2 and as 2 + 2 + 1
STEPS = 2
# Steps in proportion to gradients: of others the first would say only where a number lies above 0.
SETTINGS = ("optim={name: sgd, lr: 0.05, lr_scaling: {rule: none}}", "train.log_every=1", "evaluators=[]")
ROUNDING = {torch.float64: 1e-5, torch.float32: 1e-3}  # of the largest number of a tensor, after two steps
RIGHT = {
    "data": "`train` should give the same batches on every process",
    "augment": "crops should depend on the images and `generator` alone, and on no other process",
    "operation": "parameters should be drawn by forward_parameters, for every crop by itself",
    "backbone": "features should depend on their image alone, but for torch's layers of batch norm; random "
    "numbers should be drawn by torch, for every image",
    "loss": "it should be a mean over the samples that it is given, and what it knows of others should come "
    "from dino_lab.collectives (mean, gather)",
    "targets": "statistics of the batch should come from dino_lab.collectives (mean, gather)",
    "teacher": "outputs should depend on their image alone, but for torch's layers of batch norm",
}
RIGHT |= {"head": RIGHT["backbone"], "regularizer": RIGHT["loss"]}
Observed = dict[str, Tensor]


def check_divided(subject: TestedComponent) -> None:
    """Loss, gradients and state of two steps are those of one process, on 2 and 3, and in two parts."""
    if subject.entry.kind == "evaluator":
        return
    dtype, wanted = torch.float64, _observe_whole(subject, torch.float64)
    if wanted is None:
        dtype, wanted = torch.float32, _observe(_built(subject), torch.float32)
    with suppress(Misfit):  # which says at validation that there can be no parts
        found = _observe(_built(subject, "train.accumulate=2"), dtype)
        _compare(subject, "with train.accumulate 2", found, wanted, dtype)
    untouched = _built(subject)
    if torch.cuda.is_available():
        return  # a forked process cannot use autograd there
    for count in (2, 3):
        where = f"on {count} processes"
        try:
            ranks = on_processes(count, partial(_observe, untouched, dtype))
        except RankFailed as error:
            subject.fail(f"{where} a run with it raises {error}; {RIGHT[subject.entry.kind]}", error)
        for found in ranks:
            _compare(subject, where, found, wanted, dtype)


def _built(subject: TestedComponent, *settings: str) -> Run:
    batch = min(BATCH, subject.run().data.train_images)
    spec = subject.spec(*SETTINGS, f"train.batch_size={batch}", *settings)
    return build(spec, subject.registry, CPU)


def _observe_whole(subject: TestedComponent, dtype: torch.dtype) -> Observed | None:
    """What one process makes of whole batches; None where a component knows float32 alone."""
    try:
        return _observe(_built(subject), dtype)
    except RuntimeError:
        return None


def _observe(run: Run, dtype: torch.dtype) -> Observed:
    """Numbers of rows, gradients of the first step, and what has become of everything."""
    networks: tuple[Any, ...] = (run.student, run.teacher)
    for part in networks:
        arrange(part, run.spec.train, CPU)  # which depends on the number of processes
    for part in (*networks, run.targets, run.loss, *run.regularizers.values()):
        part.to(dtype)
    found: Observed = {}
    rows = train(run)
    for step, row in zip(range(STEPS), rows, strict=False):
        found |= {name: torch.tensor(value) for name, value in row.numbers.items()}
        if step == 0:
            grads = ((name, p.grad) for name, p in run.student.named_parameters())
            found |= {f"gradient of {name}": grad.clone() for name, grad in grads if grad is not None}
    rows.close()
    return found | tensors(run.state_dict())


def _compare(
    subject: TestedComponent, where: str, found: Observed, whole: Observed, dtype: torch.dtype
) -> None:
    for name, wanted in whole.items():
        other = found.get(name)
        fits = other is not None and other.shape == wanted.shape
        if fits and other is not None and wanted.numel():
            difference = (other.double() - wanted.double()).abs().max().item()
            fits = difference <= ROUNDING[dtype] * (0.01 + wanted.double().abs().max().item())
        kept = f"{where} a run with it has another {name} than on one process at once"
        subject.expect(fits, f"{kept}; {RIGHT[subject.entry.kind]}")

"""The loop of one run: DINO, arXiv 2104.14294, Algorithm 1, with every part a component."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab import collectives
from dino_lab.building.seeding import seed_everything
from dino_lab.errors import UserError
from dino_lab.protocols import GivesMeasures, ability
from dino_lab.training import shares
from dino_lab.training.accumulate import forward
from dino_lab.training.build import Run
from dino_lab.training.diagnostics import OnHost, diagnose, diagnose_distribution
from dino_lab.training.gradients import AveragedGradients
from dino_lab.training.optimizer import clip_gradients, set_rates
from dino_lab.types import Images, Output, Views, at_least_float32

Numbers = Mapping[str, Tensor | OnHost]  # of a row, on whatever device they were computed


class NonFinite(Exception):
    """Loss or gradient is no number; raised before the weights move (on a GPU, at the next row)."""


class NoBatch(Exception):
    """The next batch could not be had because of `cause`; nothing has moved since the last step."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class Row:
    """What is known after `step` optimizer steps; `numbers` is empty where nothing is written down."""

    step: int
    total: int
    epoch: float
    numbers: dict[str, float]
    waited: float = 0.0  # seconds for this step's images; on a GPU those of the host, which may run ahead
    finite: Tensor | None = None  # whether loss and gradient have been numbers since the last row


def train(run: Run, start: int = 0) -> Generator[Row, None, None]:
    """One row per step, after it. Suspended, it is always between two steps, so it may be saved there."""
    spec, total_steps = run.spec, run.total_steps
    source = shares.batches(run, start)
    finite = torch.ones((), dtype=torch.bool, device=run.device)
    gradients = AveragedGradients(run.parameters)
    try:
        for step in range(start, total_steps):
            images, labels, waited = next_batch(source)  # see shares.batches
            writes = writes_row(run, step)
            seed_everything(spec.seed, "step", run.place(step))
            run.optimizer.zero_grad()
            if spec.train.compile == "graphs":
                # Outputs and gradients of the step before may be overwritten, and none of this step's.
                torch.compiler.cudagraph_mark_step_begin()
            with collectives.dividing(spec.train.batch_size):
                objective, numbers = _learn(run, step, images, labels, gradients, writes=writes)
            finite, row = update(run, step, objective, numbers, finite, writes=writes)
            yield Row(step + 1, total_steps, (step + 1) / run.steps_per_epoch, row, waited, finite)
    finally:
        gradients.close()


def _learn(
    run: Run, step: int, images: Images, labels: Tensor, gradients: AveragedGradients, *, writes: bool
) -> tuple[Tensor, Numbers]:
    """Give the student's weights the gradient of a batch; what is minimised, and the numbers of a row."""
    views = shares.views(run, images, step)  # crops by size [V, B, C, H, W]
    student, (teacher, tokens), backward = forward(run, views, labels)
    objective, numbers = compare(run, views, student, teacher, tokens, run.progress(step), writes=writes)
    backward(objective, gradients)
    return collectives.mean(objective.detach()), numbers


def next_batch(batches: Iterator[tuple[Images, Tensor]]) -> tuple[Images, Tensor, float]:
    """Images, labels, and the seconds that they took to come.

    A NoBatch on every process where one of them cannot have its own.
    """
    began, failed = time.perf_counter(), None
    try:
        images, labels = next(batches)
    except Exception as error:
        failed = error
    message = collectives.first_message("" if failed is None else f"{failed}" or type(failed).__name__)
    if failed is not None:
        raise NoBatch(failed) from failed
    if message:
        raise NoBatch(UserError(message))
    return images, labels, time.perf_counter() - began


def writes_row(run: Run, step: int) -> bool:
    """Whether a row is written after step `step` (from 0)."""
    return (step + 1) % run.spec.train.log_every == 0 or run.ends_epoch(step)


def compare(
    run: Run,
    views: Views,
    student: Output,
    teacher: Tensor,
    teacher_tokens: Tensor | None,
    progress: float,
    *,
    writes: bool,
) -> tuple[Tensor, Numbers]:
    """What is minimised, of this process's images, and the numbers of a row where one is written, of all.

    Of student z, p [S, B, K] and tokens [T, B, K', h, w]; of the teacher [T, B, K] and [T, B, K', h', w'].
    """
    p = at_least_float32(student.p)
    teacher = teacher.to(p.dtype)
    target = run.targets.forward(teacher, progress)  # [T, B, K]
    compared = (p, target, views.pairs)
    measured = _measure(run, *compared) if writes else {}  # first: the loss may change its state
    loss = run.loss.forward(*compared)
    terms = {name: (part.forward(views, student), part.weight) for name, part in run.regularizers.items()}
    if run.token_objective is not None:
        assert student.tokens is not None
        assert teacher_tokens is not None
        distance = run.token_objective(student.tokens, teacher_tokens, progress)
        terms["token_loss"] = (distance, run.token_objective.weight)
    objective = loss + sum(weight * value for value, weight in terms.values())
    if not writes:
        return objective, {}
    of_share = {"loss": loss, **measured, **{name: value for name, (value, _) in terms.items()}}
    numbers = {name: collectives.mean(value.detach()) for name, value in of_share.items()}
    if run.targets.distribution:
        numbers |= diagnose_distribution(target.detach(), views.pairs)
        if run.loss.cross_entropy:
            numbers["kl"] = numbers["loss"] - numbers["entropy"]
    return objective, {**numbers, **diagnose(student, teacher)}


def update(
    run: Run, step: int, objective: Tensor, numbers: Numbers, finite: Tensor, *, writes: bool
) -> tuple[Tensor, dict[str, float]]:
    """Clip the gradients, move the student, then the teacher; whether all is finite so far, and the row.

    Gradients and `objective` are those of the whole batch, so that every process decides the same. With the
    row, and on a CPU always, a NonFinite comes before anything moves; a GPU is waited for once a row.
    """
    progress = run.progress(step)
    norm = clip_gradients(run.parameters, run.spec.optim.clip)
    finite = finite & objective.detach().isfinite() & norm.isfinite()
    row: dict[str, float] = {}
    if writes:
        row = on_host({**numbers, "gradient_norm": norm, "objective": objective, "finite": finite})
        if not row.pop("finite") or not math.isfinite(row["objective"]):
            raise _non_finite(step, row["objective"], norm)
        del row["objective"]
    elif run.device.type == "cpu" and not finite:
        raise _non_finite(step, objective.item(), norm)
    lr, weight_decay = set_rates(run.optimizer, run.spec.optim, run.spec.train.batch_size, progress)
    run.optimizer.step()
    run.teacher.update(run.student, progress, run.ends_epoch(step))
    return finite, row | ({"lr": lr, "weight_decay": weight_decay} if writes else {})


def _non_finite(step: int, objective: float, norm: Tensor) -> NonFinite:
    named, value = ("the loss", objective) if not math.isfinite(objective) else ("the gradient's norm", norm)
    return NonFinite(f"{named} is {float(value)} at step {step}")


def on_host(numbers: Numbers) -> dict[str, float]:
    """All numbers as Python's, in one copy from the device."""
    tensors = [value.tensor if isinstance(value, OnHost) else value.detach() for value in numbers.values()]
    copied = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu()
    parts = copied.split([tensor.numel() for tensor in tensors])
    return {
        name: value.finish(part.view(value.tensor.shape)) if isinstance(value, OnHost) else part.item()
        for (name, value), part in zip(numbers.items(), parts, strict=True)
    }


@torch.no_grad()
def _measure(run: Run, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """What the loss measures beside its value, if anything."""
    measures = ability(run.loss, GivesMeasures)
    return {} if measures is None else measures.measure(student, target, pairs)

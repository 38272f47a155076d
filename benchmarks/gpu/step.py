"""The training step against the reference's; its phases, kernels, launches and waits; compiled."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from benchmarks import step
from benchmarks.gpu.augmentation import TOY_STEP
from benchmarks.gpu.profiling import LAUNCHING, OTHERS, WAITING, Phases, calls, counted, kernels, launches
from benchmarks.gpu.worker import Work, spread
from benchmarks.timing import Job, interleaved, ratios, timed
from dino_lab.training.loop import train

# Dense products in bfloat16, TFLOP/s, of NVIDIA's data sheets; in TF32 it is half. The first match counts.
SHEETS = {
    "A100": 312.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
}
COUNTED = 99.9  # GFLOP an image of this step, counted by hand
SPEED, MEMORY, UTILISATION, LAUNCHES, WAITS = 2.5, 0.7, 45.0, 900, 1  # asked
EAGER = (step.REFERENCE, step.FULL, step.TF32, step.HALF)
PROFILED = 3  # steps
ENOUGH = 30.0  # seconds, for the step as CUDA graphs


def sheet(name: str, precision: torch.dtype, *, tf32: bool = False) -> float | None:
    """Products a second, TFLOP/s, that the data sheet of a card promises; None if it is not known here."""
    card = next((peak for key, peak in SHEETS.items() if key in name), None)
    if card is None or (precision == torch.float32 and not tf32):
        return None
    return card / 2 if tf32 else card


def _ceilings(work: Work, setting: step.Setting) -> dict[str, dict[str, float | None]]:
    """Of each way the TFLOP/s of one product of large matrices, and those of the data sheet."""
    card = torch.cuda.get_device_name() if work.on_gpu else ""
    kinds = {
        step.FULL: (torch.float32, False),
        step.TF32: (torch.float32, True),
        step.HALF: (torch.bfloat16, False),
    }
    return {
        name: {
            "large product": step.ceiling(setting, dtype, tf32=tf32) / 1e12,
            "data sheet": sheet(card, dtype, tf32=tf32),
        }
        for name, (dtype, tf32) in kinds.items()
    }


def first(work: Work, setting: step.Setting) -> None:
    """The losses of the first step, which have to agree."""
    ours, theirs = step.first_losses(setting)
    passed = abs(ours - theirs) < (1e-2 if work.on_gpu else 1e-4) * theirs
    work.row("First loss, same weights and crops", ours=ours, reference=theirs, passed=passed)
    assert passed, (ours, theirs)


def memory(work: Work, setting: step.Setting) -> None:
    """Peak memory of each, by itself."""
    names = (step.REFERENCE, step.FULL, step.HALF)
    found = {name: step.peak_memory(step.make_step(setting, n) for n in [name]) for name in names}
    for name, peak in found.items():
        work.row("Peak memory", step=name, GiB=peak, over_the_reference=peak / found[step.REFERENCE])
    ratio = found[step.HALF] / found[step.REFERENCE]
    work.asked("peak memory over the reference, bfloat16", ratio, f"at most {MEMORY:g}", ratio <= MEMORY)


def eager(work: Work, setting: step.Setting) -> None:
    """Interleaved rounds of the reference and of ours in three precisions."""
    operations, batch = step.operations(setting), step.batch_size(setting)
    ceilings = _ceilings(work, setting)
    table = f"Steps: {setting.title}"
    work.note(
        table,
        f"Counted: {operations / batch / 1e9:.1f} GFLOP an image; by hand, of ViT-S/16: {COUNTED}. "
        "MFU: these over the data sheet's dense TFLOP/s, and over those of one large product.",
    )
    steps = {name: step.make_step(setting, name) for name in EAGER}
    times = interleaved(steps, work.device, setting.rounds, warm=2, seconds=20)
    _rows(work, table, times, batch, operations, ceilings)
    _ask(work, "bfloat16", times, step.HALF, operations, ceilings[step.HALF])


def compiled(work: Work, setting: step.Setting, name: str = step.COMPILED) -> None:
    """The same of a compiled step, beside the reference and the step that is not compiled."""
    operations, batch = step.operations(setting), step.batch_size(setting)
    ceilings = _ceilings(work, setting)
    table = f"{name}: {setting.title}"
    job = step.make_step(setting, name)
    work.note(table, f"Seconds of the first step, which compiles: {timed(job, work.device):.1f}.")
    others = {name: step.make_step(setting, name) for name in (step.REFERENCE, step.HALF)}
    times = interleaved({**others, name: job}, work.device, setting.rounds, warm=2, seconds=15)
    ceilings[name] = ceilings[step.HALF]
    _rows(work, table, times, batch, operations, ceilings)
    kind = name.removeprefix("dino-lab, ")
    _ask(work, kind, times, name, operations, ceilings[step.HALF])
    profiled(work, kind, job)


def _rows(
    work: Work,
    table: str,
    times: dict[str, list[float]],
    batch: int,
    operations: float,
    ceilings: dict[str, dict[str, float | None]],
) -> None:
    for name, seconds in times.items():
        shares = {
            f"%_of_{kind.replace(' ', '_')}": spread([operations / t / 1e10 / peak for t in seconds])
            for kind, peak in ceilings.get(name, {}).items()
            if peak is not None
        }
        work.row(
            table,
            step=name,
            images_per_s=spread([batch / t for t in seconds]),
            times_the_reference=spread(ratios(times[step.REFERENCE], seconds)),
            **shares,
            large_product_TFLOP_per_s=ceilings.get(name, {}).get("large product"),
        )


def _ask(
    work: Work,
    name: str,
    times: dict[str, list[float]],
    ours: str,
    operations: float,
    ceilings: dict[str, float | None],
) -> None:
    """The asked figures, which are those of a GPU."""
    faster = spread(ratios(times[step.REFERENCE], times[ours]))
    work.asked(f"step over the reference, {name}", faster, f"at least {SPEED:g}", faster["median"] >= SPEED)
    peak = ceilings["data sheet"]
    if peak is not None:
        used = operations / statistics.median(times[ours]) / 1e10 / peak
        work.asked(f"MFU, {name}, %", used, f"at least {UTILISATION:g}", used >= UTILISATION)


def phases(work: Work, setting: step.Setting) -> None:
    """Times of the phases of a step in bfloat16 that makes its own crops."""
    run = step.prepare(setting, step.WAYS[step.HALF], crops=True)
    rows, found = train(run), Phases(run)
    list(islice(rows, 3))
    count = 2 if work.toy else 10
    with found.watching():
        list(islice(rows, count))
    whole = [1000 * timed(lambda: next(rows), work.device) for _ in range(count)]
    times = found.times()
    middle = statistics.median(whole)
    for name, each in times.items():
        share = 100 * statistics.median(each) / middle
        work.row("Phases of a step in bfloat16", phase=name, ms=spread(each), percent_of_the_step=share)
    work.row("Phases of a step in bfloat16", phase="the step", ms=spread(whole))


def launched(work: Work, setting: step.Setting) -> None:
    """Kernels, launches and waits of a step in bfloat16 that is not compiled."""
    profiled(work, "not compiled", step.make_step(setting, step.HALF))


def row_waits(work: Work, setting: step.Setting) -> None:
    """Waits of steps each of which writes a row."""
    each = replace(setting, settings=(*setting.settings, "train.log_every=1"))
    found = _profile(work, step.make_step(each, step.HALF))
    if work.on_gpu:
        waits = _waits(calls(found))
        work.asked("host waits of a step with a row", waits, f"at most {WAITS}", waits < WAITS + 0.5)


def _profile(work: Work, job: Job) -> Any:
    for _ in range(3):
        job()
    with counted(work.device) as found:
        for _ in range(PROFILED):
            job()
    return found


def _waits(counts: Mapping[str, int]) -> float:
    return sum(counts.get(call, 0) for call in WAITING) / PROFILED


def profiled(work: Work, name: str, job: Job) -> None:
    """A profile of some steps, none of which writes a row or makes crops."""
    found = _profile(work, job)
    counts = calls(found)
    table = f"Calls a step, bfloat16, {name}"
    for call in (*LAUNCHING, *WAITING, *OTHERS):
        if counts[call]:
            work.row(table, call=call, a_step=counts[call] / PROFILED)
    if work.on_gpu:
        made = launches(found) / PROFILED
        work.asked(f"launches of a step, {name}", made, f"at most {LAUNCHES}", made <= LAUNCHES)
        waits = _waits(counts)
        work.asked(f"host waits of a step without a row, {name}", waits, "0", waits < 0.5)
    for kernel, milliseconds, times in kernels(found):
        work.row(
            f"Kernels by time, {name}",
            kernel=kernel[:90],
            ms_a_step=milliseconds / PROFILED,
            a_step=times / PROFILED,
        )


def _setting(work: Work) -> step.Setting:
    return replace(TOY_STEP if work.toy else step.ON_GPU, device=work.device)


def measure(work: Work) -> None:
    """Speed and memory first, then what tells where the time goes."""
    setting = _setting(work)
    work.attempt("first loss", lambda: first(work, setting), 30)
    work.attempt("steps", lambda: eager(work, setting), 60)
    if work.on_gpu:
        work.attempt("memory", lambda: memory(work, setting), 25)
    work.attempt("phases", lambda: phases(work, setting), 25)
    work.attempt("launches", lambda: launched(work, setting), 30)
    work.attempt("waits", lambda: row_waits(work, setting), 20)


def measure_compiled(work: Work) -> None:
    """By itself: Inductor takes longer than all else."""
    if work.on_gpu:
        work.attempt("compiled step", lambda: compiled(work, _setting(work)), work.left())
        if work.left() > ENOUGH:  # what was compiled before is found in the cache
            work.attempt("CUDA graphs", lambda: compiled(work, _setting(work), step.GRAPHS), work.left())
    else:
        work.note("Compiled", "The compiled step is measured on a GPU alone.")

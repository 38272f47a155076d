"""Print every benchmark and write BENCHMARKS.md. Measure with nothing else running."""

from __future__ import annotations

from pathlib import Path

from benchmarks import (
    augment,
    bands,
    checkpoint,
    knn,
    numerics,
    packed,
    page,
    pipeline,
    processes,
    quickstart,
    shards,
    startup,
    step,
    sweep,
    together,
    whole,
)

HEAD = """# Benchmarks

Printed by `make bench`; each part also by its own command. Medians with their range; what is compared runs
interleaved in one process or one call.

That a run killed with -9 ends with the same weights, bit for bit, is tested: `tests/training/test_resume.py`.
Methods, the claims of DINO's paper and what attention finds have tables of their own: `docs/methods.md`,
`docs/paper.md`, `docs/attention.md`.

Trained on real images on one core, 20-NN (2026-11-26 and 27, AMD EPYC, bfloat16, seed 0; the command is in
the head of each file): `experiments/dino_cifar10.yaml` 0.690, `simclr_cifar10.yaml` 0.696 (asked of both:
0.72), `dino_vit_cifar10.yaml` 0.550, raw pixels 0.458; `photographs.yaml` on clothing10 0.677, raw pixels
0.537 (asked: 0.1 more). On DAVIS the ViT's best head has a Jaccard of 0.313, the centre square 0.231.

Damaged input has a check of its own, which takes over an hour: `python -m benchmarks.fuzz`. The last
whole run, 2026-11-26, AMD EPYC, 2 cores beside other programs, `--seed 11`: 20,000 specs, 20,000
settings, 5,000 sweeps and 2,000 run folders; 2 cases failed, by one cause (a row whose epoch is no
number), and pass since it was mended. None took over 5 s or 1 GB.

What asks for a GPU is one command of nine minutes, `python -m benchmarks.gpu --to FOLDER`, which writes a
part of this page; no figure of one is here yet.

What a step of DINO's ViT-S/16 asks of a GPU is counted without one by `python -m benchmarks.traffic`: 721
launches and 136 GB beside products, compiled (2026-11-27, torch 2.14.1); `docs/speed.md` has the tables.
"""


def main() -> None:
    """Run all parts one after the other."""
    modules = (
        quickstart,
        numerics,
        augment,
        packed,
        whole,
        bands,
        shards,
        pipeline,
        step,
        together,
        startup,
        checkpoint,
        sweep,
        knn,
        page,
        processes,
    )
    parts = [module.main() for module in modules]
    text = "\n".join([HEAD, *parts])
    Path("BENCHMARKS.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Does attention find the object? Random weights, supervised and DINO on the embedded shapes; DINO on DAVIS.

    python -m benchmarks.attention [--runs FOLDER] [--davis DATA RUN]

Three seeds each of one backbone, trained as `benchmarks.methods` does: finished runs are taken from FOLDER
(runs/methods), and what is missing is trained there. `--davis` adds the 67 frames of DATA/davis_masks, looked
at by the network of a finished RUN, which was trained on photographs, and by it before training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import methods
from benchmarks.report import section, spread, table
from dino_lab.components.data.parquet import Parquet
from dino_lab.components.evaluators.attention_boxes import AttentionBoxes
from dino_lab.components.evaluators.attention_masks import AttentionMasks
from dino_lab.components.evaluators.dense import Dense
from dino_lab.evaluation.scoring import score
from dino_lab.protocols import Data
from dino_lab.registry import registry
from dino_lab.reports.study.estimate import paired
from dino_lab.runs.open import SavedRun, open_run

CPU = torch.device("cpu")
MASKS = {"jaccard_60": "best head, 60 %", "mean_jaccard_60": "mean of heads, 60 %"} | {
    "jaccard_80": "best head, 80 %",
    "mean_jaccard_80": "mean of heads, 80 %",
}
BOXES = {"attention_corloc": "CorLoc, attention", "tokencut_corloc": "CorLoc, TokenCut of centred tokens"}
DENSE = {"linear_miou": "mIoU, linear", "knn_miou": "mIoU, k-NN"}
FLOORS = {
    "Jaccard": ("centre_box", "whole_image"),
    "CorLoc": ("centre_box_corloc", "whole_image_corloc"),
}
Scores = Mapping[str, float]


def scores_of(run: SavedRun, data: Data, evaluators: Sequence[Any]) -> dict[str, float]:
    """What the evaluators find of the run's network, the teacher's where it has one."""
    named = [(str(i), evaluator) for i, evaluator in enumerate(evaluators)]
    found = score(named, data, run.backbone, run.size, run.autocast)
    return {name: value for scored in found for name, value in scored.scores.items()}


def on_shapes() -> str:
    """Three seeds of each network."""

    def trained(method: str) -> Callable[[int], SavedRun]:
        return lambda seed: open_run(Path(methods.result(method, seed)["folder"]), registry, CPU)

    def untrained(seed: int) -> SavedRun:
        return open_run(Path(methods.result("dino", seed)["folder"]), registry, CPU, untrained=True)

    networks = {"random weights": untrained, "supervised": trained("supervised"), "DINO": trained("dino")}
    evaluators: list[Any] = [AttentionMasks(images=None), AttentionBoxes(images=None, centre=True), Dense()]
    rows, found = [], {}
    for name, make in networks.items():
        for seed in range(methods.SEEDS):
            run = make(seed)
            found[name, seed] = scores_of(run, run.data, evaluators)
        seeds = [found[name, seed] for seed in range(methods.SEEDS)]
        rows.append([name, *(spread([s[key] for s in seeds], 3) for key in MASKS | BOXES | DENSE)])
    text = table(["network", *(MASKS | BOXES | DENSE).values()], rows)
    wins = [_wins(found, other) for other in ("random weights", "supervised")]
    floors = (
        _floors(found["DINO", 0], FLOORS)
        + f" mIoU of the majority class {found['DINO', 0]['majority_miou']:.3f}."
    )
    protocols = "\n\n".join(evaluator.protocol for evaluator in evaluators)
    return (
        f"{text}\n\n{floors}\n\n{' '.join(wins)}\n\nMedian (range) over seeds, 1,000 images.\n\n{protocols}"
    )


def _wins(found: Mapping[tuple[str, int], Scores], other: str) -> str:
    """On how many seeds DINO is above another network."""
    counts = [
        f"{sum(found['DINO', s][key] > found[other, s][key] for s in range(methods.SEEDS))} ({title})"
        for key, title in (MASKS | BOXES | DENSE).items()
    ]
    return f"Of {methods.SEEDS} seeds DINO is above {other} on: {', '.join(counts)}."


def on_davis(folder: Path, path: Path) -> str:
    """One network, trained and not, at several sizes of image."""
    trained = open_run(path, registry, CPU)
    networks = {
        "random weights": open_run(path, registry, CPU, untrained=True),
        trained.spec.name: trained,
    }
    frames = str(folder / "davis_masks")
    data = Parquet(CPU, path=frames, size=256, train=None, label_column="sequence", mask_column="mask")
    sequences = torch.cat([labels for _, labels in data.test(64)]).tolist()
    rows, wins = [], []
    crop = trained.size
    for pixels in (crop, 2 * crop, 4 * crop):
        masks = AttentionMasks(images=None, pixels=pixels)
        boxes = AttentionBoxes(images=None, pixels=pixels, centre=True)
        of_networks = []
        for name, run in networks.items():
            with run.encoder("teacher") as encode:
                found = masks.forward(encode, data) | boxes.forward(encode, data)
                of_networks.append(_of_sequences(masks.of_each(encode, data), sequences))
            shown = [key for key in found if not key.startswith(("head", "centre_box", "whole_image"))]
            rows.append([name, pixels, *(f"{found[key]:.3f}" for key in shown)])
        first, last = of_networks
        for key, title in MASKS.items():
            others = {"random weights": first[key], "the centre square": last["centre_box"]}
            wins.append([pixels, title, *(_difference(last[key], other) for other in others.values())])
    text = table(["network", "pixels", *shown], rows)
    over = table(["pixels", "Jaccard", *(f"{trained.spec.name} over {name}" for name in others)], wins)
    return (
        f"{text}\n\n{_floors(found, FLOORS)}\n\nOne run, 67 frames cut square, masks of 256 pixels.\n\n"
        f"{over}\n\nMean over the sequences that the frames are from ± 95 % interval (Student's t)."
    )


def _difference(values: Mapping[int, float], others: Mapping[int, float]) -> str:
    found = paired(values, others)
    assert found is not None, "the sequences of both are the same"
    return f"{found.mean:+.3f} ± {found.half:.3f}"


def _of_sequences(
    frames: Mapping[int, Mapping[str, torch.Tensor]], sequences: Sequence[int]
) -> dict[str, dict[int, float]]:
    """The mean of each score over the frames of each sequence."""
    found: dict[str, dict[int, list[float]]] = {}
    for index, row in frames.items():
        for key, value in row.items():
            found.setdefault(key, {}).setdefault(sequences[index], []).append(value.item())
    return {key: {s: fmean(values) for s, values in of.items()} for key, of in found.items()}


def _floors(found: Scores, names: Mapping[str, Sequence[str]]) -> str:
    """The floors in a sentence."""
    parts = [
        f"{title} of the centre square {found[centre]:.3f}, of the whole image {found[whole]:.3f}."
        for title, (centre, whole) in names.items()
    ]
    return "Floors: " + " ".join(parts)


def main(arguments: Any) -> str:
    """Both tables."""
    command = "python -m benchmarks.attention"
    parts = [section("Attention and objects, on the embedded shapes", command, on_shapes())]
    for data, run in arguments.davis:
        title = f"Attention and objects, on DAVIS, a network of {run.parent.name}"
        parts.append(section(title, f"{command} --davis {data.name} {run.name}", on_davis(data, run)))
    return "\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=methods.RUNS, metavar="FOLDER")
    parser.add_argument("--davis", type=Path, nargs=2, action="append", default=[], metavar=("DATA", "RUN"))
    given = parser.parse_args()
    methods.RUNS = given.runs
    torch.set_num_threads(1)
    print(main(given))

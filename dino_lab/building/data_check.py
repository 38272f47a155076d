"""Whether the images and labels of a data component go with the other parts, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch

from dino_lab.building.components import misfits
from dino_lab.errors import Misfit, UserError, first_line
from dino_lab.protocols import (
    Augment,
    ComparesLabels,
    Data,
    Evaluator,
    GivesLabels,
    GivesReport,
    MayGiveWhole,
    MayLackLabels,
    ability,
)
from dino_lab.types import Images, WholeImages


def check_data(
    data: Data,
    augment: Augment,
    evaluators: Iterable[Evaluator],
    batch_size: int,
    device: torch.device,
    evaluation_data: Data | None = None,
) -> None:
    """A Misfit where there are too few images, or the augmentation or an evaluator cannot take them.

    Evaluators see `evaluation_data`, or `data` where there are none.
    """
    if not data.train_images:
        raise Misfit(("data",), "there is no training split, so nothing can be trained on it")
    if batch_size > data.train_images:
        raise Misfit(
            ("train", "batch_size"),
            f"{batch_size} is more than the {data.train_images} training images there are",
        )
    for name, values in (("mean", data.mean), ("std", data.std)):
        if len(values) != data.channels:
            raise Misfit(("data",), f"{name} has {len(values)} numbers for {data.channels} channels")
    _check_augment(data, augment, device)
    seen = data if evaluation_data is None else evaluation_data
    if seen.channels != data.channels:
        raise Misfit(
            ("evaluate_on",), f"its images have {seen.channels} channels, and those of data {data.channels}"
        )
    for i, evaluator in enumerate(evaluators):
        with misfits("evaluators", i):
            check_labels(evaluator, seen)


def _check_augment(data: Data, augment: Augment, device: torch.device) -> None:
    """A Misfit where the augmentation does not take images like these, tried with empty ones."""
    images: Images = torch.zeros(2, data.channels, data.size, data.size, dtype=torch.uint8, device=device)
    what = f"images of {data.channels} channels and {data.size} x {data.size} px"
    giving = ability(data, MayGiveWhole)
    if giving is not None and giving.whole:
        images = WholeImages.of([image[:, : data.size - i] for i, image in enumerate(images)])
        what = f"images of {data.channels} channels and many sizes (data.crops: full)"
    try:
        augment.forward(images, torch.Generator())
    except Exception as error:  # of any augmentation
        raise Misfit(("augment",), f"refuses {what}: {first_line(error)}") from error


def scorable(evaluators: Mapping[str, Evaluator], data: Data) -> tuple[dict[str, Evaluator], tuple[str, ...]]:
    """The evaluators, by name, that the data can be scored by, and the names of the others.

    Those that compare labels are left out where the images have none.
    """
    if not _lacks_labels(data):
        return dict(evaluators), ()
    kept = {name: one for name, one in evaluators.items() if not _compared(one)}
    return kept, tuple(name for name in evaluators if name not in kept)


def data_lines(data: Data, evaluation_data: Data, left_out: Sequence[str] = ()) -> list[str]:
    """What was found of the data, in lines to print; `left_out` are evaluators that cannot score by it."""
    lines = _found("data", data)
    if evaluation_data is not data:
        lines += _found("evaluate_on", evaluation_data)
    if left_out:
        names = ", ".join(left_out)
        lines.append(
            f"note: without labels there is no {names}; spectrum and invariance need none, and evaluate_on "
            "names images that have labels"
        )
    return lines


def _found(field: str, data: Data) -> list[str]:
    if (reporting := ability(data, GivesReport)) is not None:
        return reporting.found().lines(field)
    counts = f"{data.train_images} training and {data.test_images} test images"
    return [f"{field}: {counts} of {data.classes} classes"]


def check_labelled(teacher: str, data: Data) -> None:
    """A Misfit where a teacher tells the classes of images without labels."""
    if _lacks_labels(data):
        raise Misfit(("teacher",), f"{teacher} tells the classes of images, and these have no labels")


def check_labels(evaluator: Evaluator, data: Data) -> None:
    """A UserError where the labels that an evaluator compares decide its score, whatever the network does.

    Data that do not give their labels are taken at their number of classes.
    """
    compared, name = _compared(evaluator), evaluator.protocol.partition("/")[0]
    if not compared:
        return
    labelled = ability(data, GivesLabels)
    if labelled is None:
        if data.classes < 2:
            raise UserError(_one_class(name, "the"))
        return
    labels = {split: labelled.labels(split) for split in compared}
    if not all(map(len, labels.values())):
        return  # whoever asks for the split says that there is none
    first = compared[0]
    if len(labels[first].unique()) < 2:
        raise UserError(_one_class(name, {"train": "training"}.get(first, first)))
    if len(labels) > 1 and not torch.isin(labels["test"], labels["train"]).any():
        raise UserError(
            f"evaluator {name} compares test with training images, and they have no class in common; leave "
            "it out, or take retrieval with database: test"
        )


def _lacks_labels(data: Data) -> bool:
    may_lack = ability(data, MayLackLabels)
    return may_lack is not None and not may_lack.labelled


def _compared(evaluator: Evaluator) -> tuple[Literal["train", "test"], ...]:
    """The splits whose labels an evaluator compares."""
    comparing = ability(evaluator, ComparesLabels)
    return () if comparing is None else comparing.compares_labels


def _one_class(name: str, which: str) -> str:
    return (
        f"evaluator {name} compares classes, and all {which} images are of one, so that its score would say "
        "nothing; leave it out (spectrum and invariance need no labels)"
    )

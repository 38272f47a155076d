"""The labelled data sets that torchvision knows by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torchvision import datasets

from dino_lab.components.data._labelled import UNLABELLED, FileOptions, FromFiles, Size
from dino_lab.components.data._paths import named_path
from dino_lab.errors import Misfit
from dino_lab.registry import Flat, register

Name = Literal[
    "CIFAR10",
    "CIFAR100",
    "DTD",
    "FGVCAircraft",
    "FashionMNIST",
    "Flowers102",
    "Food101",
    "Imagenette",
    "MNIST",
    "OxfordIIITPet",
    "STL10",
    "SVHN",
]
_FLAG: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})
# How each data set asks for its training and its test split.
_ARGUMENTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "CIFAR10": _FLAG,
    "CIFAR100": _FLAG,
    "DTD": ({"split": "train"}, {"split": "test"}),
    "FGVCAircraft": ({"split": "trainval"}, {"split": "test"}),
    "FashionMNIST": _FLAG,
    "Flowers102": ({"split": "train"}, {"split": "test"}),
    "Food101": ({"split": "train"}, {"split": "test"}),
    "Imagenette": ({"split": "train", "size": "320px"}, {"split": "val", "size": "320px"}),
    "MNIST": _FLAG,
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}),
    "STL10": ({"split": "train"}, {"split": "test"}),
    "SVHN": ({"split": "train"}, {"split": "test"}),
}
# Training splits of data sets that have images without labels, by what `train` may say.
_WITHOUT_LABELS: dict[str, dict[str, dict[str, Any]]] = {
    "STL10": {"unlabelled": {"split": "unlabeled"}, "all": {"split": "train+unlabeled"}}
}


@register("data", "torchvision")
class Torchvision(FromFiles):
    """A data set of torchvision, kept below `path` as torchvision does; `download` fetches what is missing.

    The test split is the published one (Imagenette: val, in its 320 pixel edition); trainval is used to train
    where the authors do so. `train: unlabelled` is for STL10, of which 100,000 images have no labels;
    `evaluate_on` then names those that have them.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        dataset: Annotated[Name, Field(description="torchvision's name of the data set")],
        path: Annotated[str, Field(description="folder that torchvision keeps its data sets in")],
        size: Size,
        train: Annotated[
            Literal["labelled", "unlabelled", "all"],
            Field(description="images to train on: those that have labels, those that have none, or all"),
        ] = "labelled",
        download: Annotated[bool, Field(description="fetch what `path` lacks")] = False,
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        arguments, for_test = _ARGUMENTS[dataset]
        if train != "labelled":
            if dataset not in _WITHOUT_LABELS:
                there = ", ".join(_WITHOUT_LABELS)
                raise Misfit(("data", "train"), f"all images of {dataset} have labels; {there} has others")
            arguments = _WITHOUT_LABELS[dataset][train]
        self.labelled = train == "labelled"
        training, test = (
            _Named(_open(dataset, path, download, its), f"{dataset} in {path}: {split} image", self.labelled)
            for its, split in ((arguments, "training"), (for_test, "test"))
        )
        names = _class_names(training.dataset) if self.labelled else (UNLABELLED,)
        super().__init__(device, training, test, names, size=size, **options.model_dump())


class _Named:
    """One split of a torchvision data set."""

    def __init__(self, dataset: Any, where: str, labelled: bool) -> None:
        self.dataset, self._where = dataset, where
        self.labels = _labels(dataset) if labelled else torch.zeros(len(dataset), dtype=torch.int64)

    def open(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[index][0]
        return image

    def where(self, index: int) -> str:
        return f"{self._where} {index}"

    def name(self, index: int) -> str:
        return str(index)


def _open(name: str, path: str, download: bool, arguments: dict[str, Any]) -> Any:
    root = named_path(path)
    try:
        if download:
            root.mkdir(parents=True, exist_ok=True)
        return getattr(datasets, name)(root=str(root), download=download, **arguments)
    except (RuntimeError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        if download:
            raise Misfit(("data", "download"), f"{name} could not be put into {path} ({reason})") from error
        raise Misfit(
            ("data", "path"),
            f"{name} is not (whole) in {path}; set data.download: true to fetch it ({reason})",
        ) from error


def _labels(dataset: Any) -> torch.Tensor:
    # No common name, and asking for every item would decode all images once more.
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return torch.as_tensor(getattr(dataset, attribute)).long()
    return torch.tensor([label for _, label in dataset._samples])


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    names = getattr(dataset, "classes", None)
    # Imagenette gives every class several names.
    return tuple(name if isinstance(name, str) else name[0] for name in names) if names else None

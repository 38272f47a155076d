"""Every built-in component keeps the contract that plugins are held to, and the kit sees one that does not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.components.backbones.vit import Vit
from dino_lab.components.data._pack import pack
from dino_lab.components.data._shard_writer import write_shards
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.shapes import Shapes
from dino_lab.components.evaluators import invariance
from dino_lab.registry import registry
from dino_lab.registry.discovery import BUILT_IN, sources
from dino_lab.registry.kinds import FOLDERS
from dino_lab.spec.json_schema import json_schema
from dino_lab.testing import check_component, parameters
from dino_lab.testing.component import TRIALS
from dino_lab.types import BackboneOutput, Views

# What a component cannot do without, and what makes it small.
PARAMS: dict[tuple[str, str], dict[str, Any]] = {
    ("data", "shapes"): {"train_images": 24, "test_images": 12},
    ("data", "grey_shapes"): {"train_images": 24, "test_images": 12},
    ("augment", "multicrop"): {"global_size": 32, "local_size": 16, "local_views": 3},
    ("augment", "asymmetric"): {"size": 32},
    ("augment", "single"): {"size": 32},
    ("augment", "triplet"): {"size": 32},
    ("augment", "two_view"): {"size": 32},
    ("augment", "views"): {"preset": "dino_v2", "size": 32, "local_size": 16, "local_views": 2},
    ("operation", "rotate"): {"degrees": 20},
    # No ResNet: of a strided convolution of a map of one pixel, torch 2.14's gradient in bfloat16 on a CPU
    # holds numbers that nobody wrote (seen with MALLOC_PERTURB_=1).
    ("backbone", "timm"): {"model": "test_efficientnet"},
    ("backbone", "vit"): {"width": 24, "depth": 2, "heads": 2, "patch": 8, "drop_path": 0.1},
    ("head", "linear"): {"dim": 10},
    ("head", "mlp"): {"hidden": 24, "dim": 10},
    ("head", "prototypes"): {"hidden": 24, "bottleneck": 8, "dim": 10, "batch_norm": True},
    ("evaluator", "attention_boxes"): {"images": 8},
    ("evaluator", "attention_masks"): {"images": 8},
    ("evaluator", "dense"): {"images": 8, "k": 3},
    ("evaluator", "knn"): {"k": [1, 5]},
    ("evaluator", "copy_detection"): {"top": 5, "generate": {"images": 3}},
    ("evaluator", "fine_tune"): {"epochs": 1, "share": 1.0, "batch_size": 16},
    ("evaluator", "linear_probe"): {"epochs": 2},
    ("evaluator", "low_shot"): {"draws": 2, "iterations": 20},
}
# Kinds of files that a component reads; `files` writes them.
FROM_FILES = {
    ("data", "image_folder"): "folders",
    ("data", "parquet"): ".",
    ("data", "voc"): "voc",
    ("data", "coco"): "coco",
    ("data", "davis"): "davis",
    ("data", "packed"): "pack",
    ("data", "hf"): "folders",
    ("data", "video"): "videos",
    ("data", "shards"): "shards/train-00000.tar",
}
# Of the method that a component is tried in.
SETTINGS = {("augment", "triplet"): ["loss={name: info_nce}"]}
EXCUSED = {("data", "torchvision"): "its data sets are downloads; tests/components tries it with false ones"}

COMPONENTS = [
    pytest.param(kind, source.name, id=f"{kind}-{source.name}")
    for kind in FOLDERS
    for source in sources(kind)
    if source.module.startswith(BUILT_IN)
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A training split of 9 images and a test split of 6, in 3 classes, in each layout."""
    for split, count in (("train", 9), ("test", 6)):
        rows: list[dict[str, bytes]] = []
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (20, 18, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue()})
            folder = tmp_path / "folders" / split / f"class{i % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(buffer.getvalue())
            _add_to_voc(tmp_path / "voc", "val" if split == "test" else split, i, buffer.getvalue())
            _add_to_davis(tmp_path / "davis", "val" if split == "test" else split, i, buffer.getvalue())
        _write_coco(tmp_path / "coco", "val2017" if split == "test" else "train2017", rows)
        table = pa.table({"image": rows, "label": [i % 3 for i in range(count)]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    data = ImageFolder(torch.device("cpu"), path=str(tmp_path / "folders"), size=16)
    pack(data, {}, tmp_path / "pack", lambda done, total: None)
    (tmp_path / "videos").mkdir()
    for i in range(6):
        _write_video(tmp_path / "videos" / f"{i}.mp4")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_shards(data, tmp_path / "shards", tmp_path, lambda done, total: None)
    return tmp_path


def _write_video(file: Path) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 20, 18, "yuv420p"
        for i in range(6):
            pixels = np.random.default_rng(i).integers(0, 255, (18, 20, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _write_coco(root: Path, split: str, images: list[dict[str, bytes]]) -> None:
    square = [5, 4, 15, 4, 15, 12, 5, 12]
    content = {
        "categories": [{"id": i + 1, "name": f"class{i}"} for i in range(3)],
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(len(images))],
        "annotations": [
            {"image_id": i, "category_id": i % 3 + 1, "segmentation": [square], "area": 80}
            for i in range(len(images))
        ],
    }
    for folder in ("annotations", split):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    for i, image in enumerate(images):
        (root / split / f"{i}.png").write_bytes(image["bytes"])


def _add_to_davis(root: Path, split: str, i: int, image: bytes) -> None:
    mask = np.zeros((20, 18), np.uint8)
    mask[4:12, 5:15] = 1
    folders = [root / kind / "480p" / f"{split}video" for kind in ("JPEGImages", "Annotations")]
    for folder in (*folders, root / "ImageSets/2017"):
        folder.mkdir(parents=True, exist_ok=True)
    (folders[0] / f"{i:05}.jpg").write_bytes(image)
    Image.fromarray(mask).save(folders[1] / f"{i:05}.png")
    (root / "ImageSets/2017" / f"{split}.txt").write_text(f"{split}video\n")


def _add_to_voc(root: Path, split: str, i: int, image: bytes) -> None:
    mask = np.zeros((20, 18), np.uint8)
    mask[4:12, 5:15] = 1
    for folder, values in (("SegmentationObject", mask), ("SegmentationClass", mask * (i % 3 + 1))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(root / folder / f"{split}{i}.png")
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages" / f"{split}{i}.jpg").write_bytes(image)
    with (root / "ImageSets" / "Segmentation" / f"{split}.txt").open("a") as file:
        file.write(f"{split}{i}\n")


@pytest.fixture(scope="module")
def schema() -> Any:
    """The JSON schema of what is built in."""
    return json_schema(registry)


@pytest.fixture
def one_schema(monkeypatch: pytest.MonkeyPatch, schema: Any) -> None:
    """The kit makes the schema for every component; of those that are built in it is always the same."""
    monkeypatch.setattr(parameters, "json_schema", lambda _: schema)


@pytest.mark.usefixtures("checked_once", "one_schema")
@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_built_in_keeps_its_contract(
    kind: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (kind, name) in EXCUSED:
        pytest.skip(EXCUSED[kind, name])
    # The picture with a panel for each change takes ten times as long as the rest.
    monkeypatch.setattr(invariance, "CHANGES", dict(islice(invariance.CHANGES.items(), 2)))
    params = PARAMS.get((kind, name), {})
    if (kind, name) in FROM_FILES:
        files = request.getfixturevalue("files")
        path = str(files / FROM_FILES[kind, name])
        params = {"dataset" if name == "hf" else "path": path} | ({} if name == "packed" else {"size": 16})
        if name == "shards":
            params |= {"test": str(files / "shards" / "test-00000.tar"), "label": "cls"}
    check_component(kind, name, params=params, settings=SETTINGS.get((kind, name), []))


@pytest.mark.usefixtures("checked_once", "one_schema")
def test_data_of_whole_images_keep_the_contract(files: Path) -> None:
    params = {"path": str(files / "folders"), "size": 16, "crops": "full"}
    check_component("data", "image_folder", params=params)


def test_every_kind_has_a_trial() -> None:
    assert TRIALS.keys() == FOLDERS.keys()


# ------------------------------------------------------------------------------------------ what it sees


@pytest.fixture
def broken() -> Iterator[Callable[[str, type], str]]:
    """What is said about a class."""
    with registry.scratch():

        def complaint(kind: str, cls: type, **given: Any) -> str:
            registry.register(kind, "mine")(cls)
            with pytest.raises(AssertionError) as caught:
                check_component(kind, "mine", **given)
            text = str(caught.value)
            assert text.startswith(f"{kind} 'mine': ")
            assert "\n" not in text
            return text

        yield complaint


class GoodLoss(nn.Module):
    """Squared distance, mean over positive pairs."""

    negatives = cross_entropy = False

    def __init__(self, dim: int, *, scale: Annotated[float, Field(gt=0)] = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        distance = (student[:, None] - target[None]).square().mean((2, 3)) * self.scale
        positive = (pairs > 0).to(distance.dtype)
        return (distance * positive).sum() / positive.sum()


class WithoutPromise(GoodLoss):
    """It does not say whether it knows negatives."""

    negatives: Any = property(lambda self: self.nowhere)


class WrongPromise(GoodLoss):
    """It says it in words."""

    negatives = "yes"  # type: ignore[assignment]


class PerSample(GoodLoss):
    """It gives one number for each sample."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return student[0].mean(-1)


class NoPairs(GoodLoss):
    """It compares everything with everything."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student, target, torch.ones_like(pairs))


class NoGradient(GoodLoss):
    """It detaches the student."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return (
            super().forward(student.detach() + 0 * student.sum().detach(), target, pairs) + student.sum() * 0
        )


class TwoViewsOnly(GoodLoss):
    """It thinks of two views."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student.view(2, -1, student.shape[-1]), target, pairs)


class InPlace(GoodLoss):
    """It scales its target where it lies."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student, target.mul_(2), pairs)


class NoCrossEntropy(GoodLoss):
    """It says that it is one."""

    cross_entropy = True


class Unseeded(GoodLoss):
    """It adds noise of its own."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student, target, pairs) * float(np.random.default_rng().random())


class Waits(GoodLoss):
    """It asks the device for a number."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student, target, pairs) / max(student.abs().max().item(), 1.0)


class OnTheCpu(GoodLoss):
    """It makes a tensor without saying where."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student + torch.zeros(student.shape[-1]), target, pairs)


class HiddenCount(GoodLoss):
    """It grows with each call, and keeps that to itself."""

    calls = 0

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(student, target, pairs) * self.calls


class Unbounded(GoodLoss):
    """It divides by what may be 0."""

    def __init__(self, dim: int, *, temperature: float = 1.0) -> None:
        super().__init__(dim)
        self.scale = 1.0
        self.temperature = temperature

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student, target, pairs) * torch.tensor(1.0).div(self.temperature).item()


class Anything(GoodLoss):
    """It takes whatever there is."""

    def __init__(self, dim: int, *, options: Any = None) -> None:
        super().__init__(dim)


class Needs(GoodLoss):
    """It cannot do without."""

    def __init__(self, dim: int, *, path: str) -> None:
        super().__init__(dim)


class Learns(GoodLoss):
    """It has a parameter of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student + self.bias, target, pairs)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Learns, "its parameter 'bias' would never be trained: the optimizer gets those of backbone, head"),
        (WithoutPromise, "has no attribute 'negatives'; a loss says negatives"),
        (WrongPromise, "its negatives is 'yes'; it should be of the type bool"),
        (PerSample, "forward has the shape [2]; it should be a float32 tensor []"),
        (NoPairs, "the same whichever pairs it is given; it should compare only where"),
        (TwoViewsOnly, "forward of [3, 2, 6], [2, 2, 6], [3, 2] raises RuntimeError"),
        (InPlace, "changes its inputs in place; it should make new tensors"),
        (NoCrossEntropy, "says cross_entropy = True, but is"),
        (Unseeded, "says something else although the seed is the same"),
        (Waits, "nothing should wait for it, as .item() does"),
        (OnTheCpu, "runs on the CPU only"),
        (
            HiddenCount,
            "another instance with it says something else; what changes should be a registered buffer",
        ),
        (Unbounded, "accepts temperature: 0, and then fails"),
        (Anything, "accepts options: {'no such key': ['nonsense']}; it should refuse that"),
        (Needs, "loss.path: required, but not given; params={...} gives what it cannot do without"),
        (NoGradient, "lets no gradient through; what it returns should depend on"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_a_loss(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("loss", cls)


class MeasuresRows(GoodLoss):
    """It measures each sample."""

    def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        return {"distance": (student[0] - target[0]).square().mean(-1)}


class MeasuresAndMoves(GoodLoss):
    """It counts what it measures."""

    calls: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("calls", torch.zeros(()))

    def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"distance": (student[0] - target[0]).square().mean()}


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (MeasuresRows, "it should be a finite scalar tensor"),
        (MeasuresAndMoves, "measure changes its state; it should leave that to forward"),
    ],
)
def test_what_is_said_of_a_losss_measures(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("loss", cls)


class OtherFeatures(Vit):
    """Its outputs are not those of forward."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, size, width=16, depth=1, heads=2, patch=8)

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return BackboneOutput(self(images) + 1)


class ManyBlocks(OtherFeatures):
    """It gives two blocks although it is asked for one."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return BackboneOutput(self(images), self(images)[:, None].expand(-1, 2, -1))


class NoOutput(OtherFeatures):
    """It gives a dict."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return {"features": self(images)}  # type: ignore[return-value]


class FlatTokens(OtherFeatures):
    """Its tokens are a list."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return BackboneOutput(self(images), None, self.tokens(images).flatten(2))


class RefusesSizes(OtherFeatures):
    """It refuses a size that it takes."""

    def check_size(self, size: int) -> None:
        if size == 16:
            raise ValueError("16 is too small")

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return BackboneOutput(self(images))


class JoinsOtherwise(RefusesSizes):
    """Of several sizes it gives the first one's features alone."""

    def check_size(self, size: int) -> None:
        """Any."""

    def features_of_sizes(self, images: Sequence[Tensor]) -> Tensor:
        return self(images[0])


class OtherConfig(OtherFeatures):
    """Its configuration is that of another model."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        return BackboneOutput(self(images))

    def timm_config(self) -> tuple[str, dict[str, Any]]:
        name, arguments = super().timm_config()
        return name, {**arguments, "depth": 2}


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (OtherFeatures, "outputs has other features than forward; they should be the same"),
        (ManyBlocks, "outputs has blocks [2, 2, 16] of the last block; they should be [2, 1, 16]"),
        (NoOutput, "outputs is of the type dict; it should be a BackboneOutput"),
        (FlatTokens, "tokens has the shape [2, 16, 16]; it should be [2, 16, h, w]"),
        (RefusesSizes, "check_size(16) raises ValueError: 16 is too small; it should refuse no size that forward"),
        (JoinsOtherwise, "features_of_sizes gives other features than forward; they should be the same"),
        (OtherConfig, "timm_config raises RuntimeError"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)  # fmt: skip
def test_what_is_said_of_a_backbones_abilities(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("backbone", cls)


class FewNames(Shapes):
    """It has no name for its last class."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, train_images=9, test_images=6, size=16, classes=3)
        self.class_names = self.class_names[:2]


class InOrder(FewNames):
    """It gives the first images whichever are asked for."""

    def __init__(self, device: torch.device) -> None:
        Shapes.__init__(self, device, train_images=9, test_images=6, size=16, classes=3)

    def annotated(self, split: Any, indices: Tensor) -> Any:
        return super().annotated(split, torch.arange(len(indices)))


class CountedMasks(InOrder):
    """Its masks are numbers."""

    def annotated(self, split: Any, indices: Tensor) -> Any:
        images, labels, masks, *rest = Shapes.annotated(self, split, indices)
        return images, labels, masks.float(), *rest


class BeyondClasses(InOrder):
    """It says a class that there is not."""

    def annotated(self, split: Any, indices: Tensor) -> Any:
        return Shapes.annotated(self, split, indices)

    def segmented(self, split: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        masks = self.annotated(split, indices)[2].to(torch.uint8)
        return masks, masks * 4


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (FewNames, "has 2 class_names; it should have one for each of its 3 classes"),
        (InOrder, "annotated('test', [2, 0]) has other images or labels than test has at these places"),
        (CountedMasks, "annotated gives masks torch.float32 [2, 16, 16] on cpu; they should be torch.bool"),
        (BeyondClasses, "segmented gives a class above 3; they should be labels + 1, 0 or 255"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_datas_abilities(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("data", cls)


class WritesText:
    """Its file is text."""

    every, of, protocol = 1, "teacher", "text/1"

    def __init__(self) -> None: ...
    def forward(self, encode: Any, data: Any) -> dict[str, float]:
        return {"one": 1.0}

    def files(self, encode: Any, data: Any) -> dict[str, bytes]:
        return {"a.txt": "text"}  # type: ignore[dict-item]


class FlatFloors(WritesText):
    """Its floors have no names."""

    def files(self, encode: Any, data: Any) -> dict[str, bytes]:
        return {}

    def floors(self, pixels: Any, data: Any) -> dict[str, dict[str, float]]:
        return {"one": 0.5}  # type: ignore[dict-item]


class NoFloor(FlatFloors):
    """Its floor is no number."""

    def floors(self, pixels: Any, data: Any) -> dict[str, dict[str, float]]:
        return {"one": {"chance": float("nan")}}


@pytest.mark.parametrize(("cls", "word"), [(FlatFloors, "raises AttributeError"), (NoFloor, "nan")])
def test_what_is_said_of_an_evaluators_floors(cls: type, word: str, broken: Callable[..., str]) -> None:
    text = broken("evaluator", cls)
    assert word in text
    assert "floors" in text
    assert "it should return numbers by score and by the floor's name" in text


def test_what_is_said_of_an_evaluators_files(broken: Callable[..., str]) -> None:
    words = "writes 'a.txt': str; files should be bytes by a name without folder"
    assert words in broken("evaluator", WritesText)


class OfTheBatch(GoodLoss):
    """A sum over samples, of which every process has fewer."""

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return super().forward(student, target, pairs) * student.shape[1]


def test_what_is_said_of_a_loss_that_counts_its_samples(broken: Callable[..., str]) -> None:
    text = broken("loss", OfTheBatch)
    assert "on 2 processes a run with it has another loss than on one process at once" in text
    assert "it should be a mean over the samples that it is given" in text


def test_a_good_loss_passes() -> None:
    with registry.scratch():
        registry.register("loss", "mine")(GoodLoss)
        check_component("loss", "mine")


class NoLever(nn.Module):
    """It looks at the crops, which no gradient can change."""

    weight = 0.1

    def __init__(self) -> None:
        super().__init__()

    def forward(self, views: Views, student: Any) -> Tensor:
        return views.crops[0].mean()


def test_what_is_said_of_a_regularizer(broken: Callable[..., str]) -> None:
    assert "lets no gradient through" in broken("regularizer", NoLever)


class GoodTargets(nn.Module):
    """A running mean, subtracted."""

    distribution = False
    mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        target = teacher - self.mean
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(collectives.mean(teacher.mean((0, 1))), 0.5)
        return target


class OfOneProcess(GoodTargets):
    """The mean of this process's samples."""

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        target = teacher - self.mean
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(teacher.mean((0, 1)), 0.5)
        return target


class PlainAttribute(GoodTargets):
    """The mean is no buffer."""

    def __init__(self, dim: int) -> None:
        nn.Module.__init__(self)
        self.centre = torch.zeros(dim)

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        target = teacher - self.centre.to(teacher.device)
        self.centre = teacher.detach().mean((0, 1))
        return target


class KeepsGraph(GoodTargets):
    """The mean remembers where it came from."""

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        self.mean = 0.5 * self.mean + 0.5 * teacher.mean((0, 1))
        return teacher - self.mean


class LearnsInEvaluation(GoodTargets):
    """The mean never rests."""

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        target = teacher - self.mean
        self.mean.lerp_(teacher.detach().mean((0, 1)), 0.5)
        return target


class NoDistribution(GoodTargets):
    """It promises what it does not keep."""

    distribution = True


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (PlainAttribute, "its state_dict does not hold all that it has become"),
        (KeepsGraph, "its state keeps the graph of a step that is over"),
        (LearnsInEvaluation, "its state changes in evaluation mode"),
        (NoDistribution, "says distribution = True, but its rows are none"),
        (OfOneProcess, "on 2 processes a run with it has another "),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_targets(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("targets", cls)


def test_good_targets_pass() -> None:
    with registry.scratch():
        registry.register("targets", "mine")(GoodTargets)
        check_component("targets", "mine")


class Twin(nn.Module):
    """A copy of the student."""

    def __init__(self, student: Any) -> None:
        import copy

        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, views: Views, student: Any, labels: Tensor) -> Tensor:
        return self.network(views.crops[:1]).z

    @torch.no_grad()
    def update(self, student: Any, progress: float, ends_epoch: bool) -> None:
        for mine, its in zip(self.network.parameters(), student.parameters(), strict=True):
            mine.copy_(its)


class Leaks(Twin):
    """The copy learns too."""

    def __init__(self, student: Any) -> None:
        super().__init__(student)
        self.network.requires_grad_(True)

    def forward(self, views: Views, student: Any, labels: Tensor) -> Tensor:
        return self.network(views.crops[:1]).z


class Shares(Twin):
    """The copy is none."""

    def __init__(self, student: Any) -> None:
        nn.Module.__init__(self)
        self.network = student


class Meddles(Twin):
    """It pulls the student along."""

    @torch.no_grad()
    def update(self, student: Any, progress: float, ends_epoch: bool) -> None:
        for its in student.parameters():
            its.mul_(0.9)


class AllViews(Twin):
    """It answers for the small crops too."""

    @torch.no_grad()
    def forward(self, views: Views, student: Any, labels: Tensor) -> Tensor:
        return self.network(views.crops).z


class Contradicts(Twin):
    """With others it is another teacher."""

    def answer(self, output: Any) -> Tensor:
        return 2 * output.z


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Contradicts, "answer says something else than forward"),
        (Leaks, "a gradient can reach its network; requires_grad_(False) should keep it away"),
        (Shares, "its network shares weights with the student"),
        (Meddles, "changes the student in update; it should only read it"),
        (AllViews, "forward has the shape [3, 2, 12]; it should be a float32 tensor [2, 2, 12]"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_a_teacher(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("teacher", cls)


def test_a_good_teacher_passes() -> None:
    with registry.scratch():
        registry.register("teacher", "mine")(Twin)
        check_component("teacher", "mine")


class Crops(nn.Module):
    """The image twice, made to fit."""

    groups = ((2, 32),)
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pairs", 1 - torch.eye(2, dtype=torch.int8))

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        crops = F.interpolate(images.float() / 255, 32)
        return (crops * torch.rand(2, 1, 1, 1, 1, generator=generator)).expand(2, *crops.shape)

    def forward(self, images: Tensor, generator: torch.Generator) -> Views:
        return Views([self.crop(images, generator)], self.pairs)


class OwnDice(Crops):
    """It does not draw from the generator."""

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return super().crop(images, generator) * torch.rand(())


class Remembers(Crops):
    """Each call is darker."""

    light = 1.0

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.light *= 0.9
        return super().crop(images, generator) * self.light


class Bright(Crops):
    """It leaves the range."""

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return super().crop(images, generator) * 255


class Miscounts(Crops):
    """It says three."""

    groups = ((3, 32),)


class DrawsForSome(Crops):
    """Some images of a batch get crops of their own."""

    def forward_share(self, images: Tensor, generator: torch.Generator, batch: int, first: int) -> Views:
        return self.forward(images, generator)

    def crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        crops = F.interpolate(images.float() / 255, 32)
        return crops * torch.rand(2, len(crops), 1, 1, 1, generator=generator)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (DrawsForSome, "forward_share gives some images other crops than forward gives them"),
        (OwnDice, "its random numbers should come from the generator that forward is given"),
        (Remembers, "says something else when it is called again; a checkpoint keeps nothing of this kind"),
        (Bright, "they should lie between 0 and 1"),
        (Miscounts, "it should be [[3, 2, 3, 32, 32]]"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_an_augmentation(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("augment", cls)


class Pixels(nn.Module):
    """The mean of each channel, weighted."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.dim = 4
        self.linear = nn.Linear(channels, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.mean((2, 3)))


class NoVariety(Pixels):
    """It takes one size only."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.view(-1, 3, 32, 32))


class Noisy(Pixels):
    """Dropout that never rests."""

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(super().forward(images), training=True)


class Centred(Pixels):
    """Its features depend on the other images."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        return features - features.mean(0)


class OwnDropout(Pixels):
    """Its random numbers are no tensor of images."""

    def forward(self, images: Tensor) -> Tensor:
        features = super().forward(images)
        if not self.training:
            return features
        return features * torch.stack([torch.rand((), device=features.device) for _ in features])[:, None]


class WithDropout(Pixels):
    """Dropout of torch."""

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(super().forward(images), 0.5, self.training)


@pytest.mark.parametrize("cls", [Centred, OwnDropout])
def test_what_is_said_of_a_backbone_that_depends_on_its_share(cls: type, broken: Callable[..., str]) -> None:
    text = broken("backbone", cls)
    assert "with train.accumulate 2 a run with it has another" in text
    assert "features should depend on their image alone" in text


def test_a_backbone_with_dropout_passes() -> None:
    with registry.scratch():
        registry.register("backbone", "mine")(WithDropout)
        check_component("backbone", "mine")


def test_what_is_said_of_a_backbone(broken: Callable[..., str]) -> None:
    text = broken("backbone", NoVariety)
    assert "forward of images [3, 3, 16, 16] raises RuntimeError" in text
    assert "or the crops should have another size (settings=[...])" in text


def test_the_settings_change_the_method_around_a_component() -> None:
    with registry.scratch():
        registry.register("backbone", "mine")(NoVariety)
        check_component("backbone", "mine", settings=["augment={name: two_view, size: 32}"])


def test_evaluation_mode_is_quiet(broken: Callable[..., str]) -> None:
    assert "says something else to the same images in evaluation mode" in broken("backbone", Noisy)


class Chance:
    """A score that is drawn."""

    every, of, protocol = 1, "teacher", "chance/1"

    def __init__(self) -> None: ...
    def forward(self, encode: Any, data: Any) -> dict[str, float]:
        return {"chance": torch.rand(()).item()}


class Silent(Chance):
    """No score at all."""

    def forward(self, encode: Any, data: Any) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Chance, "its random numbers should come from a generator of its own with a fixed seed"),
        (Silent, "forward returns {}; it should be a dict of at least one score by name"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_an_evaluator(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("evaluator", cls)


class FewImages:
    """Six images in two classes."""

    classes, size, channels, train_images, test_images = 2, 32, 3, 6, 4
    mean = std = (0.5, 0.5, 0.5)

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
        self.labels = (torch.arange(6) % 2).to(device)

    def order(self, seed: int, epoch: int) -> Tensor:
        return torch.randperm(6, generator=torch.Generator().manual_seed(seed * 1000 + epoch))

    def train(self, batch_size: int, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        steps = 6 // batch_size
        while True:
            epoch, step = divmod(start, steps)
            rows = self.order(seed, epoch)[step * batch_size :][:batch_size]
            yield self.images[rows], self.labels[rows]
            start += 1

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images[:4].split(batch_size), self.labels[:4].split(batch_size), strict=True)

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


class FromTheStart(FewImages):
    """It always begins anew."""

    def train(self, batch_size: int, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        return super().train(batch_size, seed, 0)


class Repeats(FewImages):
    """It draws with replacement."""

    def order(self, seed: int, epoch: int) -> Tensor:
        return torch.zeros(6, dtype=torch.int64)


class HalfATest(FewImages):
    """It says more images than it gives."""

    test_images = 5


class OtherShare(FewImages):
    """Of a batch it gives the first images."""

    def train_share(
        self, batch_size: int, seed: int, start: int, images: slice
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self.train(images.stop - images.start, seed, start)


class Floats(FewImages):
    """Its images are no bytes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.images = self.images / 255


class SharedByChance(FewImages):
    """It draws other images for every run, and says that runs may share them."""

    resident = True

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8).to(device)

    def to(self, device: torch.device) -> SharedByChance:
        return self


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (FromTheStart, "does not begin with the third batch"),
        (SharedByChance, "its images should depend on its parameters alone"),
        (Repeats, "an epoch of train has other labels than bank"),
        (OtherShare, "train_share(3, 0, 0, slice(1, 3)) gives other images"),
        (HalfATest, "test gives 4 images; it should give each of the 5 once"),
        (Floats, "gives images torch.float32 [2, 3, 32, 32] on cpu; they should be uint8"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_said_of_data(cls: type, words: str, broken: Callable[..., str]) -> None:
    assert words in broken("data", cls)


def test_good_data_pass() -> None:
    with registry.scratch():
        registry.register("data", "mine")(FewImages)
        check_component("data", "mine")


def test_the_contract_comes_first() -> None:
    with pytest.raises(AssertionError, match=r"no loss is called 'mze'; did you mean 'mse'\?"):
        check_component("loss", "mze")
    with pytest.raises(AssertionError, match=r"no kind is called 'losses' \(there are: data, "):
        check_component("losses", "mse")

"""One network by itself, without a run: weights in a file, a model of timm, a backbone component by name."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino_lab.building.components import misfits
from dino_lab.building.first_weights import channels_of
from dino_lab.errors import Misfit, UserError, first_line
from dino_lab.kernels.linear import use_faster_linear
from dino_lab.network import Network
from dino_lab.protocols import ChecksSize, Data, ability
from dino_lab.registry import Params, Registry
from dino_lab.runs.files import SPEC
from dino_lab.spec.literal import inline
from dino_lab.weights.architecture import SIZE, architecture
from dino_lab.weights.file import IN_FOLDER, TIMM, Content, is_run, read_weights
from dino_lab.weights.fit import fit, load
from dino_lab.weights.layout import Of, holds_both
from dino_lab.weights.names import named

PLUGIN = "plugin:"  # how a backbone component is written where a path could stand
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of its pixels
PREPROCESSOR = "preprocessor_config.json"  # in folders of Hugging Face


@dataclass(frozen=True)
class Source:
    """A network as it lies somewhere."""

    target: str  # as it was asked for
    backbone: dict[str, Any]  # as a spec has it
    channels: int | None  # of its images; None: of any
    size: int  # of the images that it is shown
    largest: int  # size of the images that it was made for
    mean: tuple[float, ...] | None  # None: those of the images
    std: tuple[float, ...] | None
    content: Content | None = None  # weights that are put in; None: those that `backbone` says, or first ones
    of: Of | None = None  # which of two networks in the file
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opened:
    """The network, and lines about how its weights came to it."""

    network: Network
    notes: tuple[str, ...]


def is_single(target: str) -> bool:
    """Whether a target is one network by itself, not the folder or checkpoint of a run."""
    if target.startswith((TIMM, PLUGIN)):
        return True
    path = Path(target)
    if path.is_dir():
        in_run = is_run(path) or (path / SPEC).exists()
        return not in_run and any((path / name).is_file() for name in IN_FOLDER)
    return path.is_file() and not is_run(path)


def check_target(target: str) -> None:
    """A UserError where a target is neither a network by itself nor a folder, which may be that of a run."""
    if not is_single(target) and not Path(target).is_dir() and not is_run(Path(target)):
        raise UserError(
            f"{target}: no run, and no file or folder of weights; a model of timm is written as "
            f"{TIMM}MODEL, a backbone component as {PLUGIN}NAME"
        )


def has_two(target: str) -> bool:
    """Whether a file has a student and a teacher to choose from."""
    return not target.startswith((TIMM, PLUGIN)) and holds_both(read_weights(Path(target)))


def find_single(
    target: str,
    registry: Registry,
    *,
    backbone: Params | None = None,
    size: int | None = None,
    of: Of | None = None,
    untrained: bool = False,
) -> Source:
    """What a target names: `timm:MODEL`, `plugin:NAME`, a file of weights or a folder with one.

    `backbone` is what weights belong to, or what `plugin:NAME` is told; else weights say it by themselves.
    `size` is that of the images it is shown, in pixels.
    """
    if target.startswith(TIMM):
        if backbone is not None:
            raise Misfit(("backbone",), f"{target} names a backbone itself; leave it out")
        return _of_timm(target, size, untrained)
    given = None if backbone is None else backbone.model_dump(mode="json", serialize_as_any=True)
    if target.startswith(PLUGIN):
        name = target.removeprefix(PLUGIN)
        registry.find("backbone", name)
        if given is not None and given["name"] != name:
            raise Misfit(("backbone", "name"), f"is {given['name']!r}, and {target} is asked for")
        size = size or SIZE
        return Source(target, given or {"name": name}, None, size, size, None, None)
    return _of_file(Path(target), given, size, of, untrained)


def _of_timm(target: str, size: int | None, untrained: bool) -> Source:
    """A model of timm, shown images in the size and with the normalisation of its weights."""
    import timm

    model = target.removeprefix(TIMM)
    given = {"name": "timm", "model": model, "pretrained": not untrained}
    config = timm.get_pretrained_cfg(model, allow_unregistered=False) if timm.is_model(model) else None
    channels, its_size, _ = config.input_size if config else (3, SIZE, SIZE)
    mean, std = (config.mean, config.std) if config else ((0.5,) * 3, (0.5,) * 3)
    return Source(target, given, channels, size or its_size, size or its_size, mean, std)


def _of_file(
    path: Path, given: dict[str, Any] | None, size: int | None, of: Of | None, untrained: bool
) -> Source:
    content = read_weights(path)
    weights = None if untrained else content
    target = str(path)
    if given is None and "backbone" in content.metadata:
        found = _described(content)
        # Weights come from the file, so none are downloaded.
        its = {key: False if key == "pretrained" else value for key, value in found["backbone"].items()}
        mean, std = found["mean"], found["std"]
        shown = size or found["size"]
        return Source(target, its, len(mean), shown, found["largest"], mean, std, weights)
    if given is not None:
        channels = channels_of(content)
        mean, std, notes = _normalisation(path, content, channels)
        shown = size or SIZE
        return Source(target, given, channels, shown, shown, mean, std, weights, of, notes)
    return _by_shapes(path, content, size, of, weights)


def _described(content: Content) -> dict[str, Any]:
    """What an export of this package says of its backbone; a UserError where a part of that is missing."""
    try:
        said = {
            key: json.loads(content.metadata[key]) for key in ("backbone", "size", "largest", "mean", "std")
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{content.source}: does not say which backbone it is of ({error})") from error
    if not isinstance(said["backbone"], dict) or not isinstance(said["backbone"].get("name"), str):
        raise UserError(f"{content.source}: names no backbone component")
    if any(type(said[key]) is not int or said[key] < 1 for key in ("size", "largest")):
        raise UserError(f"{content.source}: says sizes that are none ({said['size']}, {said['largest']})")
    if (found := _statistics(said, ("mean", "std"))) is None:
        raise UserError(f"{content.source}: says a normalisation that is none (mean and std)")
    return said | {"mean": found[0], "std": found[1]}


def _statistics(said: Any, keys: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of each channel; None where that is not what is said."""
    try:
        mean, std = (tuple(float(value) for value in said[key]) for key in keys)
    except (KeyError, TypeError, ValueError):
        return None
    return (mean, std) if len(mean) == len(std) and min(std, default=0) > 0 else None


def _by_shapes(
    path: Path, content: Content, size: int | None, of: Of | None, weights: Content | None
) -> Source:
    """A file whose shapes say what the backbone is."""
    found = named(content, of)
    its = architecture(found)
    mean, std, notes = _normalisation(path, content, its.channels)
    shown, patch = size or its.size, its.backbone.get("arguments", {}).get("patch_size")
    if "pos_embed" in found.tensors and shown != its.size and patch:
        sides = [f"{pixels // patch} x {pixels // patch}" for pixels in (its.size, shown)]
        notes = (*notes, f"position embeddings of {sides[0]} patches are interpolated to {sides[1]}")
    notes = (f"weights of backbone: {inline(its.backbone)}", *notes)
    return Source(str(path), its.backbone, its.channels, shown, its.size, mean, std, weights, of, notes)


def _normalisation(
    path: Path, content: Content, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Mean and standard deviation of pixels in 0..1, and a line where the weights do not say them."""
    said: Any = content.config.get("pretrained_cfg", {})
    keys = ("mean", "std")
    if (path / PREPROCESSOR).is_file():
        keys = ("image_mean", "image_std")
        try:
            said = json.loads((path / PREPROCESSOR).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path / PREPROCESSOR}: cannot be read ({first_line(error)})") from None
    found = _statistics(said, keys)
    if found is not None and len(found[0]) == channels:
        return *found, ()
    mean, std = IMAGENET if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    whose = "ImageNet" if channels == 3 else "0.5 and 0.5"
    return mean, std, (f"images are normalised by mean and deviation of {whose}: the weights do not say how",)


def open_single(
    source: Source, registry: Registry, device: torch.device, images: Data | None = None
) -> Opened:
    """Build the network and put the weights in.

    Channels and normalisation are those of `images` where the source says none of its own.
    """
    torch.manual_seed(0)
    channels = source.channels or (images.channels if images is not None else 3)
    mean, std = (images.mean, images.std) if images is not None else IMAGENET
    backbone, notes = _backbone(source, registry, channels)
    network = Network(backbone, nn.Identity(), mean=source.mean or mean, std=source.std or std).to(device)
    use_faster_linear(network, device)
    check_size(network, source.size)
    return Opened(network, (*source.notes, *notes))


def check_size(network: Network, size: int) -> None:
    """A Misfit where the backbone cannot be shown images of so many pixels."""
    if (checking := ability(network.backbone, ChecksSize)) is not None:
        with misfits("size"):
            checking.check_size(size)


def _backbone(source: Source, registry: Registry, channels: int) -> tuple[Any, tuple[str, ...]]:
    if source.content is None:
        return _built(source, registry, channels), ()
    with torch.device("meta"):  # a file may name a backbone that is larger than any memory
        fit(source.content, _built(source, registry, channels), source.of)
    backbone = _built(source, registry, channels)
    fitted = fit(source.content, backbone, source.of)
    load(backbone, fitted.state)
    return backbone, fitted.lines


def _built(source: Source, registry: Registry, channels: int) -> Any:
    params = registry.find("backbone", source.backbone["name"]).params
    try:
        parsed = params.model_validate_json(json.dumps(source.backbone), strict=True)
        with _silent("huggingface_hub"):  # it logs every try of a download; the last one is said below
            return registry.build("backbone", parsed, channels, source.largest)
    except UserError as error:
        if not source.target.startswith(TIMM):
            raise UserError(f"{source.target}: {error}") from error
        reason = str(error).rpartition("; ")[0]
        hint = "--untrained scores it with its first weights"
        raise UserError(f"{source.target}: {reason}; {hint}") from error
    except (
        ValueError,
        OverflowError,
        RuntimeError,
    ) as error:  # the last two of sizes that torch cannot count
        raise UserError(f"{source.target}: {first_line(error)}") from error


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Errors only, of the logger of that name and those below it."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

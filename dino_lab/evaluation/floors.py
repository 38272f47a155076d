"""What scores are without learning: chance, raw pixels, the centre square; computed once for a data set."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import Split
from dino_lab.evaluation.scoring import naming
from dino_lab.network import Network
from dino_lab.protocols import Data, Evaluator, GivesFloors, ability
from dino_lab.registry import Params
from dino_lab.runs.data_record import data_record
from dino_lab.runs.files import replace_file

FOLDER = "_floors"  # beside the runs; no spec may have this name
VERSION = 1  # of what is computed here
SIDES = (32, 16, 8, 4, 2)  # pixels of a side to which larger images are reduced
MOST_NUMBERS = 2e8  # of all training images together: those of CIFAR-10 are 1.5e8
MOST_PRODUCTS = 2e12  # of all test images with all training images, by their numbers: CIFAR-10, 1.5e12
LOOKED_AT = 16  # images of each split, whose content tells data apart that are called the same

Floors = dict[str, dict[str, float]]


class PixelEncoder(Encoder):
    """Pixels in 0..1 as features: [B, C, H, W] to [B, C * size * size].

    Those of a split are less the mean training image.
    """

    def split(self, data: Any, name: Literal["bank", "test"]) -> Split:
        """Labels and features, centred."""
        return self.once(("centred", name), lambda: self._centred(data, name))

    def _centred(self, data: Any, name: Literal["bank", "test"]) -> Split:
        middle: Tensor = self.once(
            "middle", lambda: super(PixelEncoder, self).split(data, "bank").features.mean(0)
        )
        found = super().split(data, name)
        found.features.sub_(middle)  # in place: all images of a data set are large
        return found


def pixel_encoder(data: Data) -> PixelEncoder:
    """Pixels of images of at most 32 pixels a side, and of fewer where there are many images."""
    network = Network(nn.Flatten(), nn.Identity()).to(next(data.test(1))[0].device)
    return PixelEncoder(network, pixel_side(data), nullcontext)


def pixel_side(data: Data) -> int:
    """Pixels of a side at which raw pixels of these images are compared."""
    return side_for(data.train_images, data.test_images, data.channels, data.size)


def side_for(train_images: int, test_images: int, channels: int, size: int) -> int:
    """The same by their numbers."""
    for side in (min(size, most) for most in SIDES):
        numbers = train_images * channels * side**2
        if numbers <= MOST_NUMBERS and numbers * test_images <= MOST_PRODUCTS:
            return side
    return 1


def floors_protocol(side: int) -> str:
    """Everything that floors depend on beside the evaluators' protocols, in one line."""
    return (
        f"floors/{VERSION}: chance is the better of even odds and the most frequent class; raw pixels are "
        f"those of {side} x {side} px, of at most 16 x 16 for classifiers that are trained, less the mean "
        "training image, as features of the same evaluator"
    )


def floors_of(
    evaluators: Sequence[tuple[str, Evaluator]], data: Data, params: Params, cache: Path | None
) -> Floors:
    """The floors of scores, by their whole names, as far as evaluators give them.

    `params` are those of the data. What was computed before is read from the folder `cache`, and what is
    computed now is left there; one process at a time computes, so that others that begin with it wait.
    """
    asked = {name: giving for name, one in evaluators if (giving := ability(one, GivesFloors)) is not None}
    if not asked:
        return {}
    if cache is None:
        encoder = pixel_encoder(data)
        found = {name: _floors(name, one, encoder, data) for name, one in asked.items()}
    else:
        found = _kept(asked, data, params, cache)
    return {f"{name}.{score}": floors for name in asked for score, floors in found[name].items()}


def _kept(asked: Mapping[str, GivesFloors], data: Data, params: Params, cache: Path) -> dict[str, Floors]:
    keys = _keys(asked, data, params)
    found = {name: kept for name, key in keys.items() if (kept := _read(cache, key)) is not None}
    if found.keys() == asked.keys():
        return found
    with _alone(cache):
        encoder = pixel_encoder(data)
        for name in asked.keys() - found.keys():
            kept = _read(cache, keys[name])  # another process may have been faster
            found[name] = _floors(name, asked[name], encoder, data) if kept is None else kept
            if kept is None:
                _write(cache, keys[name], found[name])
    return found


def _floors(name: str, evaluator: GivesFloors, pixels: Encoder, data: Data) -> Floors:
    with naming(name):
        return evaluator.floors(pixels, data)


def _keys(asked: Mapping[str, GivesFloors], data: Data, params: Params) -> dict[str, dict[str, Any]]:
    """What decides the floors of each evaluator: its protocol, and the data by files and first images."""
    content = hashlib.sha256()
    for batches in (data.bank(LOOKED_AT), data.test(LOOKED_AT)):
        for part in next(batches, ()):
            content.update(part.cpu().contiguous().numpy().tobytes())
    common = {
        "version": VERSION,
        "side": pixel_side(data),
        "data": params.model_dump(mode="json"),
        "record": data_record(params, data),
        "images": content.hexdigest(),
    }
    return {name: {**common, "protocol": one.protocol} for name, one in asked.items()}


def _file(cache: Path, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / f"{digest[:16]}.json"


def _read(cache: Path, key: Mapping[str, Any]) -> Floors | None:
    """What was kept, or None where there is nothing, or nothing that can be used."""
    try:
        kept = json.loads(_file(cache, key).read_text(encoding="utf-8"))
        if kept["of"] != key:
            return None
        return {
            score: {name: float(value) for name, value in floors.items()}
            for score, floors in kept["floors"].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _write(cache: Path, key: Mapping[str, Any], floors: Floors) -> None:
    content = json.dumps({"of": key, "floors": floors}, indent=1) + "\n"
    with suppress(OSError):  # they are computed again the next time
        replace_file(_file(cache, key), content.encode())


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Wait for other processes, where the file system has locks."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        file = (cache / "lock").open("w")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield

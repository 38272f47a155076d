"""Shards of small random images, and what a run should see of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_lab.imaging.decode import decode

CPU = torch.device("cpu")
NAMES = ("bird", "cat", "dog")


def encoded(value: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(value).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def sample(i: int) -> dict[str, bytes]:
    members = {"cls": b"%d" % (i % 3), "txt": NAMES[i % 3].encode(), "png": encoded(i)}
    return members | {"json": json.dumps({"of": {"kind": NAMES[i % 3]}, "list": []}).encode()}


def write_tar(file: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for stem, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{stem}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def pixels(i: int, size: int = 10) -> Tensor:
    return torch.from_numpy(decode(Image.open(io.BytesIO(encoded(i))), size))

"""The three ways to make crops give the same ones, and the kernels for a GPU compile; none of it needs a GPU.

Triton's interpreter runs the kernels on the CPU. It has to be chosen before Triton is imported, so the
comparison is made in one process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_resources import needs_triton, resources

from dino_lab.building.seeding import drawing_from
from dino_lab.components.augment._lists import policy
from dino_lab.components.augment._policy import FusedPass, Share
from dino_lab.components.augment.views import ListedViews
from dino_lab.kernels import gpu
from dino_lab.kernels.crops import by_batch, by_crop, by_graph, passes
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.testing.traffic import counted
from dino_lab.types import WholeImages

COLOURS: list[Any] = [{"jitter": {"hue": 0.5, "contrast": 0.9, "p": 0.9}}, {"grey": 0.3}]
ENDS: list[Any] = [{"blur": 0.6}, {"solarize": 0.6}]
CROP: list[Any] = [{"crop": {"scale": [0.2, 1]}}]
LISTS: dict[str, list[Any]] = {
    "all": [*CROP, "flip", {"rotate": {"degrees": 20}}, *COLOURS, *ENDS],
    "without rotation": [*CROP, "flip", *COLOURS, *ENDS],
    "crop": CROP,
}
# Size of the crops, height and width of the images: reduced, enlarged, and both.
SHAPES = {"reduced": (9, 14, 17), "enlarged": (34, 13, 16)}
V, B = 2, 3


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(C: int, H: int, W: int) -> Tensor:
    """Smooth images, whose crops change little where a grey level is rounded."""
    coarse = torch.rand(B, C, 4, 4, generator=seeded(1))
    return torch.nn.functional.interpolate(coarse, (H, W), mode="bilinear").mul(255).byte()


def drawn(ops: list[Any], size: int, C: int, H: int, W: int) -> tuple[SampledParameters, int]:
    """What a list draws for V crops of B images, and the radius of its blur."""
    (fused,) = policy(V, size, ops).passes
    assert isinstance(fused, FusedPass)
    with drawing_from(seeded(3)):
        sampled = fused.sample((V * B, C, H, W), Share(V, B, slice(0, B)))
    return sampled, 8


def whole_images(C: int) -> WholeImages:
    """Images of several sizes, each with its neighbours in the buffer, and one that is left out."""
    every = [images(C, H, W)[i % B] for i, (H, W) in enumerate([(14, 17), (30, 11), (8, 40), (9, 9)])]
    return WholeImages.of(every)[torch.tensor([3, 0, 2])]


def drawn_whole(ops: list[Any], size: int, whole: WholeImages) -> tuple[SampledParameters, int]:
    """As `drawn`, of images of many sizes."""
    (fused,) = policy(V, size, ops).passes
    assert isinstance(fused, FusedPass)
    share = Share(V, B, slice(0, B))
    with drawing_from(seeded(3)):
        return fused.sample((V * B, whole.channels, size, size), share, share.sizes(whole)), 8


def compare() -> None:
    """Of every list, shape and number of channels, the largest difference of Triton's crops from torch's."""
    from dino_lab.kernels.crops import by_program

    for name in ("all", "without rotation"):
        ops = LISTS[name]
        for shape, (size, H, W) in SHAPES.items():
            for C in (3, 1)[: 1 + (shape == "reduced")]:
                sampled, radius = drawn(ops, size, C, H, W)
                pictures = images(C, H, W)
                theirs = by_batch.make(pictures, sampled, size, radius)
                ours = by_program.make(pictures, sampled, size, radius)
                rest = SampledParameters(**{**vars(sampled), "boxes": None})
                flat = theirs.flatten(0, 1)
                changed = by_program.change(flat, rest, radius) - by_batch.change(flat, rest, radius)
                difference = max(float((ours - theirs).abs().max()), float(changed.abs().max()))
                print(f"{difference:.2e} {name}, {shape}, {C} channels")
    for C in (3, 1):
        whole = whole_images(C)
        sampled, radius = drawn_whole(LISTS["without rotation"], 9, whole)
        ours = by_program.make(whole, sampled, 9, radius)
        print(f"{float((ours - by_batch.make(whole, sampled, 9, radius)).abs().max()):.2e} of many sizes")


@needs_triton
def test_triton_makes_torchs_crops() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_crop_kernels import compare; compare()"
    command = [sys.executable, "-W", "error", "-c", code, str(Path(__file__).parent)]
    lines = subprocess.check_output(command, env=environment, text=True).splitlines()
    print("\n".join(lines))
    assert len(lines) == 8
    assert max(float(line.split()[0]) for line in lines) < 5e-6


@pytest.mark.parametrize("C", [3, 1])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ops", LISTS.values(), ids=LISTS)
def test_numba_makes_torchs_crops(ops: list[Any], shape: str, C: int) -> None:
    """Numba cuts in whole grey levels as Pillow does; what is done with the same crops is the same."""
    size, H, W = SHAPES[shape]
    sampled, radius = drawn(ops, size, C, H, W)
    theirs = by_batch.make(images(C, H, W), sampled, size, radius)
    ours = by_crop.make(images(C, H, W), sampled, size, radius)
    assert (ours - theirs).abs().mean() < 0.5 / 255
    assert (ours - theirs).abs().max() < 6 / 255  # a jittered contrast or hue makes a level more
    rest = SampledParameters(**{**vars(sampled), "boxes": None})
    flat, before = theirs.flatten(0, 1), theirs.clone()
    changed = by_crop.change(flat, rest, radius)
    torch.testing.assert_close(changed, by_batch.change(flat, rest, radius), rtol=0, atol=5e-6)
    assert torch.equal(theirs, before)  # crops are not changed where they lie


@pytest.mark.parametrize("C", [3, 1])
def test_numba_makes_torchs_crops_of_many_sizes(C: int) -> None:
    whole = whole_images(C)
    sampled, radius = drawn_whole(LISTS["all"], 9, whole)
    theirs, ours = (way.make(whole, sampled, 9, radius) for way in (by_batch, by_crop))
    assert (ours - theirs).abs().mean() < 0.5 / 255
    assert (ours - theirs).abs().max() < 6 / 255


# Kernel, constants, and the most registers that a thread may need: 65,536 of a multiprocessor over two
# programs of 256 threads.
KERNELS = {
    "make_crops, cut": ("make_crops", {"C": 3, "CUT": True}),
    "make_crops, colours alone": ("make_crops", {"C": 3, "CUT": False}),
    "blur_lines, rows": ("blur_lines", {"C": 3, "ROWS": True}),
    "blur_lines, columns": ("blur_lines", {"C": 3, "ROWS": False}),
}
MOST_REGISTERS = 128


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(name: str, capability: int, tmp_path: Path) -> None:
    from dino_lab.kernels.crops import triton_kernels

    function, constants = KERNELS[name]
    pixels = "*u8" if constants.get("CUT") else "*fp32"
    types = {"images": pixels, "parameters": "*fp32", "crops": "*fp32", "between": "*fp32", "drawn": "*fp32"}
    use = resources(getattr(triton_kernels, function), types, constants, capability, tmp_path)
    assert use.registers <= MOST_REGISTERS
    assert use.spilled <= 16  # Triton 3.6 gives one kernel a frame of 8 bytes
    assert use.shared <= 1024


@needs_triton
def test_dinos_crops_take_few_launches_and_little_traffic() -> None:
    """Two crops of 224 and eight of 96 pixels of 256 images of 256 pixels."""
    augment = ListedViews(preset="dino_v1")
    batch = torch.empty(256, 3, 256, 256, dtype=torch.uint8, device="meta")
    with counted() as traffic:
        views = augment.forward(batch, seeded(0))
    assert [tuple(crops.shape) for crops in views.crops] == [(2, 256, 3, 224, 224), (8, 256, 3, 96, 96)]
    launches, read_and_written = traffic.launches.total(), traffic.bytes.total()
    print(f"launches: {dict(traffic.launches)}, {launches}; {read_and_written / 1e9:.2f} GB")
    assert traffic.launches["make_crops"] == 3
    assert launches <= 20
    assert 1e9 < read_and_written <= 4e9


SHORT: list[Any] = [*CROP, "flip", {"grey": 0.3}, {"solarize": 0.6}]


@pytest.mark.parametrize("ops", [SHORT, pytest.param(LISTS["without rotation"], marks=pytest.mark.slow)])
def test_a_graph_makes_torchs_crops(ops: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    sampled, radius = drawn(ops, 9, 3, 14, 17)
    pictures = images(3, 14, 17)
    ours = by_graph.make(pictures, sampled, 9, radius)
    torch.testing.assert_close(ours, by_batch.make(pictures, sampled, 9, radius), rtol=0, atol=1e-5)
    assert said(caplog) == []


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "dino_lab"]


def test_what_has_no_graph_is_computed_as_it_is_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(x: Tensor, sampled: SampledParameters, radius: int) -> Tensor:
        torch._dynamo.graph_break()
        return x + radius

    monkeypatch.setattr(by_batch, "change", broken)
    for _ in range(2):
        assert by_graph.change(torch.ones(2), SampledParameters(), 3).tolist() == [4, 4]
    (line,) = said(caplog)
    assert line.startswith("crops are made without torch.compile on cpu: ")


def test_accelerators_without_kernels_of_their_own_use_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes._kernels(torch.empty(1, device="meta")) is by_batch
    assert passes._kernels(torch.empty(1)) is by_crop
    monkeypatch.setattr(gpu, "runs_triton", lambda device: False)
    (elsewhere,) = (type("Tensor", (), {"device": torch.device(kind)})() for kind in ["mps"])
    assert passes._kernels(elsewhere) is by_graph

"""The augmentations as a run sees them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dino_lab.building.seeding import drawing_from
from dino_lab.components.augment._lists import policy as listed
from dino_lab.components.augment._policy import Share
from dino_lab.errors import UserError
from dino_lab.kernels.crops import by_batch, by_crop
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.registry import registry

WHOLE = {"global_scale": (1.0, 1.0), "local_scale": (1.0, 1.0)}
PLAIN = {
    **WHOLE,
    "flip_probability": 0,
    "jitter_probability": 0,
    "grey_probability": 0,
    "blur_probability": (0, 0, 0),
    "solarize_probability": (0, 0, 0),
}
SMALL = {"global_size": 12, "local_views": 3, "local_size": 8}
COMPONENTS = {
    "multicrop": {**SMALL},
    "two_view": {"size": 12},
    "single": {"size": 12, "jitter_probability": 0.8, "blur_probability": 0.5, "solarize_probability": 0.2},
    "triplet": {"size": 12},
    "asymmetric": {"size": 12, "local_views": 3, "local_size": 8},
}
NOTHING = {
    "flip_probability": 0,
    "jitter_probability": 0,
    "grey_probability": 0,
    "blur_probability": 0,
    "solarize_probability": 0,
}


def build(name: str, **given: object) -> nn.Module:
    """As a spec does: validated, then built."""
    entry = registry.find("augment", name)
    return registry.build("augment", entry.params.model_validate({"name": name, **given}))


def turned(name: str, degrees: float) -> dict[str, object]:
    """The parameters of COMPONENTS, with rotation too."""
    if name != "asymmetric":
        return {**COMPONENTS[name], "rotation": degrees}
    return COMPONENTS[name] | {part: {"rotation": degrees} for part in ("first", "second", "local")}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(B: int = 5, C: int = 3, H: int = 16, W: int = 16) -> Tensor:
    return torch.randint(0, 256, (B, C, H, W), dtype=torch.uint8, generator=seeded(1))


def smooth(B: int, H: int) -> Tensor:
    """Images whose neighbouring pixels are alike, so that a rounded grey level stays a small difference."""
    coarse = torch.rand(B, 3, 4, 4, generator=seeded(1))
    return torch.nn.functional.interpolate(coarse, (H, H), mode="bilinear").mul(255).byte()


def same(B: int, H: int = 16) -> Tensor:
    """One image, B times."""
    return batch(1, 3, H, H).expand(B, 3, H, H)


def python(code: str, **environment: str) -> bytes:
    """What a new process prints; it must end well."""
    return subprocess.check_output([sys.executable, "-c", code], env=os.environ | environment)


def within(share: float, probability: float, trials: int) -> bool:
    """Less than five standard deviations of the binomial from its mean."""
    return abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / trials)


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize(("C", "H", "W"), [(3, 16, 16), (1, 16, 16), (3, 9, 31), (3, 1, 1), (3, 40, 25)])
def test_crops_have_the_promised_shape_and_range(name: str, C: int, H: int, W: int) -> None:
    augment = build(name, **turned(name, 20))
    views = augment(batch(5, C, H, W), seeded(0))
    assert [tuple(x.shape) for x in views.crops] == [(V, 5, C, s, s) for V, s in augment.groups]
    for crop in views.crops:
        assert crop.dtype == torch.float32
        assert crop.is_contiguous()
        assert not crop.requires_grad
        assert crop.isfinite().all()
        assert crop.min() >= -1e-6
        assert crop.max() <= 1 + 1e-6
    S, T = sum(V for V, _ in augment.groups), augment.groups[0][0]
    assert views.pairs.shape == (S, T)
    assert views.pairs.dtype == torch.int8


@pytest.mark.parametrize("name", COMPONENTS)
def test_crops_can_be_made_again(name: str) -> None:
    augment, images = build(name, **turned(name, 10)), batch()
    torch.manual_seed(1)
    first = augment(images, seeded(7)).crops
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = augment(images, seeded(7)).crops
    assert torch.equal(state, torch.get_rng_state())  # the global generator is not touched
    other = augment(images, seeded(8)).crops
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("name", COMPONENTS)
def test_other_devices_are_told_what_the_cpu_drew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a GPU drew numbers of its own. Here a device without memory stands for it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    augment, one, other = build(name, **turned(name, 10)), seeded(7), seeded(7)
    here = augment(batch(), one).crops
    there = augment(batch().to("meta"), other).crops
    assert torch.equal(one.get_state(), other.get_state())
    assert [crop.shape for crop in there] == [crop.shape for crop in here]
    assert {crop.device.type for crop in there} == {"meta"}


def test_what_was_drawn_goes_to_a_device_whole() -> None:
    (only,) = build("single", **turned("single", 5.0), grey_probability=0.5).policy.passes
    with drawing_from(seeded(0)):
        drawn = only.sample((3, 3, 16, 16), Share(1, 3, slice(0, 3)))
    moved = drawn.to(torch.device("meta"))
    for field in fields(SampledParameters):
        assert getattr(drawn, field.name).device.type == "cpu", field.name
        assert getattr(moved, field.name).device.type == "meta", field.name


def test_pairs() -> None:
    assert build("multicrop", local_views=2, global_views=2).pairs.tolist() == [
        [0, 1],
        [1, 0],
        [1, 1],
        [1, 1],
    ]
    three = build("multicrop", local_views=1, global_views=3)
    assert three.pairs.tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]]
    assert build("two_view").pairs.tolist() == [[0, 1], [1, 0]]
    assert build("single").pairs.tolist() == [[1]]
    assert build("triplet").pairs.tolist() == [[0, 1, -1], [0, 0, 0], [0, 0, 0]]
    assert build("asymmetric").pairs.tolist() == [[0, 1], [1, 0]]
    assert build("asymmetric", local_views=2).pairs.tolist() == [[0, 1], [1, 0], [1, 1], [1, 1]]
    assert build("asymmetric", one_way=True).pairs.tolist() == [[0], [1]]
    assert build("asymmetric", one_way=True, local_views=2).pairs.tolist() == [[0], [1], [1], [1]]
    for name in COMPONENTS:
        assert "pairs" in dict(build(name).named_buffers())


def test_without_local_views_there_is_one_group() -> None:
    augment = build("multicrop", local_views=0, global_size=9)
    assert augment.groups == ((2, 9),)
    assert [x.shape for x in augment(batch(4), seeded(0)).crops] == [(2, 4, 3, 9, 9)]


def test_nothing_drawn_is_the_image() -> None:
    images = batch(3, 3, 16, 16)
    large, small = build("multicrop", **PLAIN | {"global_size": 16, "local_views": 1, "local_size": 16})(
        images, seeded(0)
    ).crops
    for view in (*large, *small):
        torch.testing.assert_close(view, images / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "drawn",
    [
        {"global_scale": (0.3, 1.0), "local_scale": (0.1, 0.3)},
        {"jitter_probability": 1.0},
        {"blur_probability": (1.0, 1.0, 1.0)},
        {"rotation": 30.0},
    ],
)
def test_every_view_of_every_image_is_drawn_by_itself(drawn: dict[str, object]) -> None:
    crops = build("multicrop", **{**PLAIN, **SMALL, **drawn})(same(6), seeded(0)).crops
    for group in crops:
        flat = group.flatten(0, 1).flatten(1)
        assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 1e-4


def changed(views: Tensor, reference: Tensor) -> Tensor:
    """Share of each view's images that differ from the reference, [V]."""
    return ((views - reference).abs().amax(dim=(2, 3, 4)) > 1e-3).float().mean(dim=1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"flip_probability": 0.5}, (0.5, 0.5, 0.5)),
        ({"grey_probability": 0.2}, (0.2, 0.2, 0.2)),
        ({"jitter_probability": 0.8}, (0.8, 0.8, 0.8)),
        ({"blur_probability": (1.0, 0.1, 0.5), "blur_sigma": (1, 2)}, (1.0, 0.1, 0.5)),
        ({"solarize_probability": (0.0, 0.2, 0.0)}, (0.0, 0.2, 0.0)),
        ({"solarize_probability": (0.7, 0.0, 0.4)}, (0.7, 0.0, 0.4)),
    ],
)
def test_probabilities_by_view(given: dict[str, object], expected: tuple[float, float, float]) -> None:
    B = 1500
    sizes = {"global_views": 3, "global_size": 8, "local_views": 2, "local_size": 8}
    images = same(B, 8)
    large, small = build("multicrop", **{**PLAIN, **sizes, **given})(images, seeded(3)).crops
    shares = [*changed(large, images / 255).tolist(), *changed(small, images / 255).tolist()]
    first, other, local = expected
    for share, probability in zip(shares, (first, other, other, local, local), strict=True):
        assert within(share, probability, B), (shares, expected)


def test_strengths_are_the_drawn_range() -> None:
    """Of a flat grey image only brightness is left: its factor is uniform between 0.6 and 1.4."""
    images = torch.full((4000, 3, 2, 2), 100, dtype=torch.uint8)
    view = build("multicrop", **PLAIN | {"global_size": 2, "local_views": 0, "jitter_probability": 1})(
        images, seeded(0)
    ).crops[0]
    factor = view.amax(dim=(2, 3, 4)).flatten() * 255 / 100
    assert 0.6 <= factor.min() < 0.605
    assert 1.395 < factor.max() <= 1.4 + 1e-5
    assert abs(factor.mean() - 1) < 5 * (0.8 / math.sqrt(12)) / math.sqrt(len(factor))


def test_hue_strength_is_the_drawn_range() -> None:
    images = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(4000, 3, 2, 2)
    only = {"brightness": 0, "contrast": 0, "saturation": 0, "jitter_probability": 1, "local_views": 0}
    view = build("multicrop", **PLAIN | only | {"global_size": 2})(images, seeded(0)).crops[0].flatten(0, 1)
    turns = (view[:, 1] - view[:, 2])[:, 0, 0] / 6  # near red: green rises one way, blue the other
    assert -0.1 <= turns.min() < -0.099
    assert 0.099 < turns.max() <= 0.1 + 1e-6
    assert abs(turns.mean()) < 5 * (0.2 / math.sqrt(12)) / math.sqrt(len(turns))


def test_rotation_is_at_most_the_degrees_given() -> None:
    policy = listed(1, 33, [{"crop": {"scale": (1.0, 1.0)}}, {"rotate": {"degrees": 30}}])
    image = torch.zeros(300, 1, 33, 33, dtype=torch.uint8)
    image[:, :, 16, 26:31] = 255  # a bar to the right of the centre
    y, x = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    crop = policy(image, seeded(0))[0, :, 0]
    mass = crop.sum((1, 2))
    angle = torch.rad2deg(torch.atan2(-(crop * y).sum((1, 2)) / mass, (crop * x).sum((1, 2)) / mass))
    assert -31 < angle.min() < -28
    assert 28 < angle.max() < 31
    assert abs(angle.mean()) < 5 * (60 / math.sqrt(12)) / math.sqrt(300)


def test_preset_is_the_defaults() -> None:
    images = batch()
    preset = build("multicrop", preset="dino_v1", **SMALL)(images, seeded(0)).crops
    default = build("multicrop", **SMALL)(images, seeded(0)).crops
    assert all(torch.equal(a, b) for a, b in zip(preset, default, strict=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_scale", (0.3, 1.0)),
        ("hue", 0.2),
        ("rotation", 5.0),
        ("blur_probability", (0.5, 0.5, 0.5)),
        ("flip_probability", 0.0),
    ],
)
def test_preset_refuses_what_contradicts_it(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{key} is .* in preset dino_v1, got "):
        build("multicrop", preset="dino_v1", **{key: value})
    build("multicrop", preset="dino_v1", global_views=3, global_size=32, local_views=0, local_size=16)
    build("multicrop", **{key: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"global_scale": (0.9, 0.4)}, r"low <= high, got \(0.9, 0.4\)"),
        ({"global_scale": (0.0, 0.4)}, r"0 < low <= high <= 1, got \(0, 0.4\)"),
        ({"local_scale": (0.5, 1.4)}, r"0 < low <= high <= 1, got \(0.5, 1.4\)"),
        ({"blur_sigma": (2.0, 0.1)}, "low <= high"),
        ({"blur_sigma": (0.0, 2.0)}, "greater than 0, got 0"),
        ({"global_views": 1}, "greater than or equal to 2"),
        ({"local_views": -1}, "greater than or equal to 0"),
        ({"local_size": 0}, "greater than 0"),
        ({"hue": 0.6}, "less than or equal to 0.5"),
        ({"blur_probability": (0.5, 0.5)}, "blur_probability.2\n  Field required"),
        ({"solarize_probability": (0.5, 1.5, 0)}, "less than or equal to 1"),
        ({"preset": "dino_v9"}, "dino_v1"),
    ],
)
def test_bad_parameters_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build("multicrop", **given)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte()])
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"images must be uint8 \[B, C, H, W\], got \w+ \[\d"):
        build("single", size=8)(images, seeded(0))


def test_autocast_does_not_reach_the_crops() -> None:
    augment, images = build("multicrop", **SMALL), batch()
    plain = augment(images, seeded(0)).crops
    with torch.autocast("cpu", torch.bfloat16):
        cast = augment(images, seeded(0)).crops
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


class Recorder(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way that looks at no value."""
    monkeypatch.setattr(by_crop, "make", by_batch.make)


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("H", [16, 64])
def test_a_gpu_would_never_be_waited_for(name: str, H: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read back, no shape depends on one, and no tensor is made from Python numbers."""
    as_on_a_gpu(monkeypatch)
    augment, images, generator = build(name, **COMPONENTS[name]), batch(5, 3, H, H), seeded(0)
    with Recorder() as recorder:
        augment(images, generator)
    assert {"bmm", "rand", "copysign"} <= recorder.names
    assert not {"_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "equal"} & recorder.names


@pytest.mark.parametrize(("name", "given"), [*COMPONENTS.items(), ("multicrop", {"global_size": 60})])
@pytest.mark.parametrize("H", [16, 64])
@pytest.mark.parametrize("C", [1, 3])
def test_a_gpu_would_give_the_same_crops(
    name: str, given: dict[str, object], H: int, C: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the rounding to whole grey levels when they are cut."""
    augment, images = build(name, **given), smooth(20, H)[:, :C]
    here = augment(images, seeded(0)).crops
    as_on_a_gpu(monkeypatch)
    there = augment(images, seeded(0)).crops
    for a, b in zip(here, there, strict=True):
        assert (a - b).abs().mean() < 0.5 / 255


def test_crops_do_not_depend_on_threads_or_on_how_many_are_made_at_once(
    threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    augment, images = build("multicrop", **turned("multicrop", 10) | {"global_size": 60}), smooth(7, 64)
    monkeypatch.setattr(by_crop, "ALONE", 0)
    crops = []
    for count, cached in ((1, 1), (1, 10**9), (2, 10**9), (3, 3 * 2 * 3 * 60**2)):
        threads(count)
        monkeypatch.setattr(by_crop, "CACHED", cached)
        crops.append(augment(images, seeded(0)).crops)
    for some in crops[1:]:
        assert all(torch.equal(a, b) for a, b in zip(crops[0], some, strict=True))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_numba_is_not_imported_until_crops_are_made_on_the_cpu() -> None:
    code = (
        "import sys, torch; from dino_lab.components.augment.single import Single\n"
        "augment = Single(size=8); assert 'numba' not in sys.modules\n"
        "augment(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.Generator())\n"
        "assert 'numba' in sys.modules"
    )
    python(code)


def test_kernels_are_compiled_where_nothing_can_be_kept() -> None:
    """As in a container that is read-only: no folder takes the compiled code."""
    code = (
        "import torch; from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from dino_lab.kernels.crops import numba_kernels\n"
        "assert type(numba_kernels.cut._cache).__name__ == 'NullCache'"
    )
    python(code)


def test_crops_are_the_same_bits_from_kernels_that_were_kept(tmp_path: Path) -> None:
    """A run must end with the same weights whether it compiled them or found them."""
    code = (
        "import torch; from dino_lab.components.augment.multicrop import MultiCrop\n"
        "images = torch.randint(0, 256, (8, 3, 40, 40), generator=torch.Generator().manual_seed(1)).byte()\n"
        "crops = MultiCrop(global_size=32, local_size=24)(images, torch.Generator().manual_seed(2)).crops\n"
        "print([crop.double().sum().item().hex() for crop in crops])"
    )
    said = [python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert said[0] == said[1]
    assert {file.suffix for file in tmp_path.rglob("*.nb?")} == {".nbi", ".nbc"}


def test_kornia_is_not_imported_to_validate() -> None:
    code = (
        "import sys; from dino_lab.registry import registry\n"
        "for name in registry.names('augment'): registry.find('augment', name)\n"
        "assert 'kornia' not in sys.modules"
    )
    python(code)


def plain_triplet(size: int = 8, scale: tuple[float, float] = (1.0, 1.0)) -> nn.Module:
    return build("triplet", **NOTHING, size=size, scale=scale)


@pytest.mark.parametrize("B", [2, 3, 7])
def test_the_other_patch_is_never_of_the_same_image(B: int) -> None:
    """Whole images, so that each patch tells where it comes from."""
    images = batch(B, 3, 8, 8)
    (crops,) = plain_triplet()(images, seeded(0)).crops
    whole = images / 255
    source = (crops[:, :, None] - whole).abs().amax(dim=(3, 4, 5)).argmin(dim=2)  # [3, B]
    own = torch.arange(B)
    assert torch.equal(source[0], own)
    assert torch.equal(source[1], own)
    assert (source[2] != own).all()
    assert sorted(source[2].tolist()) == own.tolist()  # every image gives one


def test_the_patches_of_a_triplet_are_drawn_by_themselves() -> None:
    (crops,) = plain_triplet(scale=(0.1, 0.3))(same(6), seeded(0)).crops
    flat = crops.flatten(0, 1).flatten(1)
    assert torch.cdist(flat, flat).fill_diagonal_(1).min() > 1e-4


def test_a_triplet_of_one_image_is_refused() -> None:
    with pytest.raises(UserError, match="needs 2 images at once, got 1"):
        plain_triplet()(batch(1), seeded(0))


def asymmetric(**given: object) -> nn.Module:
    """Nothing is drawn but what is given."""
    still = {**NOTHING, "scale": (1.0, 1.0)}
    parts = {part: still | dict(given.pop(part, {})) for part in ("first", "second", "local")}  # type: ignore[call-overload]
    return build("asymmetric", size=8, local_size=8, **parts, **given)


@pytest.mark.parametrize(
    "operation",
    [
        {"flip_probability": 1.0},
        {"jitter_probability": 1.0},
        {"grey_probability": 1.0},
        {"blur_probability": 1.0, "blur_sigma": (1, 2)},
        {"solarize_probability": 1.0},
        {"scale": (0.2, 0.4)},
        {"rotation": 60.0},
    ],
    ids=lambda operation: next(iter(operation)),
)
@pytest.mark.parametrize("part", ["first", "second", "local"])
def test_an_operation_happens_to_the_views_it_is_given_to(part: str, operation: dict[str, object]) -> None:
    images = batch(20, 3, 8, 8)
    for one_way in (False, True):
        views = asymmetric(**{part: operation}, one_way=one_way, local_views=2)(images, seeded(0))
        shares = changed(torch.cat(views.crops), images / 255)
        touched = (shares > 0.8).tolist()
        assert touched == [part == "first", part == "second", part == "local", part == "local"]
        assert (shares[~torch.tensor(touched)] == 0).all()


def test_views_differ_by_default_as_byols_do() -> None:
    first, second = (dict(policy.operations) for policy in build("asymmetric").policies[0])
    assert (first["blur"].probability, second["blur"].probability) == ((1.0,), (0.1,))
    assert "solarize" not in first
    assert second["solarize"].probability == (0.2,)
    # A change of one thing leaves the others as they were.
    _, policy = build("asymmetric", second={"hue": 0.0}).policies[0]
    changed = dict(policy.operations)
    assert changed["jitter"].hue == 0.0
    assert (changed["blur"].probability, changed["solarize"].probability) == ((0.1,), (0.2,))


def test_the_key_comes_alone() -> None:
    images = batch(4)
    augment = build("asymmetric", size=9, one_way=True, local_views=3, local_size=7)
    assert augment.groups == ((1, 9), (1, 9), (3, 7))
    assert [len(group) for group in augment(images, seeded(0)).crops] == [1, 1, 3]
    both = build("asymmetric", size=9, local_views=3, local_size=7)
    assert both.groups == ((2, 9), (3, 7))
    one_way, two_way = (torch.cat(a(images, seeded(0)).crops[:-1]) for a in (augment, both))
    assert torch.equal(one_way, two_way)  # the same crops, compared in other ways


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": {"scale": (0.9, 0.4)}}, "first.scale"),
        ({"second": {"hue": 0.6}}, "second.hue"),
        ({"local": {"blur": 1}}, "local.blur"),
        ({"local_views": -1}, "greater than or equal to 0"),
    ],
)
def test_bad_parameters_of_views_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build("asymmetric", **given)

"""Any augmentation of Kornia's as an operation, and ours as Kornia's."""

from __future__ import annotations

import warnings
from typing import Any

import kornia.augmentation as K
import pytest
import torch
from torch import Tensor

from dino_lab.cli.components import show
from dino_lab.components.augment._lists import policy
from dino_lab.components.operations import _kornia
from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.registry.operations import operation

# What Kornia asks for, and what makes it do something to every crop. All others do with `p: 1`.
PARAMETERS: dict[str, dict[str, Any]] = {
    "CenterCrop": {"size": 9},
    "ColorJiggle": {"brightness": 0.5, "hue": 0.2},
    "ColorJitter": {"brightness": [0.5, 1.5], "contrast": 0.3},
    "LongestMaxSize": {"max_size": 16},
    "PadTo": {"size": [16, 16]},
    "RandomAffine": {"degrees": 30},
    "RandomBrightness": {"brightness": [0.5, 0.9]},
    "RandomContrast": {"contrast": [0.5, 0.9]},
    "RandomClahe": {"grid_size": [2, 2]},
    "RandomCrop": {"size": [9, 9]},
    "RandomElasticTransform": {"kernel_size": [5, 5], "sigma": [2.0, 2.0], "alpha": [9.0, 9.0]},
    "RandomFisheye": {"center_x": [-0.3, 0.3], "center_y": [-0.3, 0.3], "gamma": [0.9, 1.1]},
    "RandomGamma": {"gamma": [0.5, 0.9]},
    "RandomGaussianBlur": {"kernel_size": [5, 5], "sigma": [0.5, 1.5]},
    "RandomGaussianNoise": {"std": 0.1},
    "RandomHue": {"hue": [0.2, 0.3]},
    "RandomMotionBlur": {"kernel_size": 5, "angle": 30.0, "direction": 0.5},
    "RandomRain": {"number_of_drops": [20, 30], "drop_height": [2, 4], "drop_width": [-2, 2]},
    "RandomResizedCrop": {"size": [9, 9]},
    "RandomRotation": {"degrees": 30},
    "RandomRotation90": {"times": [1, 3]},
    "RandomSaturation": {"saturation": [0.2, 0.5]},
    "RandomShear": {"shear": 20},
    "RandomSnow": {"snow_coefficient": [0.5, 0.5], "brightness": [2.0, 2.0]},
    "RandomTranslate": {"translate_x": [0.2, 0.3]},
    "Resize": {"size": 9},
    "SmallestMaxSize": {"max_size": 9},
}
PIXELS = 16
# Kornia draws one order of these, or one number, for a whole batch.
UNCHANGED = ("LongestMaxSize", "PadTo")  # at this size


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(B: int) -> Tensor:
    """Uint8 [B, 3, 24, 24], one image B times."""
    coarse = torch.rand(1, 3, 6, 6, generator=seeded(1))
    one = torch.nn.functional.interpolate(coarse, (24, 24), mode="bilinear").mul(200).byte()
    return one.expand(B, 3, 24, 24)


def size_of(name: str) -> int:
    """The side of the crops after the operation."""
    shrinks = ("CenterCrop", "RandomCrop", "RandomResizedCrop", "Resize", "SmallestMaxSize")
    return 9 if name in shrinks else PIXELS


@pytest.mark.parametrize("name", _kornia.names())
def test_every_augmentation_of_an_image_is_an_operation(name: str) -> None:
    """Its parameters are read, its crops are in 0..1, change, and can be made again; nothing else is drawn."""
    accepted = registry.find("operation", f"kornia.{name}").params.model_fields
    keys = {**({"p": 1.0} if "p" in accepted else {}), **PARAMETERS.get(name, {})}
    ops = [{"name": "crop", "scale": [1.0, 1.0]}, {f"kornia.{name}": keys}]
    # One that changes the size is given whole images.
    listed = policy(2, size_of(name), ops if size_of(name) == PIXELS else ops[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Kornia, about its own future
        state, generator = torch.get_rng_state(), seeded(5)
        crops = listed(images(3), generator)
        assert torch.equal(state, torch.get_rng_state())
        again = listed(images(3), seeded(5))
        plain = policy(2, PIXELS, ops[:1])(images(3), seeded(5))
        other = listed(images(3), seeded(6))
        part = listed(images(1), seeded(5), batch=3, first=2)
    assert crops.shape == (2, 3, 3, size_of(name), size_of(name))
    assert crops.dtype == torch.float32
    assert crops.isfinite().all()
    assert 0 <= crops.min() <= crops.max() <= 1
    assert torch.equal(crops, again)
    torch.testing.assert_close(part[:, 0], crops[:, 2], rtol=0, atol=1e-5)
    if name in UNCHANGED:
        assert torch.equal(crops, plain)
    elif size_of(name) == PIXELS:
        assert not torch.equal(crops, plain)
    drawn = registry.build("operation", operation(ops[1]), PIXELS).forward_parameters((2, 3, PIXELS, PIXELS))
    if set(drawn) - {"batch_prob", "forward_input_shape", "src", "dst", "input_size", "output_size"}:
        flat = crops.flatten(0, 1).flatten(1)
        varies = not torch.equal(crops, other) or torch.pdist(flat).max() > 0
        assert varies or name in CONSTANT, "another seed and another crop draw other numbers"


# Without ranges, what they do is the same for every crop.
CONSTANT = (
    *("RandomClahe", "RandomGaussianNoise", "RandomInvert", "RandomPosterize", "RandomSharpness"),
    *("RandomSnow", "RandomSolarize", "RandomJPEG", "RandomMotionBlur"),
)


def test_the_others_are_refused_with_a_reason() -> None:
    every = [n for n in vars(K) if isinstance(getattr(K, n), type)]
    refused = set(every) - set(_kornia.names())
    for name in refused:
        with pytest.raises(UserError, match=f"^operation 'kornia.{name}': (it|crops|the network)"):
            registry.find("operation", f"kornia.{name}")
    # Those that are no operations: bases, containers, of volumes, and those that mix images.
    ours = {n for n in refused if issubclass(getattr(K, n), K.AugmentationBase2D) and "Base" not in n}
    assert ours == {"Normalize", "Denormalize", "RandomDissolving"}


def test_the_signature_is_the_schema() -> None:
    params = registry.find("operation", "kornia.RandomErasing").params
    assert list(params.model_fields) == ["name", "scale", "ratio", "value", "p"]
    assert params(name="kornia.RandomErasing").model_dump() == {
        **{"name": "kornia.RandomErasing", "scale": (0.02, 0.33), "ratio": (0.3, 3.3)},
        **{"value": 0.0, "p": 0.5},
    }
    affine = registry.find("operation", "kornia.RandomAffine").params
    assert affine.model_fields["resample"].default == "bilinear"
    with pytest.raises(ValueError, match="'nearest', 'bilinear' or 'bicubic'"):
        affine.model_validate({"name": "kornia.RandomAffine", "degrees": 3, "resample": "sharp"})
    for name in _kornia.names():  # a default written out is one that may be written
        model = registry.find("operation", f"kornia.{name}").params
        given = {"name": f"kornia.{name}", **PARAMETERS.get(name, {})}
        whole = model.model_validate(given)
        assert model.model_validate_json(whole.model_dump_json(), strict=True) == whole


def test_erasing_happens_to_as_many_crops_as_it_should() -> None:
    ops = [{"crop": {"scale": [1.0, 1.0]}}, {"kornia.RandomErasing": {"p": 0.3, "value": 1.0}}]
    crops = policy(4, 8, ops)(images(500), seeded(0))
    share = (crops == 1).flatten(2).any(2).float().mean()
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5


@pytest.mark.parametrize("name", ["crop", "flip", "rotate", "jitter", "grey", "blur", "solarize"])
def test_ours_go_into_a_sequence_of_kornias(name: str) -> None:
    """With other augmentations of Kornia's, replayed by their parameters, and with points that move along."""
    keys: dict[str, Any] = {"rotate": {"degrees": 40}, "crop": {"scale": [0.3, 0.9]}}.get(name, {})
    ours = registry.build("operation", operation({name: keys}), PIXELS)
    sequence = K.AugmentationSequential(ours, K.RandomInvert(p=0.0), data_keys=["input", "keypoints"])
    x = (images(8) / 255)[..., :PIXELS, :PIXELS]
    points = torch.rand(8, 5, 2, generator=seeded(2)) * PIXELS
    torch.manual_seed(0)
    crops, moved = sequence(x, points)
    again, _ = sequence(x, points, params=sequence._params)
    assert torch.equal(crops, again)
    assert crops.shape == x.shape
    if name not in ("crop", "flip", "rotate"):
        assert torch.equal(moved, points)


@pytest.mark.parametrize(
    ("name", "keys"), [("crop", {"scale": [0.4, 0.9]}), ("flip", 1.0), ("rotate", {"degrees": 40})]
)
def test_points_move_with_the_pixels(name: str, keys: Any) -> None:
    """A bright spot stays under its point."""
    ours = registry.build("operation", operation({name: keys}), 33)
    sequence = K.AugmentationSequential(ours, data_keys=["input", "keypoints"])
    y, x = torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij")
    spot = torch.exp(-((x - 19) ** 2 + (y - 14) ** 2) / 8).expand(20, 1, 33, 33)
    torch.manual_seed(0)
    crops, points = sequence(spot, torch.tensor([[[19.0, 14.0]]]).expand(20, 1, 2))
    inside = ((points > 4) & (points < 28)).all(2)[:, 0]
    assert inside.sum() > 5
    mass = crops[:, 0] / crops[:, 0].sum((1, 2), keepdim=True)
    found = torch.stack([(mass * x).sum((1, 2)), (mass * y).sum((1, 2))], 1)
    torch.testing.assert_close(found[inside], points[inside, 0], rtol=0, atol=0.3)


def test_an_operation_of_kornias_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What it is, where it comes from, and the keys that its constructor has."""
    show("kornia.RandomErasing")
    said = capsys.readouterr().out
    assert "operation: kornia.RandomErasing\nmade of kornia\n" in said
    assert "erasing.py:" in said
    assert "[0.02, 0.33]" in said
    with pytest.raises(UserError, match=r"has no 'RandomErasin'; did you mean 'RandomErasing'\?"):
        show("operation", "kornia.RandomErasin")

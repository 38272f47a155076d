"""Views as lists of operations: read from a spec, the same as the short names, compared as asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor, nn

from dino_lab.components.augment._policy import FusedPass, KorniaPass
from dino_lab.components.augment.views import ListedViews
from dino_lab.errors import SpecError, UserError
from dino_lab.protocols import CropsShares, ability
from dino_lab.registry import registry
from dino_lab.spec.file import load_text

# Made by the short names when each was a class of its own, before operations were components.
RECORDED = Path(__file__).parent / "recorded_crops.npz"
CASES: dict[str, dict[str, Any]] = {
    "multicrop": {"global_size": 12, "local_size": 8, "local_views": 3},
    "multicrop_rotated": {
        **{"global_size": 12, "local_size": 8, "local_views": 2, "rotation": 20.0, "global_views": 3}
    },
    "multicrop_plain": {
        **{"global_size": 12, "local_views": 0, "flip_probability": 0, "jitter_probability": 0},
        **{"grey_probability": 0, "blur_probability": (0, 0, 0), "solarize_probability": (0, 0, 0)},
    },
    "two_view": {"size": 12},
    "single": {"size": 12},
    "single_coloured": {
        **{"size": 12, "jitter_probability": 0.8, "grey_probability": 0.3, "blur_probability": 0.5},
        **{"solarize_probability": 0.4},
    },
    "triplet": {"size": 10},
    "asymmetric": {
        **{"size": 12, "local_views": 3, "local_size": 8, "second": {"rotation": 10.0, "hue": 0.3}}
    },
    "asymmetric_one_way": {"size": 12, "one_way": True, "local_views": 2, "local_size": 12},
}
COLOURS: list[Any] = [{"jitter": {"p": 0.8}}, {"grey": 0.2}]
LARGE: list[Any] = [{"crop": {"scale": [0.4, 1.0]}}, "flip", *COLOURS]
SMALL: list[Any] = [{"crop": {"scale": [0.05, 0.4]}}, "flip", *COLOURS]
WHOLE: list[Any] = [{"crop": {"scale": [1.0, 1.0]}}]
# Each short name as the list that it is short for.
LISTS: dict[str, dict[str, Any]] = {
    "multicrop": {
        "groups": [
            {"views": 2, "size": 12, "ops": [*LARGE, {"blur": [1.0, 0.1]}, {"solarize": [0.0, 0.2]}]},
            {"views": 3, "size": 8, "sees": "student", "ops": [*SMALL, {"blur": 0.5}]},
        ]
    },
    "two_view": {
        "groups": [
            {
                **{"views": 2, "size": 12},
                "ops": ["crop", "flip", *COLOURS, {"blur": [1.0, 0.1]}, {"solarize": [0.0, 0.2]}],
            }
        ]
    },
    "single": {
        "groups": [{"size": 12, "ops": [{"crop": {"scale": [0.25, 1.0]}}, "flip"]}],
        "pairs": "none",
    },
    "triplet": {"groups": [{"views": 3, "size": 10, "ops": [*SMALL, "blur"]}], "pairs": "triplet"},
    "asymmetric_one_way": {
        "groups": [
            {"size": 12, "ops": ["crop", "flip", *COLOURS, {"blur": 1.0}]},
            {
                **{"size": 12, "sees": "student"},
                "ops": ["crop", "flip", *COLOURS, {"blur": 0.1}, {"solarize": 0.2}],
            },
            {"views": 2, "size": 12, "sees": "student", "ops": [*SMALL, {"blur": 0.5}]},
        ],
        "pairs": "one_way",
    },
}


def build(name: str, **given: object) -> nn.Module:
    """As a spec does: validated, then built."""
    entry = registry.find("augment", name)
    return registry.build("augment", entry.params.model_validate({"name": name, **given}))


def of_case(case: str) -> nn.Module:
    return build(case if case == "two_view" else case.partition("_")[0], **CASES[case])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(B: int = 4, C: int = 3) -> Tensor:
    """Smooth ones, uint8 [B, C, 24, 20]: a grey level that is rounded the other way stays a small matter."""
    coarse = torch.rand(B, C, 5, 5, generator=seeded(1))
    return nn.functional.interpolate(coarse, (24, 20), mode="bicubic").clamp(0, 1).mul(255).byte()


@pytest.mark.parametrize("C", [3, 1])
@pytest.mark.parametrize("case", CASES)
def test_short_names_make_the_crops_that_they_made(case: str, C: int) -> None:
    recorded, generator = numpy.load(RECORDED), seeded(7)
    views = of_case(case)(images(C=C), generator)
    for i, crop in enumerate(views.crops):
        # Another kind of processor may round another way; another random number would be seen.
        torch.testing.assert_close(crop, torch.from_numpy(recorded[f"{case}.{C}.{i}"]), rtol=0, atol=1e-6)
    assert torch.equal(views.pairs, torch.from_numpy(recorded[f"{case}.pairs"]))
    after = torch.from_numpy(recorded[f"{case}.{C}.next"])  # the generator's next number
    assert torch.equal(torch.rand(1, generator=generator), after)


@pytest.mark.parametrize("case", LISTS)
def test_a_list_makes_the_crops_of_its_short_name(case: str) -> None:
    short, listed = (a(images(), seeded(7)) for a in (of_case(case), build("views", **LISTS[case])))
    assert torch.equal(listed.pairs, short.pairs)
    # Neighbours of one size that the student alone sees are one group.
    a, b = (torch.cat([c.flatten() for c in views.crops]) for views in (short, listed))
    assert torch.equal(a, b)


def test_without_groups_it_is_dinos() -> None:
    assert build("views").groups == ((2, 224), (8, 96))
    small = {"size": 12, "local_size": 8, "local_views": 2}
    a, b = (build("views", **small, **given)(images(), seeded(0)) for given in ({}, {"preset": "dino_v1"}))
    assert all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))


@pytest.mark.parametrize("preset", ["dino_v1", "dino_v2", "simclr", "byol", "moco_v3"])
def test_presets(preset: str) -> None:
    augment = build("views", preset=preset, size=16, local_size=8, local_views=3)
    multicrop = preset.startswith("dino")
    assert augment.groups == (((2, 16), (3, 8)) if multicrop else ((2, 16),))
    assert [crop.shape[-1] for crop in augment(images(), seeded(0)).crops] == [s for _, s in augment.groups]
    large = dict(next(iter(augment.policies[0])).operations)
    # arXiv 2104.14294 and main_dino.py; arXiv 2304.07193 and its configuration; 2002.05709, App. A, Fig. 5;
    # 2006.07733, Table 6; 2104.02057 and main_moco.py.
    scales = {"dino_v1": (0.4, 1.0), "dino_v2": (0.32, 1.0)}
    assert large["crop"].scale == scales.get(preset, (0.08, 1.0))
    assert large["flip"].probability == 0.5
    strengths = (0.8, 0.8, 0.8) if preset == "simclr" else (0.4, 0.4, 0.2)
    assert (large["jitter"].strengths, large["jitter"].hue) == (strengths, 0.2 if preset == "simclr" else 0.1)
    assert (large["jitter"].probability, large["grey"].probability) == (0.8, 0.2)
    assert (large["blur"].sigma, large["blur"].probability) == ((0.1, 2.0), 0.5 if preset == "simclr" else 1)
    if preset != "simclr":
        second = dict(augment.policies[0][1].operations)
        assert (second["blur"].probability, second["solarize"].probability) == (0.1, 0.2)
    if multicrop:
        local = dict(augment.policies[1][0].operations)
        assert local["crop"].scale == (0.05, scales[preset][0])
        assert local["blur"].probability == 0.5


def test_pairs() -> None:
    def pairs(kind: str, *groups: tuple[int, str]) -> list[list[int]]:
        listed = [{"views": views, "size": 8, "sees": sees, "ops": WHOLE} for views, sees in groups]
        found: list[list[int]] = build("views", groups=listed, pairs=kind).pairs.tolist()
        return found

    assert pairs("all_but_self", (2, "both"), (1, "student")) == [[0, 1], [1, 0], [1, 1]]
    assert pairs("one_way", (2, "both"), (2, "student")) == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert pairs("none", (2, "both"), (1, "student")) == [[1, 0], [0, 1], [0, 0]]
    assert pairs("triplet", (1, "both"), (2, "both")) == [[0, 1, -1], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("pairs", ["all_but_self", "triplet"])
def test_crops_of_a_share_are_those_of_the_batch(pairs: str) -> None:
    """Also Kornia's, whose parameters are drawn for the whole batch and then divided."""
    ops = [{"crop": {"scale": [0.3, 1]}}, {"kornia.RandomErasing": {"p": 0.7}}, "jitter"]
    ops += [{"kornia.RandomPerspective": {"p": 0.5}}, {"kornia.ColorJitter": {"hue": 0.2, "p": 1.0}}]
    augment = build("views", groups=[{"views": 3, "size": 9, "ops": ops}], pairs=pairs)
    batch = images(5)
    (whole,) = augment(batch, seeded(3)).crops
    shares = ability(augment, CropsShares)
    if pairs == "triplet":  # which shows other images
        assert shares is None
        return
    assert shares is not None
    for some in (slice(0, 3), slice(3, 5), slice(2, 3)):
        (crops,) = shares.forward_share(batch[some], seeded(3), 5, some.start).crops
        torch.testing.assert_close(crops, whole[:, some], rtol=0, atol=1e-6)


def passes(*ops: Any) -> list[str]:
    """What is computed at once, in order."""
    augment = build("views", groups=[{"views": 2, "size": 9, "ops": ops}])
    (policy,) = augment.policies[0]
    found = []
    for part in policy.passes:
        fused = isinstance(part, FusedPass)
        found.append("+".join(op.step for op in part.operations) if fused else part.name)
        assert fused or isinstance(part, KorniaPass)
    return found


def test_neighbours_become_one_pass_and_the_order_stays() -> None:
    assert passes("crop", "flip", {"rotate": {"degrees": 9}}, "jitter", "grey", "blur", "solarize") == [
        "crop+flip+rotate+jitter+grey+blur+solarize"
    ]
    assert passes("crop", "grey", "jitter", "blur") == ["crop+grey", "jitter+blur"]
    assert passes("crop", "jitter", "kornia.RandomErasing", "blur", "flip") == [
        *("crop+jitter", "kornia.RandomErasing", "blur", "flip")
    ]


def by_hand(policy: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    """Each operation by itself, as Kornia calls it: images float32 [N, C, H, W] to crops."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        for _, operation in policy.operations:
            x = operation(x, params=operation.forward_parameters(tuple(x.shape)))
    return x


@pytest.mark.parametrize(
    "ops",
    [
        ["flip", {"crop": {"scale": [0.5, 1]}}, "solarize", {"blur": 0.5}, {"jitter": 1.0}],
        ["jitter", "crop", "flip", {"crop": {"scale": [0.5, 1]}}, {"grey": 0.5}, {"rotate": {"degrees": 30}}],
        ["crop", {"kornia.RandomErasing": {"p": 0.5}}, "flip", {"kornia.RandomInvert": {"p": 0.5}}, "blur"],
    ],
)
def test_passes_compute_what_the_operations_compute_one_by_one(ops: list[Any]) -> None:
    augment = build("views", groups=[{"views": 2, "size": 9, "ops": ops}])
    (policy,) = augment.policies[0]
    crops = policy(images(), seeded(5)).flatten(0, 1)
    naive = by_hand(policy, (images() / 255).repeat(2, 1, 1, 1), seeded(5))
    # Images are cut in whole grey levels on the CPU, and colours change by more than a level's difference.
    assert (crops - naive).abs().mean() < 0.3 / 255
    assert (crops - naive).abs().max() < 4 / 255


SPEC = """\
name: listed
data: {name: shapes, size: 32, classes: 3, train_images: 24, test_images: 12}
augment:
  name: views
  groups:
    - size: 32
      views: 2
      ops: OPS
backbone: {name: vit, width: 16, depth: 1, heads: 2, patch: 8}
head: {name: prototypes, hidden: 16, bottleneck: 8, dim: 12}
teacher: {name: ema, momentum: 0.9}
targets: {name: center}
loss: {name: cross_entropy}
optim: {name: adamw}
train: {epochs: 3, batch_size: 3}
"""


@pytest.mark.parametrize(
    ("ops", "column", "message"),
    [
        ("[crop, flipp]", 19, "groups.0.ops.1: no operation is called 'flipp'; did you mean 'flip'?"),
        ("[{crop: {scal: 1}}]", 21, "ops.0.crop.scal: unknown key; did you mean 'scale'? (accepted: scale)"),
        ("[{jitter: {hue: 0.9}}]", 23, "groups.0.ops.0.jitter.hue: must be at most 0.5, got 0.9"),
        ("[{name: jitter, hue: 0.9}]", 28, "groups.0.ops.0.hue: must be at most 0.5, got 0.9"),
        ("[{blur: {sigma: [2, 1]}}]", 21, "blur.sigma: is a pair (low, high) with low <= high, got (2, 1)"),
        ("[{grey: true}]", 13, "ops.0: grey: must be a mapping of keys, or a number, its probability"),
        ("[{name: rotate}]", 13, "ops.0.degrees: required, but not given"),
        ("[3]", 13, "ops.0: is no operation; write its name, such as flip, {grey: 0.2}, or"),
        ("[{crop: {}, flip: {}}]", 13, "ops.0: is no operation; write its name"),
        ("[{kornia.RandomErasin: {}}]", 13, "has no 'RandomErasin'; did you mean 'RandomErasing'?"),
        ("[{kornia.RandomErasing: {valu: 1}}]", 37, "unknown key; did you mean 'value'? (accepted: scale"),
        ("[{kornia.RandomErasing: {p: 2}}]", 37, "kornia.RandomErasing.p: must be at most 1, got 2"),
        ("[{kornia.RandomErasing: {scale: 1}}]", 37, "kornia.RandomErasing.scale: must be a list, got 1"),
        ("[{kornia.RandomMixUpV2: {}}]", 13, "it is no augmentation of one image by itself"),
        ("[{kornia.Normalize: {}}]", 13, "the network normalises its images itself"),
    ],
)
def test_a_bad_list_is_one_line_at_its_place(ops: str, column: int, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_text(SPEC.replace("OPS", ops), "listed.yaml")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"listed.yaml:8:{column}: augment.groups.0.")
    assert message in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"groups": [{"ops": []}]}, "has no operations"),
        ({"preset": "byol", "groups": [{"ops": WHOLE}]}, "has a preset and groups"),
        ({"groups": [{"sees": "student", "ops": WHOLE}]}, "group 1: the teacher sees none of the views"),
        ({"groups": [{"size": 8, "ops": WHOLE}, {"size": 9, "ops": WHOLE}]}, "group 2: the teacher's views"),
        ({"groups": [{"ops": WHOLE}], "pairs": "one_way"}, "pairs: one_way compares later groups"),
        ({"groups": [{"ops": WHOLE}], "pairs": "triplet"}, "pairs: triplet takes 3 views"),
        ({"groups": [{"ops": [*WHOLE, {"kornia.RandomErasing": {"value": 3.0}}]}]}, "Kornia refuses this"),
        ({"groups": [{"size": 8, "ops": [*WHOLE, {"kornia.CenterCrop": {"size": 5, "p": 1.0}}]}]}, "5, 5]"),
    ],
)
def test_groups_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError)) as caught:
        build("views", **given)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValidationError) or "\n" not in str(caught.value)


def test_a_probability_for_each_view() -> None:
    with pytest.raises(ValueError, match="p has 3 probabilities, one for each view, and there are 2"):
        build("views", groups=[{"views": 2, "ops": [*WHOLE, {"blur": [1.0, 0.5, 0.1]}]}])


def test_defaults_written_out_are_the_same_spec() -> None:
    """Short forms, `name` among the keys and every default written out mean the same run."""
    from dino_lab.spec.file import dump_yaml

    short = load_text(SPEC.replace("OPS", "[crop, {blur: 0.5}, {kornia.RandomErasing: {p: 0.2}}]"), "a.yaml")
    whole = load_text(
        SPEC.replace("OPS", "[{name: crop}, {blur: {}}, {name: kornia.RandomErasing, p: 0.2}]"), "a.yaml"
    )
    assert short.spec == whole.spec
    text = dump_yaml(short.spec)
    assert "RandomErasing" in text
    assert load_text(text, "a.yaml").spec == short.spec
    assert load_text(text, "a.yaml").spec.hash == short.spec.hash
    other = load_text(SPEC.replace("OPS", "[crop, {blur: 0.4}, {kornia.RandomErasing: {p: 0.2}}]"), "a.yaml")
    assert other.spec.hash != short.spec.hash


@pytest.mark.parametrize(
    ("ops", "right"),
    [
        ("[crop, flip, {grey: 0.2}, {blur: {p: [1.0, 0.5]}}, {name: jitter, hue: 0.1}]", True),
        ("[kornia.RandomErasing, {kornia.RandomErasing: {p: 0.1}}, {name: kornia.RandomErasing}]", True),
        ("[crup]", False),
        ("[{crup: {}}]", False),
        ("[{crop: {scal: [1, 1]}}]", False),
        ("[{jitter: {hue: 0.9}}]", False),
        ("[{name: jitter, hue: 0.9}]", False),
        ("[{crop: {}, flip: {}}]", False),
        ("[{name: crup}]", False),
    ],
)
def test_editors_know_lists(ops: str, right: bool) -> None:
    schema = json.loads((Path(__file__).parents[2] / ".dino-lab.schema.json").read_text())
    found = list(
        jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(SPEC.replace("OPS", ops)))
    )
    assert (not found) == right, found


def test_a_plugin_that_derives_from_an_operation_is_asked_itself(tmp_path: Path) -> None:
    from dino_lab.components.operations.grey import Grey

    class Bright(Grey):
        """White, in place of grey."""

        def apply_transform(self, input: Tensor, *rest: Any, transform: Tensor | None = None) -> Tensor:
            return torch.ones_like(input)

    with registry.scratch():
        registry.register("operation", "bright")(Bright)
        crops = build("views", groups=[{"views": 1, "size": 8, "ops": [*WHOLE, "bright"]}])(
            images(), seeded(0)
        ).crops[0]
    assert (crops == 1).all()


def test_the_code_of_an_operation_of_a_plugin_is_part_of_the_identity() -> None:
    from dino_lab.components.operations.grey import Grey
    from dino_lab.spec.identity import identity_of

    class Mine(Grey):
        """An operation of a plugin."""

    with registry.scratch():
        registry.register("operation", "mine")(Mine)
        spec = load_text(SPEC.replace("OPS", "[crop, mine]"), "a.yaml").spec
    assert "augment mine" in identity_of(spec).code
    assert "augment mine" not in identity_of(load_text(SPEC.replace("OPS", "[crop]"), "a.yaml").spec).code


def test_listed_views_are_the_class_that_the_registry_knows() -> None:
    make: Callable[..., nn.Module] = registry.find("augment", "views").cls
    assert make is ListedViews

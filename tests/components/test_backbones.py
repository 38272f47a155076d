from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models import VisionTransformer
from torch import Tensor, nn

from dino_lab.building.seeding import seed_everything
from dino_lab.components.backbones import _tokens
from dino_lab.components.backbones._positions import interpolate_as_dino
from dino_lab.components.backbones.resnet import ResNet
from dino_lab.components.backbones.timm import Timm
from dino_lab.components.backbones.vit import Vit
from dino_lab.errors import UserError
from dino_lab.kernels import attention as _attention_kernel
from dino_lab.kernels import class_token as _class_token
from dino_lab.kernels.attention import products_pay


def small_vit(**changes: Any) -> Vit:
    given = {"width": 24, "depth": 2, "heads": 3, "patch": 4}
    return Vit(3, 16, **{**given, **changes})


def images(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(size))


def explicit_attention(model: Any, x: Tensor) -> Tensor:
    """What the unfused layer itself multiplies its values with, from CLS to the patches [N, heads, h * w]."""
    model = copy.deepcopy(model)
    layer = model.blocks[-1].attn
    layer.fused_attn = False
    seen: list[Tensor] = []
    layer.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(x)
    return seen[0][:, :, 0, model.num_prefix_tokens :]


PLAIN: list[dict[str, Any]] = [
    {},
    {"reg_tokens": 3},
    {"qk_norm": True, "init_values": 0.1},
    {"qkv_bias": False, "scale_attn_norm": True, "scale_mlp_norm": True},
    {"depth": 1, "no_embed_class": True, "num_classes": 5},
]


@pytest.mark.parametrize("extra", [*PLAIN, {"drop_path_rate": 0.5}], ids=str)
def test_features_without_the_rest_of_the_last_block_are_those_of_the_model(extra: dict[str, Any]) -> None:
    given = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
    model = VisionTransformer(**{**given, **extra}).double()
    assert _class_token.features_are_class_token(model)
    results = []
    for function in (model, lambda x: _class_token.class_token_features(model, x)):
        torch.manual_seed(1)
        model.zero_grad()
        features = function(images(16).double())
        features.square().sum().backward()
        results.append([features, *(p.grad for p in model.parameters())])
    whole, short = results
    assert max(g.abs().max() for g in short[1:]) > 0.01
    torch.testing.assert_close(short, whole, rtol=1e-10, atol=1e-12)


def vit_of_timm(extra: dict[str, Any]) -> VisionTransformer:
    given = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(**{**given, "dynamic_img_size": True, **extra}).double()


def with_gradients(model: nn.Module, features: Tensor) -> list[Tensor]:
    model.zero_grad()
    features.square().sum().backward()
    return [features, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("extra", [*PLAIN, {"attn_drop_rate": 0.0}], ids=str)
def test_features_of_several_sizes_at_once_are_those_of_each(
    extra: dict[str, Any], checkpointing: bool
) -> None:
    model, crops = vit_of_timm(extra), [images(16).double(), images(8).double(), images(24)[:1].double()]
    model.set_grad_checkpointing(checkpointing)
    whole = with_gradients(model, torch.cat([model(group) for group in crops]))
    joined = with_gradients(model, _class_token.class_token_features_of_sizes(model, crops))
    assert max(g.abs().max() for g in joined[1:]) > 0.01
    torch.testing.assert_close(joined, whole, rtol=1e-10, atol=1e-12)


def test_a_block_of_another_kind_is_computed_by_itself() -> None:
    model, crops = vit_of_timm({}), [images(16).double(), images(8).double()]
    model.blocks[0].attn.gate = nn.Linear(24, 24).double()
    joined = _class_token.class_token_features_of_sizes(model, crops)
    torch.testing.assert_close(joined, torch.cat([model(group) for group in crops]))


class Multiplied(nn.Module):
    """Rows of images [N, ...] times numbers, of which the next N are taken at each call."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers, self.first = numbers.double(), 0

    def forward(self, x: Tensor) -> Tensor:
        its = self.numbers[self.first : self.first + len(x)]
        self.first += len(x)
        return x * its.view(-1, *[1] * (x.ndim - 1))


def test_stochastic_depth_of_several_sizes_keeps_whole_branches_of_an_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, crops = vit_of_timm({"drop_path_rate": 0.5}), [images(16).double(), images(8).double()]
    drawn: list[dict[int, Tensor]] = []
    draw = _class_token._path_scales
    monkeypatch.setattr(_class_token, "_path_scales", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    joined = with_gradients(model, _class_token.class_token_features_of_sizes(model, crops))
    for number, scales in drawn[0].items():
        setattr(model.blocks[number // 2], f"drop_path{1 + number % 2}", Multiplied(scales))
    whole = with_gradients(model, torch.cat([model(group) for group in crops]))
    assert drawn[0].keys() == {2, 3, 4, 5}  # the first block's rate is 0
    torch.testing.assert_close(joined, whole, rtol=1e-10, atol=1e-12)


def test_stochastic_depth_keeps_its_share_and_the_mean() -> None:
    model = vit_of_timm({"drop_path_rate": 0.5})
    found = _class_token._path_scales(model.blocks, 40_000, torch.device("cpu"))
    for number, kept in ((2, 0.75), (3, 0.75), (4, 0.5), (5, 0.5)):
        assert found[number].unique().tolist() == pytest.approx([0, 1 / kept])
        assert float(found[number].mean()) == pytest.approx(1, abs=0.02)  # some 4 standard errors
    assert _class_token._path_scales(model.eval().blocks, 4, torch.device("cpu")) == {}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("eva02_tiny_patch14_224", {}),
        ("resnet10t", {}),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}),
    ],
)
def test_models_whose_last_block_is_needed_whole_are_left_whole(name: str, arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert not _class_token.features_are_class_token(timm.create_model(name, **arguments))


@pytest.mark.parametrize("size", [8, 16, 24])
def test_vit_takes_several_sizes(size: int) -> None:
    vit = small_vit().eval()
    features, tokens = vit(images(size)), vit.tokens(images(size))
    assert features.shape == (2, 24) == (2, vit.dim)
    assert tokens.shape == (2, 24, size // 4, size // 4)
    assert features.isfinite().all()


def test_vit_features_are_the_normed_class_token_and_tokens_the_normed_patches() -> None:
    vit, x = small_vit().eval(), images(16)
    out = vit.model.forward_features(x)  # [N, 1 + h * w, D]
    torch.testing.assert_close(vit(x), out[:, 0])
    torch.testing.assert_close(vit(x).mean(-1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(vit.tokens(x)[:, :, 2, 1], out[:, 1 + 2 * 4 + 1])


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def interpolated(grid: list[list[float]], side: int) -> list[list[float]]:
    """DINO's interpolation of one feature of the positions to side x side, number by number.

    A patch i lies at (i + 1/2) / s - 1/2 with s = (side + 0.1) / grid; the border repeats; nothing is widened
    where the grid shrinks.
    """
    n = len(grid)

    def taps(i: int) -> list[tuple[int, float]]:
        centre = (i + 0.5) * n / (side + 0.1) - 0.5
        first = math.floor(centre) - 1
        return [(min(max(k, 0), n - 1), cubic(centre - k)) for k in range(first, first + 4)]

    return [
        [sum(a * b * grid[y][x] for y, a in taps(i) for x, b in taps(j)) for j in range(side)]
        for i in range(side)
    ]


def registers() -> VisionTransformer:
    """Whose class and register tokens have no positions."""
    given = {"embed_dim": 24, "depth": 1, "num_heads": 3, "reg_tokens": 2, "no_embed_class": True}
    model = VisionTransformer(img_size=16, patch_size=4, dynamic_img_size=True, **given)
    interpolate_as_dino(model)
    return model


@pytest.mark.parametrize("side", [2, 3, 4, 6])
@pytest.mark.parametrize(
    "make",
    [
        lambda: small_vit(positions="dino").model,
        lambda: Timm(3, 64, model="test_vit", positions="dino").model,
        registers,
    ],
    ids=["vit", "timm", "registers"],
)
def test_positions_may_be_those_of_dino(make: Callable[[], Any], side: int) -> None:
    model = make().double()
    grid, size = 4, side * model.patch_embed.patch_size[0]
    count = 0 if model.no_embed_class else model.num_prefix_tokens
    with torch.no_grad():
        model.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
        model.patch_embed.proj.weight.zero_()  # so that patches are positions alone
        model.patch_embed.proj.bias.zero_()
        model.cls_token.zero_()
        tokens = model._pos_embed(model.patch_embed(torch.zeros(1, 3, size, size).double()))[0]
    torch.testing.assert_close(tokens[:count], model.pos_embed[0, :count])
    plane = model.pos_embed[0, count:].T.unflatten(1, (grid, grid))
    for feature in (0, 7):
        found = tokens[model.num_prefix_tokens :, feature].unflatten(0, (side, side)).tolist()
        exact = plane[feature].tolist() if side == grid else interpolated(plane[feature].tolist(), side)
        assert found == [pytest.approx(row, rel=1e-5, abs=1e-5) for row in exact]


def test_positions_of_dino_reach_features_copies_and_everything_else_that_is_asked() -> None:
    torch.manual_seed(0)
    ours, plain = small_vit(positions="dino").eval(), small_vit().eval()
    plain.load_state_dict(ours.state_dict())
    twin = copy.deepcopy(ours)
    torch.testing.assert_close(ours(images(16)), plain(images(16)))
    found = ours(images(8))
    assert not torch.allclose(found, plain(images(8)), atol=1e-4)
    torch.testing.assert_close(twin(images(8)), found)
    torch.testing.assert_close(ours.outputs(images(8), 1).features, found)
    with torch.no_grad():
        twin.model.pos_embed.add_(torch.randn_like(twin.model.pos_embed))
    assert not torch.allclose(twin(images(8)), found, atol=1e-4)
    torch.testing.assert_close(ours(images(8)), found)


def test_positions_of_dino_are_refused_where_none_are_interpolated() -> None:
    with pytest.raises(ValueError, match="ResNet does not interpolate position embeddings"):
        Timm(3, 32, model="resnet10t", positions="dino")


def test_patches_that_are_not_trained() -> None:
    frozen = [name for name, p in small_vit(train_patches=False).named_parameters() if not p.requires_grad]
    assert frozen == ["model.patch_embed.proj.weight", "model.patch_embed.proj.bias"]
    assert all(p.requires_grad for p in small_vit().parameters())


def test_vit_starts_with_a_standard_deviation_of_2_percent() -> None:
    model = Vit(3, 32, width=192, depth=1, heads=3, patch=8).model
    for tensor in (model.cls_token, model.pos_embed, model.blocks[0].attn.qkv.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.blocks[0].mlp.fc1.bias.abs().max() == 0


def test_vit_takes_other_channels() -> None:
    assert Vit(1, 16, width=24, depth=1, heads=3, patch=4)(images(16, channels=1)).shape == (2, 24)


def test_drop_path_rises_to_the_last_block() -> None:
    blocks = small_vit(depth=3, drop_path=0.2).model.blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 12}, "16 is not a multiple of patch 12"),
        ({"heads": 5}, "width 24 is not a multiple of 5 heads"),
    ],
)
def test_vit_refuses_what_does_not_divide(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_vit(**changes)


def test_vit_checks_the_size_of_other_crops() -> None:
    vit = small_vit()
    vit.check_size(8)
    with pytest.raises(ValueError, match="6 is not a multiple of patch 4"):
        vit.check_size(6)


@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize(
    "extra", [{}, {"reg_tokens": 3}, {"qk_norm": True}, {"num_classes": 5}, {"no_embed_class": True}], ids=str
)
def test_attention_is_that_of_the_unfused_layer(extra: dict[str, Any], size: int) -> None:
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = VisionTransformer(**shape, dynamic_img_size=True, **extra).eval()
    assert model.blocks[-1].attn.fused_attn
    with torch.no_grad():
        model.blocks[-1].attn.qkv.weight.mul_(30)  # far from uniform
        attention = _tokens.attention(model, images(size))
        expected = explicit_attention(model, images(size))
    assert attention.shape == (2, 3, size // 4, size // 4)
    torch.testing.assert_close(attention.flatten(2), expected, rtol=1e-4, atol=1e-7)
    assert (attention.sum((2, 3)) <= 1 + 1e-6).all()
    assert attention.std() > 1e-3


def test_vit_and_timm_give_attention() -> None:
    for backbone in (small_vit().eval(), Timm(3, 32, model="vit_tiny_patch16_224").eval()):
        attention = backbone.attention(images(48))
        assert attention.shape == (2, 3, *backbone.tokens(images(48)).shape[2:])
        assert len(backbone.model.blocks[-1].attn._forward_pre_hooks) == 1  # which chooses the kernel


@pytest.mark.parametrize(
    ("model", "message"),
    [("resnet10t", "ResNet has no CLS token"), ("beit_base_patch16_224", "Beit has another attention")],
)
def test_attention_is_refused_where_there_is_none(model: str, message: str) -> None:
    with torch.device("meta"):
        backbone = Timm(3, 224, model=model)
        with pytest.raises(UserError, match=message):
            backbone.attention(torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize(
    "model", ["resnet10t", "mobilenetv3_small_050", "convnext_atto", "swin_tiny_patch4_window7_224", "vgg11"]
)
def test_timm_dim_is_the_width_of_the_features(model: str) -> None:
    with torch.device("meta"):
        backbone = Timm(1, 224, model=model)
        x = torch.zeros(2, 1, 224, 224)
        assert backbone(x).shape == (2, backbone.dim)
        assert backbone.tokens(x).shape[::2] == (2, 7)


def test_timm_nets_take_several_sizes() -> None:
    for model, sizes in (("resnet10t", (32, 50)), ("vit_tiny_patch16_224", (32, 64))):
        backbone = Timm(3, sizes[0], model=model).eval()
        for size in sizes:
            backbone.check_size(size)
            assert backbone(images(size)).shape == (2, backbone.dim)
    with pytest.raises(ValueError, match="40 is not a multiple of patch 16"):
        backbone.check_size(40)


def test_timm_refuses_a_first_size_that_does_not_divide() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="40 is not a multiple of patch 16"):
        Timm(3, 40, model="vit_tiny_patch16_224")


def test_overlapping_patches_take_any_size() -> None:
    """Regression: the kernel of an overlapping patch, 7, is no number that the size must be a multiple of."""
    with torch.device("meta"):
        backbone = Timm(3, 32, model="pvt_v2_b0")
        backbone.check_size(30)
        assert backbone(torch.zeros(2, 3, 30, 30)).shape == (2, backbone.dim)


def test_timm_says_what_it_cannot_build() -> None:
    message = "xcit_nano_12_p16_224 cannot be built for 30 pixels: .* divide image dimensions evenly"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Timm(3, 30, model="xcit_nano_12_p16_224")


@pytest.mark.parametrize(
    "model", ["mixer_s32_224", "xcit_nano_12_p16_224", "mvitv2_tiny", "vit_tiny_r_s16_p8_224"]
)
def test_tokens_are_refused_where_there_are_none(model: str) -> None:
    with torch.device("meta"):
        backbone = Timm(3, 32, model=model)
        with pytest.raises(UserError, match="gives no patch tokens"):
            backbone.tokens(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("model", "size"), [("coat_tiny", 224), ("efficientvim_m1", 224), ("crossvit_9_240", 240)]
)
def test_a_model_with_several_sets_of_tokens_has_none(model: str, size: int) -> None:
    """Regression: their forward_features gives a list, of the map of each scale."""
    with torch.device("meta"), torch.no_grad():
        backbone = Timm(3, size, model=model).eval()
        x = torch.zeros(2, 3, size, size)
        with pytest.raises(UserError, match="gives no patch tokens"):
            backbone.tokens(x)
        outputs = backbone.outputs(x, 4)
    assert outputs.features.shape == (2, backbone.dim)
    assert outputs.tokens is None
    assert outputs.attention is None


def test_timm_suggests_a_name() -> None:
    with pytest.raises(ValueError, match="no model 'resnet_18'; did you mean 'resnet18'"):
        Timm(3, 32, model="resnet_18")


def test_timm_drop_path_reaches_the_model() -> None:
    with torch.device("meta"):
        backbone = Timm(3, 32, model="resnet18", drop_path=0.1)
        with pytest.raises(ValueError, match="vgg11 refuses its arguments"):
            Timm(3, 32, model="vgg11", drop_path=0.1)
    rates = [module.drop_prob for module in backbone.modules() if hasattr(module, "drop_prob")]
    assert max(rates) == pytest.approx(0.1)


def test_small_stem_keeps_the_resolution() -> None:
    with torch.device("meta"):
        x = torch.zeros(2, 3, 32, 32)
        assert Timm(3, 32, model="resnet18").tokens(x).shape == (2, 512, 1, 1)
        assert Timm(3, 32, model="resnet18", stem="small").tokens(x).shape == (2, 512, 4, 4)


@pytest.mark.parametrize("model", ["convnext_atto", "vit_tiny_patch16_224", "resnet18d"])
def test_small_stem_is_refused_where_it_does_not_fit(model: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="no 7x7 ResNet stem to make small"):
        Timm(3, 32, model=model, stem="small")


def test_resnet_of_width_64_is_torchvisions() -> None:
    given = torchvision.models.resnet18(num_classes=1)
    given.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    given.maxpool, given.fc = nn.Identity(), nn.Identity()
    backbone = ResNet(3, 32, width=64, blocks=(2, 2, 2, 2))
    backbone.model.load_state_dict(given.state_dict())
    x = images(32)
    torch.testing.assert_close(backbone.train()(x), given.train()(x))
    torch.testing.assert_close(backbone.eval()(x), given.eval()(x))
    assert backbone.dim == 512


def test_blocks_of_a_resnet_are_the_identity_at_first_only_where_that_is_asked_for() -> None:
    def last_norms(backbone: Any) -> set[float]:
        return {
            block.bn2.weight.detach().abs().max().item()
            for block in backbone.model.modules()
            if hasattr(block, "bn2")
        }

    assert last_norms(ResNet(3, 32, width=8)) == {1.0}  # as torchvision's
    assert last_norms(ResNet(3, 32, width=8, zero_init_last=True)) == {0.0}
    assert last_norms(Timm(3, 32, model="resnet18")) == {0.0}
    assert last_norms(Timm(3, 32, model="resnet18", zero_init_last=False)) == {1.0}
    with pytest.raises(ValueError, match="timm's vit_tiny_patch16_224 refuses its arguments"):
        Timm(3, 32, model="vit_tiny_patch16_224", zero_init_last=False)


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 4), (4, 2)])
def test_resnet_features_are_the_mean_of_its_last_map(stride: int, side: int) -> None:
    backbone = ResNet(3, 64, width=8, stem_stride=stride).eval()
    tokens = backbone.tokens(images(64))
    assert tokens.shape == (2, 64, side, side)
    torch.testing.assert_close(backbone(images(64)), tokens.mean((2, 3)))


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_stem_of_convolutions_gives_the_tokens_and_attention_of_its_patches(patch: int) -> None:
    vit = small_vit(patch=patch, stem="convolutions").eval()
    side = 24 // patch
    assert vit.tokens(images(24)).shape == (2, 24, side, side)
    attention = vit.attention(images(24))
    assert attention.shape == (2, 3, side, side)
    model, line = vit.as_timm()
    plain = eval(line, {"timm": timm}).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(attention.flatten(2), explicit_attention(plain, images(24)))
    # A token sees more than its patch: the last pixel of the first changes the second.
    pixel = torch.zeros(1, 3, 16, 16)
    pixel[..., 0, patch - 1] = 1
    embed = vit.model.patch_embed
    assert (embed(pixel) - embed(torch.zeros_like(pixel)))[0, 0, 1].abs().max() > 0


def test_a_stem_of_convolutions_needs_patches_of_a_power_of_2() -> None:
    for patch in (1, 6):
        with pytest.raises(ValueError, match=f"patch {patch} is no power of 2 above 1"):
            Vit(3, 12, width=24, patch=patch, stem="convolutions")
    with pytest.raises(UserError, match="timm has no argument for stem: convolutions"):
        small_vit(stem="convolutions").timm_config()


def test_pretrained_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> nn.Module:
        raise OSError("cannot reach the hub\nand much more")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError) as caught:
        Timm(3, 224, model="resnet18", pretrained=True)
    assert str(caught.value) == (
        "the weights of resnet18 could not be had (cannot reach the hub); pretrained: false starts anew"
    )


def test_pretrained_is_refused_where_there_are_no_weights() -> None:
    with pytest.raises(ValueError, match="no pretrained weights for botnet50ts_256"):
        Timm(3, 224, model="botnet50ts_256", pretrained=True)
    with pytest.raises(ValueError, match="stem 'small' has other weights"):
        Timm(3, 32, model="resnet18", pretrained=True, stem="small")


def test_nothing_is_downloaded_while_a_spec_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    create = timm.create_model

    def spy(model: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        asked.append(pretrained)
        return create(model, **arguments)

    monkeypatch.setattr(timm, "create_model", spy)
    with torch.device("meta"):
        Timm(3, 32, model="resnet10t", pretrained=True)
    assert asked
    assert not any(asked)


@pytest.mark.parametrize(
    "make",
    [
        lambda: small_vit(drop_path=0.1),
        lambda: Timm(3, 32, model="vit_tiny_patch16_224", drop_path=0.1),
        lambda: Timm(3, 32, model="resnet10t"),
        lambda: Timm(1, 32, model="resnet18", stem="small"),
        lambda: small_vit(stem="convolutions"),
        lambda: ResNet(1, 32, width=8, stem_stride=1),
        lambda: ResNet(3, 32, width=8, stem_stride=2, blocks=(1, 2, 1, 1)),
        lambda: ResNet(3, 32, width=8, stem_stride=4, drop_path=0.1),
    ],
    ids=["vit", "timm vit", "timm resnet", "small stem", "conv stem", "resnet 1", "resnet 2", "resnet 4"],
)
def test_as_timm_builds_the_like_of_it(make: Any) -> None:
    backbone = make().eval()
    model, line = backbone.as_timm()
    assert "\n" not in line
    scope: dict[str, Any] = {}
    exec(f"import timm\nmodel = {line}", scope)
    other = scope["model"].eval()
    other.load_state_dict(model.state_dict())
    channels = next(p for p in model.parameters() if p.ndim == 4).shape[1]
    with torch.no_grad():
        torch.testing.assert_close(other(images(32, channels)), backbone(images(32, channels)))


def test_registering_imports_no_timm() -> None:
    code = (
        "import sys, dino_lab.components.backbones.timm, dino_lab.components.backbones.vit; "
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Vit(3, 32, width=24, depth=3, heads=2, patch=8),
        lambda: Timm(3, 32, model="vit_tiny_patch16_224"),
        lambda: Timm(3, 32, model="test_vit3"),
    ],
    ids=["vit", "timm", "averaged"],
)
def test_attention_is_the_same_by_either_kernel(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_everything(0)
    backbone = make()
    images, weights = torch.randn(4, 3, 32, 32), torch.randn(4, backbone.dim)
    calls: list[int] = []
    original = F.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return original(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)

    def step(most: int) -> tuple[Tensor, list[Tensor], int]:
        monkeypatch.setattr(_attention_kernel, "MOST_TOKENS", most)
        calls.clear()
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = backbone(images)
        (out.float() * weights).sum().backward()
        return out.float(), [p.grad.clone() for p in backbone.parameters() if p.grad is not None], len(calls)

    products, of_products, none = step(1000)
    fused, of_fused, several = step(0)
    assert (none, several) == (0, sum(hasattr(module, "fused_attn") for module in backbone.modules()))
    assert (products - fused).norm() < 0.05 * fused.norm()
    for one, other in zip(of_products, of_fused, strict=True):
        assert (one - other).norm() < 0.05 * max(other.norm(), 1e-2)


def test_a_gpu_float32_and_long_sequences_keep_the_fused_kernel() -> None:
    assert products_pay(torch.zeros(2, 65, 8, dtype=torch.bfloat16))
    assert not products_pay(torch.zeros(2, 65, 8))
    assert not products_pay(torch.zeros(2, 65, 8, dtype=torch.bfloat16, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert products_pay(torch.zeros(2, 197, 8))
        assert not products_pay(torch.zeros(2, 785, 8))


def test_a_list_of_tokens_is_no_patch_tokens() -> None:
    """As timm's CoaT and EfficientViM give."""
    from dino_lab.components.backbones import _tokens

    model = torch.nn.Module()
    model.forward_features = lambda images: [images, images]  # type: ignore[assignment]
    with pytest.raises(UserError, match="gives no patch tokens"):
        _tokens.tokens(model, torch.zeros(1, 3, 8, 8))

"""Weights of other projects: features and attention are those of the naive transformer."""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from naive_transformer import (
    Numbers,
    below,
    dino_head,
    dino_names,
    dinov3_names,
    forward,
    hugging_face_names,
    numbers,
    others,
    torchvision_names,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_lab.building.single import find_single, open_single
from dino_lab.errors import UserError
from dino_lab.network import evaluation_mode
from dino_lab.registry import registry
from dino_lab.weights.file import digest

CPU = torch.device("cpu")
PLAIN = numbers()
V2 = numbers(scaled=True, registers=0, seed=1)
V2_REGISTERS = numbers(scaled=True, registers=4, seed=2)
V2_GATED = numbers(scaled=True, gated=True, hidden=344, seed=3)
V3 = numbers(scaled=True, registers=4, rotary=True, seed=4)
V3_GATED = numbers(scaled=True, registers=4, rotary=True, gated=True, hidden=344, seed=5)
SMALL_MOCO = numbers(width=96, heads=12, seed=6)
WRITTEN_AS = dict[str, tuple[Numbers, Callable[[], Any]]]


def in_model(state: dict[str, Tensor], **beside: Any) -> dict[str, Any]:
    return {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, **beside}


FORMATS: WRITTEN_AS = {
    "DINO, backbone alone": (PLAIN, lambda: dino_names(PLAIN)),
    "DINO, full checkpoint": (
        PLAIN,
        lambda: {
            "student": below("module.backbone.", dino_names(others(PLAIN)))
            | below("module.", dino_head(128)),
            "teacher": below("backbone.", dino_names(PLAIN)) | dino_head(128),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
            "epoch": 100,
            "args": argparse.Namespace(arch="vit_small", lr=0.0005),
            "dino_loss": {"center": torch.zeros(1, 32)},
        },
    ),
    "iBOT, teacher": (
        PLAIN,
        lambda: {
            "state_dict": below("backbone.", dino_names(PLAIN) | {"masked_embed": torch.zeros(1, 128)})
            | dino_head(128)
        },
    ),
    "MAE": (
        PLAIN,
        lambda: in_model(
            dino_names(PLAIN)
            | {
                "mask_token": torch.zeros(1, 1, 64),
                "decoder_pos_embed": torch.zeros(1, 17, 64),
                "decoder_embed.weight": torch.zeros(64, 128),
                "decoder_blocks.0.attn.qkv.weight": torch.zeros(192, 64),
                "decoder_pred.bias": torch.zeros(192),
            },
            args=argparse.Namespace(mask_ratio=0.75),
        ),
    ),
    "MoCo v3": (
        SMALL_MOCO,
        lambda: {
            "epoch": 300,
            "arch": "vit_small",
            "state_dict": below("module.base_encoder.", dino_names(SMALL_MOCO))
            | below("module.momentum_encoder.", dino_names(others(SMALL_MOCO)))
            | {"module.base_encoder.head.0.weight": torch.zeros(8, 96)}
            | {"module.predictor.0.weight": torch.zeros(8, 8)},
        },
    ),
    "DINOv2": (V2, lambda: dino_names(V2) | {"mask_token": torch.zeros(1, 128)}),
    "DINOv2, chunks of blocks in a training checkpoint": (
        V2,
        lambda: {
            "teacher": below("backbone.", dino_names(V2, chunks=1) | {"mask_token": torch.zeros(1, 128)})
            | below("dino_", dino_head(128))
        },
    ),
    "DINOv2, registers": (
        V2_REGISTERS,
        lambda: dino_names(V2_REGISTERS) | {"mask_token": torch.zeros(1, 128)},
    ),
    "DINOv2, gated MLP": (V2_GATED, lambda: dino_names(V2_GATED) | {"mask_token": torch.zeros(1, 128)}),
    "DINOv3": (V3, lambda: dinov3_names(V3)),
    "DINOv3, gated MLP": (V3_GATED, lambda: dinov3_names(V3_GATED)),
    "lightly": (
        PLAIN,
        lambda: {
            "state_dict": below("teacher_backbone.vit.", dino_names(PLAIN))
            | below("student_backbone.vit.", dino_names(others(PLAIN)))
            | {"student_head.layers.0.weight": torch.zeros(4, 4)},
            "pytorch-lightning_version": "2.4.0",
            "hyper_parameters": {"lr": 0.1},
        },
    ),
    "solo-learn": (
        PLAIN,
        lambda: {
            "state_dict": below("backbone.", dino_names(PLAIN))
            | below("momentum_backbone.", dino_names(others(PLAIN)))
            | {"classifier.weight": torch.zeros(10, 128), "projector.0.weight": torch.zeros(4, 128)}
        },
    ),
    "stable-pretraining": (
        PLAIN,
        lambda: {
            "state_dict": below("backbone.teacher.", hugging_face_names(PLAIN, kind="vit"))
            | below("backbone.student.", hugging_face_names(others(PLAIN), kind="vit"))
            | {"callbacks_modules.knn.weight": torch.zeros(3)}
        },
    ),
    "a compiled model": (PLAIN, lambda: below("_orig_mod.", dino_names(PLAIN))),
    "torchvision": (PLAIN, lambda: torchvision_names(PLAIN) | {"heads.head.weight": torch.zeros(10, 128)}),
    "Hugging Face ViT": (PLAIN, lambda: below("vit.", hugging_face_names(PLAIN, kind="vit"))),
    "Hugging Face DINOv2": (V2, lambda: hugging_face_names(V2, kind="dinov2")),
    "Hugging Face DINOv2, registers": (V2_REGISTERS, lambda: hugging_face_names(V2_REGISTERS, kind="dinov2")),
    "Hugging Face DINOv2, gated MLP": (V2_GATED, lambda: hugging_face_names(V2_GATED, kind="dinov2")),
    "Hugging Face DINOv3": (V3, lambda: hugging_face_names(V3, kind="dinov3")),
    "Hugging Face DINOv3, gated MLP": (V3_GATED, lambda: hugging_face_names(V3_GATED, kind="dinov3")),
}


def images(n: Numbers, side: int = 4) -> Tensor:
    return torch.randn(2, 3, side * n.patch, side * n.patch, generator=torch.Generator().manual_seed(9))


def opened(path: Path, **options: Any) -> Any:
    return open_single(find_single(str(path), registry, **options), registry, CPU)


@pytest.mark.parametrize("name", FORMATS)
def test_features_and_attention_are_those_of_the_same_numbers(name: str, tmp_path: Path) -> None:
    n, make = FORMATS[name]
    file = tmp_path / "weights.pth"
    torch.save(make(), file)
    network = opened(file, size=4 * n.patch).network
    x = images(n)
    features, attention = forward(n, x)
    with evaluation_mode(network), torch.no_grad():
        found = network.backbone(x)
        seen = network.backbone.outputs(x, 2)
    scale = features.abs().max()
    assert (found - features).abs().max() < 1e-5 * scale
    assert (seen.features - features).abs().max() < 1e-5 * scale
    assert (seen.attention - attention).abs().max() < 1e-5
    assert seen.tokens.shape == (2, len(n.cls), 4, 4)
    assert attention.std() > 1e-3  # it is no uniform one


def test_both_networks_of_a_file_can_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save(FORMATS["DINO, full checkpoint"][1](), file)
    x = images(PLAIN)
    for of, n in (("teacher", PLAIN), ("student", others(PLAIN))):
        network = opened(file, size=32, of=of).network.eval()
        torch.testing.assert_close(network.backbone(x), forward(n, x)[0], rtol=1e-4, atol=1e-4)


def test_a_safetensors_file_and_a_legacy_file_are_read_too(tmp_path: Path) -> None:
    x = images(PLAIN)
    state = {name: value.clone() for name, value in dino_names(PLAIN).items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pth"):
        network = opened(tmp_path / name, size=32).network.eval()
        torch.testing.assert_close(network.backbone(x), forward(PLAIN, x)[0], rtol=1e-4, atol=1e-4)


def test_a_folder_of_hugging_face_says_heads_and_normalisation(tmp_path: Path) -> None:
    n = numbers(width=96, heads=8)
    save_file(hugging_face_names(n, kind="vit"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 8}))
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    network = opened(tmp_path).network.eval()
    assert network.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert network.std.flatten().tolist() == pytest.approx([0.2, 0.2, 0.1])
    x = images(n)
    torch.testing.assert_close(network.backbone(x), forward(n, x)[0], rtol=1e-4, atol=1e-4)


def test_other_sizes_are_said_and_dinos_are_interpolated_as_dino_does(tmp_path: Path) -> None:
    n, make = FORMATS["DINOv2"]
    torch.save(make(), tmp_path / "v2.pth")
    found = opened(tmp_path / "v2.pth", size=48)
    assert "position embeddings of 4 x 4 patches are interpolated to 6 x 6" in found.notes
    # DINO's code: bicubic, with 0.1 patches added to the size before the scale is taken.
    plane = n.positions.T.reshape(1, 128, 4, 4)
    larger = nn.functional.interpolate(plane, scale_factor=(6.1 / 4, 6.1 / 4), mode="bicubic")
    x = images(n, 6)
    expected, _ = forward(replace(n, positions=larger.flatten(2)[0].T), x)
    with torch.no_grad():
        assert (found.network.eval().backbone(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["torchvision", "DINO", "MoCo v2", "lightly"])
@pytest.mark.parametrize("depth", [18, 50])
def test_resnets_by_other_names(kind: str, depth: int, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    model = getattr(torchvision.models, f"resnet{depth}")()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    model.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(x)
    state = model.state_dict()
    saved: Any = {
        "torchvision": state | {"fc.weight": torch.zeros(10, expected.shape[1]), "fc.bias": torch.zeros(10)},
        "DINO": {
            "teacher": below("backbone.", state) | dino_head(8),
            "student": below("module.backbone.", state),
        },
        "MoCo v2": {
            "arch": "resnet50",
            "state_dict": below("module.encoder_q.", state)
            | below("module.encoder_k.", {name: value * 2 for name, value in state.items()})
            | {"module.queue": torch.zeros(4, 4)},
        },
        "lightly": {
            "state_dict": below("backbone.", nn.Sequential(*list(model.children())[:-1]).state_dict())
        },
    }[kind]
    torch.save(saved, tmp_path / "resnet.pth")
    network = opened(tmp_path / "resnet.pth", size=64).network.eval()
    with torch.no_grad():
        assert (network.backbone(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_is_left_out_is_listed(tmp_path: Path) -> None:
    torch.save(FORMATS["solo-learn"][1](), tmp_path / "a.ckpt")
    notes = opened(tmp_path / "a.ckpt", size=32).notes
    (line,) = [note for note in notes if note.startswith("left out")]
    count = 2 + len(dino_names(PLAIN))
    assert line == (
        f"left out of the file: {count} tensors (state_dict.momentum_backbone.cls_token, "
        "state_dict.momentum_backbone.patch_embed.proj.weight, "
        "state_dict.momentum_backbone.patch_embed.proj.bias, ...)"
    )


def test_a_width_that_may_have_any_heads_is_asked_for(tmp_path: Path) -> None:
    n = numbers(width=96, heads=4)
    file = tmp_path / "a.pth"
    torch.save(dino_names(n), file)
    with pytest.raises(UserError, match=r"width 96 may have any number of heads.*backbone: {name: timm"):
        opened(file)
    params = registry.find("backbone", "vit").params
    given = params.model_validate({"name": "vit", "width": 96, "depth": 2, "heads": 4, "patch": 8})
    network = opened(file, backbone=given, size=32).network.eval()
    x = images(n)
    torch.testing.assert_close(network.backbone(x), forward(n, x)[0], rtol=1e-4, atol=1e-4)


def fake_class(monkeypatch: pytest.MonkeyPatch, module: str, name: str, *bases: type) -> type:
    """A class by the name that a package, which is not installed, gives it."""
    for i in range(1, module.count(".") + 2):
        its = ".".join(module.split(".")[:i])
        monkeypatch.setitem(sys.modules, its, types.ModuleType(its))
    made = type(name, bases or (object,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made


@pytest.mark.parametrize("legacy", [False, True])
def test_settings_beside_weights_are_passed_over(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: dict[str, Any] = {"args": argparse.Namespace(lr=0.1, out=[1, 2])}
    with monkeypatch.context() as patched:
        if not legacy:
            config = fake_class(patched, "omegaconf.dictconfig", "DictConfig")()
            config.content = {"lr": 0.1, "path": Path("/tmp"), "best": np.float64(0.7)}
            attributes = fake_class(patched, "pytorch_lightning.utilities.parsing", "AttributeDict", dict)
            beside |= {"hyper_parameters": attributes(lr=0.1, config=config)}
            beside |= {"scores": defaultdict(list, {"knn": [np.float32(0.5)]}), "when": Path("a/b")}
        torch.save(
            {"state_dict": below("backbone.", dino_names(PLAIN)), **beside},
            tmp_path / "a.ckpt",
            _use_new_zipfile_serialization=not legacy,
        )
    network = opened(tmp_path / "a.ckpt", size=32).network.eval()
    x = images(PLAIN)
    torch.testing.assert_close(network.backbone(x), forward(PLAIN, x)[0], rtol=1e-4, atol=1e-4)
    assert "omegaconf" not in sys.modules


def test_weights_in_several_files(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in hugging_face_names(V2, kind="dinov2").items()}
    names = list(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, its in parts.items():
        save_file({name: state[name] for name in its}, tmp_path / file)
    index = {name: file for file, its in parts.items() for name in its}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    network = opened(tmp_path, size=32).network.eval()
    x = images(V2)
    torch.testing.assert_close(network.backbone(x), forward(V2, x)[0], rtol=1e-4, atol=1e-4)
    before = digest(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"other")
    assert digest(tmp_path) != before


def test_other_kinds_of_timm_are_read_if_their_backbone_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=10).eval()
    torch.save({"state_dict": below("module.", model.state_dict())}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"by names that are known .*name its backbone"):
        opened(tmp_path / "a.pth")
    params = registry.find("backbone", "timm").params
    given = params.model_validate({"name": "timm", "model": "convnext_atto"})
    found = opened(tmp_path / "a.pth", backbone=given, size=64)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        assert (found.network.eval().backbone(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert found.notes[-1].startswith("left out of the file: 2 tensors (state_dict.module.head.fc.weight")


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("vit_small_patch16_224", {}),
        ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("vit_small_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}),
        ("vit_small_patch16_224", {"global_pool": "avg"}),
        ("vit_small_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1}),
        ("vit_small_patch16_224", {"no_embed_class": True, "qkv_bias": False}),
        ("vit_small_patch16_224", {"qk_norm": True, "pre_norm": True, "mlp_ratio": 2.5}),
        ("vit_giant_patch14_dinov2", {"mlp_ratio": 3.7}),
        ("vit_small_patch16_dinov3", {"global_pool": "token"}),
        ("vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}),
        ("vit_small_plus_patch16_dinov3", {"global_pool": "token"}),
    ],
)
def test_state_dicts_of_timm_itself(model: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    source = timm.create_model(model, **small, **arguments).eval()
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    found = opened(tmp_path / "a.pth", size=32).network.eval().backbone
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source(x)
        assert (found(x) - expected).abs().max() < 1e-5 * expected.abs().max()

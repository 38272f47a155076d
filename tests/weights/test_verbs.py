"""The verbs eval and attend on networks that are no run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from naive_transformer import below, dino_head, dino_names, numbers, others
from PIL import Image
from torch import Tensor, nn

import dino_lab
from dino_lab.cli.app import main
from dino_lab.registry import registry

FILE = """\
data: {name: shapes, train_images: 48, test_images: 24, size: 32}
evaluators: [{name: knn, k: [5]}, {name: linear_probe}, {name: retrieval}]
"""
DATA = (
    "data: {name: shapes, train_images: 48, test_images: 24, size: 16}\nevaluators: [{name: knn, k: [5]}]\n"
)
N = numbers(width=64, depth=1, heads=1, patch=8)


@pytest.fixture
def with_(tmp_path: Path) -> Path:
    file = tmp_path / "with.yaml"
    file.write_text(FILE)
    return file


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "checkpoint.pth"
    teacher = below("backbone.", dino_names(N)) | dino_head(64)
    torch.save({"teacher": teacher, "student": below("module.backbone.", dino_names(others(N)))}, file)
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--device", "cpu"])


def test_a_file_is_scored_and_what_was_done_is_said(
    weights: Path, with_: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for of in ("teacher", "student"):
        to = tmp_path / f"{of}.json"
        assert run("eval", weights, "--with", with_, "--of", of, "--to", to) == 0
        found[of] = json.loads(to.read_text())
    assert found["teacher"]["results"] != found["student"]["results"]
    out = capsys.readouterr().out
    assert "weights of backbone: {name: timm, model: vit_base_patch16_224, arguments: {patch_size: 8, " in out
    assert "normalised by mean and deviation of ImageNet: the weights do not say how" in out
    assert "left out of the file: " in out
    assert any(note.startswith("left out") for note in found["teacher"]["notes"])
    assert dino_lab.evaluate(weights, with_, of="teacher", device="cpu") == {
        f"{one['evaluator']}.{name}": pytest.approx(value)
        for one in found["teacher"]["results"]
        for name, value in one["scores"].items()
    }


def test_a_folder_of_timm_is_scored(
    tmp_path: Path, with_: Path, tiny_spec: Callable, execute: Callable
) -> None:
    folder = execute(tiny_spec("train.epochs=1")).folder
    assert main(["export", str(folder), "--to", str(tmp_path / "exported")]) == 0
    with_.write_text(DATA)
    expected = dino_lab.evaluate(folder, with_, device="cpu")
    assert dino_lab.evaluate(tmp_path / "exported", with_, device="cpu") == expected


class Mean(nn.Module):
    """The mean of each channel, and its square."""

    dim = 6

    def __init__(self, channels: int, size: int, *, power: int = 2) -> None:
        super().__init__()
        self.power = power

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((2, 3))
        return torch.cat([mean, mean**self.power], 1)


def test_a_backbone_of_a_plugin_is_scored_by_name(with_: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_.write_text(DATA)
    with registry.scratch():
        registry.register("backbone", "mean")(Mean)
        assert run("eval", "plugin:mean", "--with", with_) == 0
        assert capsys.readouterr().out.startswith("knn.5nn")
        with_.write_text(DATA + "backbone: {name: mean, power: 3}\n")
        assert run("eval", "plugin:mean", "--with", with_) == 0
        with_.write_text(DATA + "backbone: {name: mean, power: x}\n")
        assert run("eval", "plugin:mean", "--with", with_) == 2
        assert "with.yaml:3:24: backbone.power: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plugin:nothing",), "no backbone is called 'nothing'"),
        (("timm:test_vit", "--untrained"), "with.yaml:3:1: backbone: timm:test_vit names a backbone itself"),
        (("plugin:vit",), "with.yaml:3:12: backbone.name: is 'resnet', and plugin:vit is asked for"),
        (("FILE", "--of", "student"), "tensors (conv1.weight, bn1.weight, bn1.bias, ...) of the backbone"),
    ],
)
def test_requests_that_do_not_fit(
    arguments: tuple[str, ...], message: str, with_: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_.write_text(DATA + "backbone: {name: resnet}\n")
    given = [str(weights) if part == "FILE" else part for part in arguments]
    assert run("eval", *given, "--with", with_) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_attention_of_a_file_is_drawn(
    weights: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "drawn"
    assert run("attend", weights, image, "--to", to, "--pixels", 32) == 0
    assert (to / "a.png").is_file()
    assert "weights of backbone: {" in capsys.readouterr().out
    odd = tmp_path / "odd.pth"
    torch.save(dino_names(numbers(width=48, depth=1, heads=2, patch=8)), odd)
    assert run("attend", odd, image, "--to", to) == 2
    assert "width 48 may have any number of heads" in capsys.readouterr().err
    backbone = "{name: vit, width: 48, depth: 1, heads: 2, patch: 8}"
    assert run("attend", odd, image, "--to", to, "--backbone", backbone, "--pixels", 32) == 0
    assert run("attend", odd, image, "--to", to, "--backbone", "{name: vitt}") == 2
    assert "no backbone is called 'vitt'; did you mean 'vit'?" in capsys.readouterr().err


def test_attention_of_rotary_transformers_is_that_of_their_layers() -> None:
    params = registry.find("backbone", "timm").params
    small = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 8}
    models = ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "eva02_tiny_patch14_224")
    for model in (*models, "eva02_base_patch14_224"):  # three projections
        given = params.model_validate({"name": "timm", "model": model, "arguments": small})
        torch.manual_seed(0)
        timm.layers.set_fused_attn(False)  # so that layers show their weights
        try:
            backbone = registry.build("backbone", given, 3, 32).eval()
        finally:
            timm.layers.set_fused_attn(True)
        for parameter in backbone.parameters():
            nn.init.normal_(parameter, std=0.2)
        attention = backbone.model.blocks[-1].attn
        heard: list[Any] = []
        attention.attn_drop.register_forward_hook(lambda _, inputs, out: heard.append(out))  # noqa: B023
        x = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            found = backbone.attention(x)
            theirs = heard[0]  # [N, heads, tokens, tokens]
        before = backbone.model.num_prefix_tokens
        torch.testing.assert_close(found, theirs[:, :, 0, before:].unflatten(2, (4, 4)), rtol=1e-4, atol=1e-6)
        assert found.std() > 1e-3


def test_the_timm_component_takes_arguments() -> None:
    params = registry.find("backbone", "timm").params
    given = {"name": "timm", "model": "vit_tiny_patch16_224", "arguments": {"embed_dim": 48, "depth": 1}}
    backbone = registry.build("backbone", params.model_validate(given), 3, 32)
    assert (backbone.dim, len(backbone.model.blocks)) == (48, 1)
    model, line = backbone.as_timm()
    again = eval(line, {"timm": timm})
    again.load_state_dict(model.state_dict())
    for arguments, message in (
        ({"in_chans": 1}, "arguments: in_chans of timm's vit_tiny_patch16_224 is said by data"),
        ({"deep": 1}, "refuses its arguments"),
        ({"depth": "many"}, "timm's vit_tiny_patch16_224"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.build("backbone", params.model_validate(given | {"arguments": arguments}), 3, 32)

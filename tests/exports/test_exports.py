"""Every format, by a reader that knows nothing of dino-lab, against the run it came from."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dino_lab.cli import app as cli
from dino_lab.errors import UserError
from dino_lab.exports import round_trip
from dino_lab.exports.export import export
from dino_lab.exports.exported_backbone import backbone_to_export
from dino_lab.exports.formats import Format, choose_format
from dino_lab.registry import register, registry
from dino_lab.runs.open import open_run

CPU = torch.device("cpu")
LACKING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
ONNX_MARKS = (
    pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}"),
    pytest.mark.filterwarnings("ignore"),
)
FORMATS = ["safetensors", "timm", pytest.param("onnx", marks=ONNX_MARKS), "torchscript"]
FILES = {"safetensors": "b.safetensors", "timm": "b", "onnx": "b.onnx", "torchscript": "b.pt"}
BACKBONES = {
    "vit": [],
    "timm vit": [
        "backbone={name: timm, model: vit_tiny_patch16_224}",
        "augment.global_size=32",
        "augment.local_size=16",
    ],
    "timm resnet": ["backbone={name: timm, model: resnet10t}"],
    "small stem": ["backbone={name: timm, model: resnet18, stem: small}"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Callable[[str], Path]:
    """A short run of each backbone, made once."""
    from dino_lab.spec.file import load
    from dino_lab.training.trainer import FitOptions, fit

    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            root = tmp_path_factory.mktemp("run")
            (root / "tiny.yaml").write_text(tiny_text)
            spec = load(root / "tiny.yaml", ["train.epochs=1", *BACKBONES[name]]).spec
            made[name] = fit(spec, registry, FitOptions(root, CPU)).folder
        return made[name]

    return run


def read(format: str, lines: str, images: Tensor, normalized: Tensor) -> Tensor:
    """Features by the lines that the export printed, for images in 0..1, and for what timm wants of them."""
    scope: dict[str, Any] = {"images": images.numpy() if format == "onnx" else images}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        exec(lines, scope)
        if "features" in scope:
            return torch.as_tensor(scope["features"])
        return scope["model"].eval()(normalized)


EXPORTS = [
    pytest.param(name, format, of, marks=ONNX_MARKS if format == "onnx" else ())
    for name in BACKBONES
    for format in FILES
    for of in (("teacher", "student") if name == "vit" else ("teacher",))
    if (name, format) != ("small stem", "timm")  # which timm has no argument for; see below
]


@pytest.mark.parametrize(("backbone", "format", "of"), EXPORTS)
def test_what_is_printed_gives_the_features_of_the_run(
    backbone: str, format: str, of: str, runs: Callable[[str], Path], tmp_path: Path
) -> None:
    to = tmp_path / FILES[format]
    done = export(runs(backbone), registry, to=to, format=Format(format), of=of)
    run = open_run(runs(backbone), registry, CPU)
    network, size = run.network(of).eval(), run.augment.groups[0][1]
    images = torch.rand(7, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = network.encode(images)
    found = read(format, done.lines, images, network.normalize(images))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert done.difference < 1e-5
    card = (to / "README.md" if format == "timm" else to.with_name(f"{to.name}.md")).read_text()
    assert all(
        text in card for text in (done.lines, run.spec.hash, "targets `center`", "knn/2", f"The {of}'s")
    )
    left = {"b"} if format == "timm" else {to.name, f"{to.name}.md"}
    assert {file.name for file in tmp_path.iterdir()} == left
    (tmp_path / "any").touch()
    modes = {file.stat().st_mode for file in tmp_path.rglob("*") if file.is_file()}
    assert len(modes) == 1, "all files are for whoever may read what the user writes"


def test_the_folder_is_what_timm_asks_for(runs: Callable[[str], Path], tmp_path: Path) -> None:
    """By a process that cannot import dino-lab; preprocessing comes from config.json alone."""
    to = tmp_path / "b"
    export(runs("vit"), registry, to=to, format=Format.timm, of="teacher")
    assert sorted(file.name for file in to.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((to / "config.json").read_text())
    assert config["model_args"]["embed_dim"] == 24
    code = (
        "import sys, json, timm; from timm.data import resolve_model_data_config as resolve\n"
        "assert 'dino_lab' not in sys.modules\n"
        f"m = timm.create_model('local-dir:{to}', pretrained=True); print(json.dumps(resolve(m)))"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    run = open_run(runs("vit"), registry, CPU)
    assert found["mean"] == pytest.approx(list(run.data.mean))
    assert found["std"] == pytest.approx(list(run.data.std))
    assert (found["input_size"], found["crop_pct"]) == ([3, 16, 16], 1.0)


def test_a_small_stem_is_no_configuration_of_timm(runs: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stem: small.*safetensors, onnx and torchscript can"):
        export(runs("small stem"), registry, to=tmp_path / "b", format=Format.timm, of="teacher")
    assert not list(tmp_path.iterdir())


def test_the_card_has_the_last_scores(runs: Callable[[str], Path], tmp_path: Path) -> None:
    to = tmp_path / "b.safetensors"
    export(runs("vit"), registry, to=to, format=Format.safetensors, of="teacher")
    rows = [json.loads(line) for line in (runs("vit") / "rows.jsonl").read_text().splitlines()]
    card = to.with_name("b.safetensors.md").read_text()
    assert f"| knn.5nn | {rows[-1]['knn.5nn']:.4f} | knn/2" in card
    assert "finished, 4 of 4 steps" in card


def test_a_kept_checkpoint_is_exported_with_its_own_scores(
    tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    folder = execute(tiny_spec("train.keep=[1]")).folder
    to = tmp_path / "b.pt"
    done = export(folder / "epoch_1.pt", registry, to=to, format=Format.torchscript, of="teacher")
    rows = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    first = next(row for row in rows if row["epoch"] == 1)
    card = to.with_name("b.pt.md").read_text()
    assert f"- Weights: of step {first['step']}\n" in card
    assert f"After step {first['step']}." in card
    assert f"| knn.5nn | {first['knn.5nn']:.4f} |" in card
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        kept, last = (
            open_run(path, registry, CPU).network("teacher").eval().encode(images)
            for path in (folder / "epoch_1.pt", folder)
        )
    torch.testing.assert_close(read("torchscript", done.lines, images, images), kept, rtol=1e-4, atol=1e-5)
    assert (kept - last).abs().max() > 1e-3


# ---- backbones of others, and what does not come back alike


@pytest.fixture
def _own_backbones() -> Iterator[None]:
    for name in registry.names("backbone"):
        registry.find("backbone", name)
    with registry.scratch():
        yield


def plain_backbone(name: str, branches: bool) -> None:
    @register("backbone", name)
    class Plain(nn.Module):
        """Mean colours through a layer; with `branches`, what it does depends on the image."""

        def __init__(self, channels: int, size: int) -> None:
            super().__init__()
            self.dim = 8
            self.layer = nn.Linear(channels, 8)

        def forward(self, images: Tensor) -> Tensor:
            colours = self.layer(images.mean((2, 3)))
            if branches and images.device.type != "meta" and images.std() > 1e-3:
                colours = colours * 2
            return colours


@pytest.mark.usefixtures("_own_backbones")
@pytest.mark.parametrize("format", FORMATS)
def test_a_backbone_without_timm(format: str, tiny_spec: Callable, execute: Callable, tmp_path: Path) -> None:
    plain_backbone("plain", branches=False)
    folder = execute(tiny_spec("backbone={name: plain}", "train.epochs=1", "evaluators=[]")).folder
    to = tmp_path / FILES[format]
    if format in ("onnx", "torchscript"):
        assert export(folder, registry, to=to, format=Format(format), of="teacher").difference < 1e-5
    else:
        with pytest.raises(
            UserError, match=r"'plain' has no timm model inside .* onnx and torchscript take any"
        ):
            export(folder, registry, to=to, format=Format(format), of="teacher")
        assert not to.exists()


@pytest.mark.usefixtures("_own_backbones")
def test_a_trace_that_took_one_branch_of_two_is_refused(
    tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    plain_backbone("forked", branches=True)
    folder = execute(tiny_spec("backbone={name: forked}", "train.epochs=1", "evaluators=[]")).folder
    into = tmp_path / "out"
    into.mkdir()
    with pytest.raises(UserError, match=r"other features than the run, by 5\.0e-01 .* nothing was written"):
        export(folder, registry, to=into / "b.pt", format=Format.torchscript, of="teacher")
    assert not list(into.iterdir())


@pytest.mark.parametrize("spoil", ["weight", "shape", "nan", "batch"])
def test_the_round_trip_sees_what_is_wrong(spoil: str, runs: Callable[[str], Path]) -> None:
    subject = backbone_to_export(open_run(runs("vit"), registry, CPU), "teacher")
    whole = subject.whole()

    def wrong(images: Tensor) -> Tensor:
        features = whole(images)
        if spoil == "weight":
            return features + 2 * round_trip.LIMIT * subject.features.abs().max()
        if spoil == "shape":
            return features[:, 1:]
        if spoil == "nan":
            return features * float("nan")
        return features if len(images) > 1 else features * 2

    assert round_trip.check_round_trip(subject, lambda: whole) < 1e-6
    with pytest.raises(UserError, match="nothing was written"):
        round_trip.check_round_trip(subject, lambda: wrong)


# ---- the command line


@pytest.mark.parametrize(
    ("to", "given", "meant"),
    [
        ("a.safetensors", None, "safetensors"),
        ("a.ONNX", None, "onnx"),
        ("a.pt", None, "torchscript"),
        ("folder", None, "timm"),
        ("folder.v2", "timm", "timm"),
    ],
)
def test_the_ending_says_the_format(to: str, given: str | None, meant: str) -> None:
    assert choose_format(Path(to), None if given is None else Format(given)) is Format(meant)


def test_bad_requests_are_one_line(
    runs: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("x")
    assert cli.main(["export", str(tmp_path / "best.pt"), "--to", "b.pt"]) == 2
    assert "neither the folder of a run nor a checkpoint in one" in capsys.readouterr().err
    for arguments, words in [
        (["--to", "b.bin"], "should end in .safetensors, .onnx, .pt"),
        (["--to", "b.pt", "--format", "onnx"], "of format onnx should end in .onnx"),
        (["--to", str(tmp_path / "no" / "b.pt")], "there is no folder"),
        (["--to", str(full)], "is there already"),
        (["--to", str(full), "--format", "onnx"], "should end in .onnx"),
    ]:
        assert cli.main(["export", str(runs("vit")), *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert [file.name for file in full.iterdir()] == ["mine.txt"]


def test_a_missing_package_is_one_line(
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert cli.main(["export", str(runs("vit")), "--to", str(tmp_path / "b.onnx")]) == 2
    err = capsys.readouterr().err
    assert err == "--format onnx needs onnx, which is not installed: pip install 'dino-lab[onnx]'\n"

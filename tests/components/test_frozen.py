"""Teachers out of a run and out of timm."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.building.check import check
from dino_lab.components.backbones.vit import Vit
from dino_lab.components.heads.linear import LinearHead
from dino_lab.components.teachers.frozen import Frozen, TimmModel, TrainedRun, TrainedWeights
from dino_lab.errors import Misfit, UserError
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.runs.checkpoint import save_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import open_run
from dino_lab.sweeps.run import run_sweep
from dino_lab.training.build import build
from dino_lab.types import Output, Views

CPU = torch.device("cpu")
LABELS = torch.zeros(4, dtype=torch.long)
NOTHING = Output(torch.empty(0), torch.empty(0), torch.empty(0))
METHODS = {
    "dino": [],
    "byol": [
        "augment={name: two_view, size: 16}",
        "head={name: mlp, hidden: 32, dim: 32}",
        "predictor={name: mlp, hidden: 32, dim: 32}",
        "optim.freeze_last_layer=0",
    ],
    "resnet": ["backbone={name: timm, model: resnet10t}", "teacher={name: ema, buffers: ema}"],
    "siamese": ["teacher={name: siamese}"],
}


def student(outputs: int = 32) -> Network:
    """Another network than that of any run here, with as many outputs."""
    return Network(Vit(3, 16, width=12, depth=1, heads=2, patch=8), LinearHead(12, dim=outputs))


def crops(size: int = 16, seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    return Views([torch.rand(2, 4, 3, size, size, generator=generator)], 1 - torch.eye(2, dtype=torch.int8))


@pytest.fixture(scope="module")
def trained() -> list[Path]:
    return []


@pytest.fixture
def folder(
    trained: list[Path],
    tiny_spec: Callable,
    execute: Callable,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> Path:
    """The folder of a finished run, to be spoiled; it is trained once."""
    if not trained:
        runs = tmp_path_factory.mktemp("runs")
        trained.append(execute(tiny_spec("train.epochs=1", "evaluators=[]"), runs=runs).folder)
    return shutil.copytree(trained[0], tmp_path / "trained")


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
@pytest.mark.parametrize("of", ["teacher", "student"])
def test_the_teacher_is_the_network_of_the_run(
    settings: list[str], of: Any, tiny_spec: Callable, execute: Callable
) -> None:
    folder = execute(tiny_spec(*settings, "train.epochs=1", "evaluators=[]")).folder
    network = open_run(folder, registry, CPU).network(of).eval()
    with torch.no_grad():
        theirs = network(crops().crops).z
    teacher = Frozen(student(), run=TrainedRun(path=folder, of=of))
    shutil.rmtree(folder)  # nothing of it is still needed
    torch.testing.assert_close(teacher(crops(), NOTHING, LABELS), theirs, rtol=1e-5, atol=1e-6)
    assert theirs.std() > 0
    assert not any(p.requires_grad for p in teacher.parameters())


def test_one_teacher_and_students_of_other_widths_and_patches(
    folder: Path, tiny: Path, tmp_path: Path
) -> None:
    """The head is the projection to the teacher's width, 24, whatever the width of the student."""
    file = tmp_path / "students.yaml"
    file.write_text(
        f"base: {tiny.name}\nmetric: knn.5nn\n"
        f"set: {{teacher: {{name: frozen, run: {{path: {folder}, output: features}}}}, loss: {{name: mse}},\n"
        "  head: {name: linear, dim: 24}, targets: {name: identity}, train.epochs: 1,\n"
        "  optim.freeze_last_layer: 0}\n"
        "variants: {wide: {backbone.width: 32}, coarse: {backbone.width: 16, backbone.patch: 8}}\n"
        "baseline: wide\n"
    )
    result = run_sweep(file, runs=tmp_path / "runs", executor="inline")
    assert [line.ended for line in result.table] == ["finished"] * 2
    widths = [open_run(arm.folders[0], registry).backbone("student").backbone.dim for arm in _arms(result)]
    assert widths == [32, 16]
    teacher = Frozen(student(24), run=TrainedRun(path=folder, output="features"))
    network = open_run(folder, registry, CPU).backbone("teacher").eval()
    with torch.no_grad():
        theirs = torch.stack([network.encode(view) for view in crops().crops[0]])
    torch.testing.assert_close(teacher(crops(), NOTHING, LABELS), theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"has 24 outputs, and head\.dim is 32"):
        Frozen(student(32), run=TrainedRun(path=folder, output="features"))


def _arms(result: Any) -> Any:
    return result.findings.study.arms


def test_of_a_distilled_run_the_student_teaches(folder: Path, tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec(
        f"teacher={{name: frozen, run: {{path: {folder}}}}}", "train.epochs=1", "evaluators=[]", "seed=1"
    )
    second = execute(spec).folder
    network = open_run(second, registry, CPU).network("student").eval()
    teacher = Frozen(student(), run=TrainedRun(path=second))
    with torch.no_grad():
        theirs = network(crops().crops).z
    torch.testing.assert_close(teacher(crops(), NOTHING, LABELS), theirs, rtol=1e-5, atol=1e-6)


def cut(folder: Path) -> None:
    file = folder / "last.pt"
    file.write_bytes(file.read_bytes()[:-1000])


def other_head(folder: Path) -> None:
    file = folder / "spec.yaml"
    file.write_text(file.read_text().replace("bottleneck: 16", "bottleneck: 24"))


def unknown_backbone(folder: Path) -> None:
    file = folder / "spec.yaml"
    file.write_text(file.read_text().replace("name: vit", "name: vitt"))


def wrong_width(folder: Path) -> None:
    file = folder / "spec.yaml"
    file.write_text(file.read_text().replace("width: 24", "width: wide"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, r"no run lies here \(spec\.yaml: No such file or directory\)"),
        (lambda folder: (folder / "last.pt").unlink(), r"there is no checkpoint yet \(last\.pt\)"),
        (cut, r"last\.pt: not a whole checkpoint \("),
        (lambda folder: torch.save([1], folder / "last.pt"), r"last\.pt: not a whole checkpoint \("),
        (lambda folder: torch.save({"a": Path()}, folder / "last.pt"), "not a whole checkpoint"),
        (other_head, r"do not belong together: head\.\S+ is \(\d+, \d+\) in one, \(\d+, \d+\) in the other"),
        (unknown_backbone, "no backbone is called 'vitt'; did you mean 'vit'"),
        (wrong_width, r"spec\.yaml:\d+:\d+: backbone\.width: must be a whole number, got 'wide'"),
        (lambda folder: (folder / "spec.yaml").write_text("[1, 2]"), r"spec\.yaml:1:1: a spec is a mapping"),
        (lambda folder: (folder / "spec.yaml").write_text("a: ["), r"spec\.yaml:1:5: not valid YAML"),
        (lambda folder: (folder / "spec.yaml").write_bytes(b"\xff"), r"spec\.yaml: cannot be read"),
    ],
)
def test_a_run_that_cannot_teach_says_why(
    spoil: Callable, message: str, folder: Path, tiny_spec: Callable
) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        Frozen(student(), run=TrainedRun(path=folder))
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value) or "vitt" in message
    with pytest.raises(Misfit) as misfit:
        check(tiny_spec(f"teacher={{name: frozen, run: {{path: {folder}}}}}"), registry)
    assert misfit.value.loc == ("teacher",)


def test_a_run_with_another_number_of_outputs_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the network of \S+ has 32 outputs, and head\.dim is 48"):
        Frozen(student(48), run=TrainedRun(path=folder))


def test_a_teacher_that_cannot_see_the_crops_is_refused(folder: Path, tiny_spec: Callable) -> None:
    settings = ["augment.global_size=18", "augment.local_size=6", "backbone.patch=6"]
    with pytest.raises(Misfit, match="refuses the crops") as caught:
        check(tiny_spec(*settings, f"teacher={{name: frozen, run: {{path: {folder}}}}}"), registry)
    assert caught.value.loc == ("teacher",)


def test_a_resumed_student_reads_its_teacher_again(
    folder: Path, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    """Its checkpoints hold no copy of the teacher, which never changes, and it ends at the same weights."""
    spec = tiny_spec(f"teacher={{name: frozen, run: {{path: {folder}}}}}", "seed=1", "evaluators=[]")
    whole = execute(spec, runs=tmp_path / "whole")
    steps = iter(range(100))
    assert execute(spec, stop=lambda: next(steps) >= 4).step == 5
    second = execute(spec)
    assert second.status == "finished"
    a, b = (torch.load(run.folder / "last.pt", weights_only=True) for run in (whole, second))
    assert a["teacher"].keys() == b["teacher"].keys() == {"_extra_state"}
    assert a["student"].keys() == b["student"].keys()
    assert all(torch.equal(value, b["student"][key]) for key, value in a["student"].items())


def test_a_resumed_student_refuses_another_teacher(
    folder: Path, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    """Regression: the run that the teacher comes from was trained further, and the student went on with it."""
    spec = tiny_spec(f"teacher={{name: frozen, run: {{path: {folder}}}}}", "seed=1", "evaluators=[]")
    steps = iter(range(100))
    assert execute(spec, stop=lambda: next(steps) >= 4).step == 5
    other = execute(tiny_spec("train.epochs=1", "evaluators=[]", "seed=7"), runs=tmp_path / "other").folder
    (folder / "last.pt").unlink()
    found = torch.load(other / "last.pt", weights_only=True)
    save_checkpoint(folder, RunFolder(folder).hash, 4, 0.0, {k: found[k] for k in ("student", "teacher")})
    with pytest.raises(UserError, match="teacher: its weights are others than when this run began"):
        execute(spec)


def test_one_teacher_only(folder: Path) -> None:
    with pytest.raises(ValueError, match="either run, timm or weights"):
        Frozen(student(), run=TrainedRun(path=folder), timm=TimmModel(model="resnet10t"))


@pytest.mark.parametrize(("output", "outputs"), [("logits", 1000), ("features", 96)])
@pytest.mark.parametrize("size", [16, 160])
def test_a_model_of_timm_sees_what_it_was_made_for(output: Any, outputs: int, size: int) -> None:
    learner = student(outputs)
    torch.manual_seed(0)
    teacher = Frozen(learner, timm=TimmModel(model="test_resnet", pretrained=False, output=output))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1000 if output == "logits" else 0).eval()
    config = model.pretrained_cfg
    assert config["input_size"] == (3, 160, 160)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    images = (crops(size).crops[0].flatten(0, 1) - mean) / std
    if size != 160:
        images = F.interpolate(images, 160, mode="bicubic", antialias=True)
    with torch.no_grad():
        theirs = model(images).view(2, 4, outputs)
    torch.testing.assert_close(teacher(crops(size), NOTHING, LABELS), theirs, rtol=1e-4, atol=1e-5)
    assert teacher.network is None
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("source", "outputs", "message"),
    [
        ({"model": "resnet18"}, 32, r"timm's resnet18 has 1000 outputs, and head\.dim is 32"),
        (
            {"model": "resnet18", "output": "features"},
            32,
            r"timm's resnet18 has 512 outputs, and head\.dim is 32",
        ),
        ({"model": "resnet81"}, 32, "timm has no model 'resnet81'; did you mean 'resnet"),
        ({"model": "vit_small_patch14_dinov2"}, 32, "no classifier; take output: features"),
        ({"model": "botnet50ts_256"}, 32, "no pretrained weights for botnet50ts_256"),
    ],
)
def test_a_model_that_cannot_teach_says_why(source: dict[str, Any], outputs: int, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        Frozen(student(outputs), timm=TimmModel(**source))


def test_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("cannot reach the hub\nand more")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    message = r"^timm's resnet18: its weights could not be had \(cannot reach the hub\)$"
    with pytest.raises(UserError, match=message):
        Frozen(student(1000), timm=TimmModel(model="resnet18"))


def test_a_check_downloads_nothing_and_a_run_does(
    monkeypatch: pytest.MonkeyPatch, tiny_spec: Callable
) -> None:
    asked: list[bool] = []
    create = timm.create_model

    def spy(model: str, *, pretrained: bool, **arguments: Any) -> nn.Module:
        asked.append(pretrained)
        return create(model, pretrained=False, **arguments)

    monkeypatch.setattr(timm, "create_model", spy)
    spec = tiny_spec("teacher={name: frozen, timm: {model: resnet18}}", "head.dim=1000")
    check(spec, registry)
    assert asked == [False]
    build(spec, registry, CPU)
    assert asked == [False, False, True]


def test_a_run_learns_from_a_model_of_timm(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(
        tiny_spec(
            "teacher={name: frozen, timm: {model: test_resnet, pretrained: false, output: features}}",
            "head.dim=96",
            "train.epochs=1",
            "targets={name: softmax, temperature: 1.0}",
        )
    )
    assert outcome.status == "finished"


def values(network: Network) -> list[Tensor]:
    return [value.clone() for value in network.state_dict().values()]


def test_training_leaves_the_teacher_alone(folder: Path, tiny_spec: Callable) -> None:
    from dino_lab.training.loop import train

    run = build(tiny_spec(f"teacher={{name: frozen, run: {{path: {folder}}}}}", "seed=1"), registry, CPU)
    before = values(run.teacher.source)
    for _ in zip(range(5), train(run), strict=False):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, values(run.teacher.source), strict=True))
    assert run.network("teacher") is run.student


def test_weights_of_other_projects_teach(tiny_spec: Callable, execute: Callable, tmp_path: Path) -> None:
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=0
    ).eval()
    state = {f"module.backbone.{name}": value for name, value in model.state_dict().items()}
    file = tmp_path / "dino.pth"
    torch.save({"teacher": state}, file)
    teacher = Frozen(student(64), weights=TrainedWeights(path=file, size=32))
    x = F.interpolate(crops().crops[0].flatten(0, 1), (32, 32), mode="bicubic", antialias=True)
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        expected = model((x - mean) / std).unflatten(0, (2, 4))
    # The network resizes what is normalised, and clamps nothing.
    torch.testing.assert_close(teacher(crops(), NOTHING, LABELS), expected, rtol=1e-4, atol=1e-5)
    own = Frozen(student(64), weights=TrainedWeights(path=file))
    assert own(crops(), NOTHING, LABELS).shape == (2, 4, 64)
    given = f"teacher={{name: frozen, weights: {{path: {file}}}}}"
    with pytest.raises(Misfit, match=r"the backbone of .*dino.pth has 64 outputs, and head.dim is 32"):
        check(tiny_spec(given), registry)
    spec = tiny_spec(
        given, "head={name: mlp, hidden: 16, dim: 64}", "optim.freeze_last_layer=0", "train.epochs=1"
    )
    assert execute(spec).status == "finished"
    with pytest.raises(ValueError, match="either run, timm or weights"):
        Frozen(
            student(), weights=TrainedWeights(path=file), timm=TimmModel(model="resnet18", pretrained=False)
        )

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from dino_lab.building.check import check
from dino_lab.errors import Misfit
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.training.build import build
from dino_lab.training.loop import train
from dino_lab.types import Output, Views

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("settings", "loc", "message"),
    [
        (["train.batch_size=97"], ("train", "batch_size"), "more than the 96 training images"),
        (["backbone.patch=5"], ("backbone",), "5"),
        (["augment.local_size=10"], ("backbone",), "10"),
        (["predictor={name: mlp, hidden: 8, dim: 8}"], ("predictor", "dim"), "32 outputs, not 8"),
        (["head={name: linear, dim: 8}"], ("optim", "freeze_last_layer"), "no last layer"),
        (["optim.constant_predictor_lr=true"], ("optim", "constant_predictor_lr"), "there is no predictor"),
        (["train.accumulate=25"], ("train", "accumulate"), "parts"),
        (["backbone={name: timm, model: resnet18x}"], ("backbone",), "resnet18"),
        (["data={name: parquet, path: absent, size: 16}"], ("data", "path"), "absent does not exist"),
        (
            ["teacher={name: labels}", "head.dim=8"],
            ("head", "dim"),
            "8 outputs are too few for the 10 classes of the data",
        ),
        (["teacher={name: periodic, buffers: own, mode: eval}"], ("teacher",), "statistics of its own"),
        (["loss={name: info_nce, in_batch: false}"], ("loss",), "nothing to push apart"),
        (["augment={name: triplet, size: 16}"], ("loss", "name"), "knows no negatives"),
    ],
)
def test_what_does_not_fit_is_said_before_work_starts(
    settings: list[str], loc: tuple[str, ...], message: str, tiny_spec: Callable
) -> None:
    with pytest.raises(Misfit) as caught:
        build(tiny_spec(*settings), registry, CPU)
    assert caught.value.loc == loc
    assert message in caught.value.message


MLP = ("head={name: mlp, hidden: 8, dim: 16}", "targets={name: identity}", "optim.freeze_last_layer=0")
ONE_WAY = ("augment={name: asymmetric, size: 16, one_way: true}", "loss={name: info_nce, queue: 16}")
ONE_VIEW = ("augment={name: single, size: 16}", "teacher={name: labels}", "loss={name: cross_entropy}")
RESNET = ("backbone={name: timm, model: test_resnet}", "augment.local_views=1", "augment.local_size=16")
LITTLE = "train.batch_size: batch norm needs at least 2 images at once, and gets 1$"


@pytest.mark.parametrize(
    ("settings", "batch", "parts", "message"),
    [
        ((*MLP, *ONE_WAY), 10, 4, None),  # a head sees all images at once
        ((*MLP, *ONE_WAY), 1, 1, LITTLE),
        ((*MLP, *ONE_VIEW), 1, 1, LITTLE),
        ((*MLP, *ONE_VIEW), 2, 1, None),
        (RESNET, 1, 1, LITTLE),
        (RESNET, 8, 1, None),
        ((), 1, 1, None),  # no batch norm
        (("head.batch_norm=true",), 1, 1, None),  # four views of an image are four values
    ],
)
def test_batch_norm_never_gets_one_image(
    tiny_spec: Callable, settings: tuple[str, ...], batch: int, parts: int, message: str | None
) -> None:
    """Regression: validated, and ended in torch's "Expected more than 1 value per channel"."""
    spec = tiny_spec(*settings, f"train.batch_size={batch}", f"train.accumulate={parts}")
    if message is None:
        check(spec, registry)
        next(train(build(spec, registry, CPU)))
        return
    with pytest.raises(Misfit, match=message):
        check(spec, registry)


def test_pairs_to_push_apart_need_a_loss_with_negatives(tiny_spec: Callable) -> None:
    class Repelling(nn.Module):
        """Two views that repel."""

        groups = ((2, 16),)

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("pairs", torch.tensor([[1, -1], [-1, 1]], dtype=torch.int8))

        def forward(self, images: Tensor, generator: torch.Generator) -> Views:
            return Views([images[None].float() / 255], self.pairs)

    with registry.scratch():
        registry.register("augment", "repelling")(Repelling)
        with pytest.raises(Misfit, match="knows no negatives") as caught:
            check(tiny_spec("augment={name: repelling}"), registry)
    assert caught.value.loc == ("loss", "name")


def test_a_teacher_must_answer_as_the_student_does(tiny_spec: Callable) -> None:
    class Terse(nn.Module):
        """One number for each image."""

        network = None

        def __init__(self, student: Network) -> None:
            super().__init__()

        def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
            return student.z[:2, :, :1]

        def update(self, student: Network, progress: float, ends_epoch: bool) -> None: ...

    with registry.scratch():
        registry.register("teacher", "terse")(Terse)
        with pytest.raises(Misfit, match=r"gives \(2, 2, 1\) .* not \(2, 2, 32\)") as caught:
            check(tiny_spec("teacher={name: terse}"), registry)
    assert caught.value.loc == ("teacher",)


class Learned(nn.Module):
    """A loss with a temperature to learn."""

    negatives = cross_entropy = False

    def __init__(self, dim: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.scale = nn.ParameterDict({"log": nn.Parameter(torch.zeros(()), requires_grad=not frozen)})

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return (student[0] - target[0]).square().mean() * self.scale["log"].exp()


class LearnedWeight(nn.Module):
    """A regularizer with a weight to learn."""

    weight = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, views: Views, student: Output) -> Tensor:
        return self.factor * student.z.square().mean()


class Reader(nn.Module):
    """A teacher that keeps the student, whose parameters are trained, and is it."""

    network = None

    def __init__(self, student: Network) -> None:
        super().__init__()
        self.student = student

    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        return student.z[:2].detach()

    def update(self, student: Network, progress: float, ends_epoch: bool) -> None: ...


def test_a_parameter_that_no_optimizer_gets_is_refused(tiny_spec: Callable) -> None:
    with registry.scratch():
        registry.register("loss", "learned")(Learned)
        registry.register("regularizer", "learned")(LearnedWeight)
        registry.register("teacher", "reader")(Reader)
        with pytest.raises(Misfit, match=r"its parameter 'scale\.log' would never be trained: ") as caught:
            check(tiny_spec("loss={name: learned}"), registry)
        assert caught.value.loc == ("loss",)
        given = "regularizers=[{name: koleo}, {name: learned}]"
        with pytest.raises(Misfit, match=r"its parameter 'factor' would never") as caught:
            check(tiny_spec(given), registry)
        assert caught.value.loc == ("regularizers", 1)
        check(tiny_spec("loss={name: learned, frozen: true}", "teacher={name: reader}"), registry)


def test_changing_the_head_leaves_the_backbone_as_it_was(tiny_spec: Callable) -> None:
    one = build(tiny_spec(), registry, CPU)
    other = build(tiny_spec("head.dim=48", "head.hidden=40"), registry, CPU)
    for a, b in zip(one.student.backbone.parameters(), other.student.backbone.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_other_weights_and_crops(tiny_spec: Callable) -> None:
    one, other = (build(tiny_spec(f"seed={seed}"), registry, CPU) for seed in (0, 1))
    name = "backbone.model.blocks.0.attn.qkv.weight"
    weights = [dict(run.student.named_parameters()) for run in (one, other)]
    assert name in weights[0]
    assert not torch.equal(weights[0][name], weights[1][name])
    images = next(one.data.train(24, 0, 0))[0]
    crops = [run.augment.forward(images, run.generator(0)).crops[0] for run in (one, other)]
    assert not torch.equal(*crops)


def test_the_crops_of_a_step_can_be_made_again(tiny_spec: Callable) -> None:
    run = build(tiny_spec(), registry, CPU)
    images = next(run.data.train(24, 0, 0))[0]
    again = [run.augment.forward(images, run.generator(7)).crops[1] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], run.augment.forward(images, run.generator(8)).crops[1])


def trained(tiny_spec: Callable, *settings: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and last weights of a short run."""
    run = build(tiny_spec("train.log_every=1", *settings), registry, CPU)
    losses = [row.numbers["loss"] for row in islice(train(run), 3)]
    return losses, run.student.state_dict()


def test_gradient_checkpointing_changes_no_bit(tiny_spec: Callable) -> None:
    settings = ["backbone.drop_path=0.5", "backbone.depth=3"]
    plain, saving = (
        trained(tiny_spec, *settings, f"train.gradient_checkpointing={on}") for on in ("false", "true")
    )
    assert plain[0] == saving[0]
    assert plain[0][0] != plain[0][1]
    assert all(torch.equal(value, saving[1][key]) for key, value in plain[1].items())


def test_gradient_checkpointing_keeps_fewer_activations(tiny_spec: Callable) -> None:
    kept = []
    for on in ("false", "true"):
        run = build(tiny_spec("backbone.depth=4", f"train.gradient_checkpointing={on}"), registry, CPU)
        sizes: list[int] = []

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run.student.backbone(torch.rand(16, 3, 16, 16))
        kept.append(sum(sizes))
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.parametrize(
    ("model", "message"),
    [("resnet10t", "resnet10t has batch norm"), ("vgg11", "timm's vgg11 cannot do that")],
)
def test_gradient_checkpointing_is_refused_where_it_cannot_be(
    model: str, message: str, tiny_spec: Callable
) -> None:
    spec = tiny_spec(
        f"backbone={{name: timm, model: {model}}}",
        "augment={name: two_view, size: 32}",
        "train.gradient_checkpointing=true",
    )
    with pytest.raises(Misfit, match=message) as caught:
        build(spec, registry, CPU)
    assert caught.value.loc == ("train", "gradient_checkpointing")


def test_channels_last_changes_the_memory_and_not_the_result(tiny_spec: Callable) -> None:
    settings = ["backbone={name: timm, model: resnet10t}", "augment={name: two_view, size: 32}"]
    first, last = (trained(tiny_spec, *settings, f"train.channels_last={on}") for on in ("false", "true"))
    name = "backbone.model.layer1.0.conv1.weight"
    formats = [weights[name].is_contiguous(memory_format=torch.channels_last) for _, weights in (first, last)]
    assert formats == [False, True]
    assert last[0] == pytest.approx(first[0], rel=1e-3)


def test_a_second_evaluator_of_a_name_bears_a_number(tiny_spec: Callable) -> None:
    run = build(
        tiny_spec("evaluators=[{name: knn, k: [5]}, {name: knn, k: [5], of: student}]"), registry, CPU
    )
    found = [name for scored in run.evaluate(run.due(0)) for name in scored.named_scores]
    assert [name for name in found if name.endswith("5nn")] == ["knn.5nn", "knn_2.5nn"]


def test_evaluation_leaves_the_run_as_it_was(tiny_spec: Callable) -> None:
    run = build(tiny_spec(), registry, CPU)
    before = {key: value.clone() for key, value in run.student.state_dict().items()}
    modes = [module.training for module in run.teacher.modules()]
    (scored,) = run.evaluate(run.due(0))
    assert scored.named_scores.keys() >= {"knn.5nn"}
    assert all(torch.equal(value, before[key]) for key, value in run.student.state_dict().items())
    assert modes == [module.training for module in run.teacher.modules()]

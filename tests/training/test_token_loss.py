"""A second objective on patch tokens: `token_head`, `token_targets`, `token_loss`, `token_weight`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.building.check import check
from dino_lab.building.token_objective import TokenObjective, resized
from dino_lab.components.backbones.resnet import ResNet
from dino_lab.components.backbones.vit import Vit
from dino_lab.components.losses.cross_entropy import CrossEntropy
from dino_lab.components.losses.mse import Mse
from dino_lab.components.targets.center import Center
from dino_lab.components.teachers.frozen import TimmModel, load_timm
from dino_lab.errors import Misfit
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.runs.open import open_run
from dino_lab.training.build import build
from dino_lab.training.loop import train
from dino_lab.types import Views

CPU = torch.device("cpu")
DENSE = (
    "head={name: linear, dim: 24}",
    "teacher={name: frozen}",
    "targets={name: identity}",
    "loss={name: mse}",
    "token_loss={name: mse}",
    "optim.freeze_last_layer=0",
    "evaluators=[]",
)
HEAD = "token_head={name: linear, dim: 24}"
TIMM = [
    "teacher={name: frozen, timm: {model: test_vit, pretrained: false, output: features}}",
    "head={name: linear, dim: 64}",
]
NONE = "backbone={name: timm, model: efficientvim_m1}"  # several maps, of which none is the last
LARGE = ["augment.global_size=64", "augment.local_size=32"]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_distance_is_that_of_each_token_and_its_counterpart() -> None:
    """2 - 2 cos (BYOL, Eq. 2) of the two vectors at one place of one crop, mean over all places."""
    student, teacher = random(2, 3, 5, 4, 6), random(2, 3, 5, 4, 6) + 1
    wanted = 2 - 2 * F.cosine_similarity(student, teacher, dim=2).mean()
    found = TokenObjective(None, Mse(5), 1.0)(student, teacher, 0.0)
    torch.testing.assert_close(found, wanted)


def test_targets_see_each_token_as_a_sample() -> None:
    """DINO's Eq. 1 to 4 token by token; the centre is the mean of all of the teacher's tokens."""
    student, teacher = random(2, 3, 5, 2, 2), random(2, 3, 5, 2, 2) + 1
    center = Center(5)
    center.mean.copy_(random(5))
    loss = 0.0
    for view in range(2):
        for image in range(3):
            for y in range(2):
                for x in range(2):
                    ours, theirs = student[view, image, :, y, x], teacher[view, image, :, y, x]
                    target = ((theirs - center.mean) / 0.04).softmax(0)
                    loss -= float((target * (ours / 0.1).log_softmax(0)).sum()) / 24
    moved = 0.9 * center.mean + 0.1 * teacher.mean((0, 1, 3, 4))
    found = TokenObjective(center, CrossEntropy(5), 1.0)(student, teacher, 0.0)
    assert float(found) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(center.mean, moved)


def test_a_map_of_another_grid_is_resized() -> None:
    """Half the side is the weighted mean of a triangle of 4 pixels; a plane stays a plane where it grows."""
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    plane = (3 * x - 2 * y).expand(1, 1, 1, 4, 4)
    assert resized(plane, (4, 4)) is plane
    smaller = resized(plane, (2, 2))[0, 0, 0]
    weights = torch.tensor([[3.0, 3, 1, 0], [0, 1, 3, 3]]) / 7  # of a triangle of width 4, at its edges
    torch.testing.assert_close(smaller, weights @ plane[0, 0, 0] @ weights.T)
    larger = resized(plane, (8, 8))[0, 0, 0]
    torch.testing.assert_close(larger[2:6, 3] - larger[2:6, 2], torch.full((4,), 1.5))


@pytest.mark.parametrize(
    "backbone", [Vit(3, 16, width=12, depth=2, heads=2, patch=4), ResNet(3, 16, width=4)]
)
def test_a_network_gives_the_tokens_of_its_backbone(backbone: Any) -> None:
    """In one forward with the features, and through the head token by token."""
    head = nn.Linear(backbone.dim, 7)
    network = Network(backbone.eval(), nn.Identity(), token_head=head, mean=(0.5,) * 3, std=(0.25,) * 3)
    crops = [random(2, 4, 3, 16, 16), random(3, 4, 3, 8, 8)]
    with torch.no_grad():
        found = network(crops)
        images = (crops[0][1] - 0.5) / 0.25
        tokens = backbone.tokens(images)
        features = backbone(images)
    assert found.tokens is not None
    assert found.features.shape[0] == 5
    torch.testing.assert_close(found.features[1], features, rtol=1e-5, atol=1e-6)
    assert found.tokens.shape == (2, 4, 7, *tokens.shape[2:])
    wanted = head(tokens[3, :, -1, 0])
    torch.testing.assert_close(found.tokens[1, 3, :, -1, 0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("output", ["features", "logits"])
def test_a_model_of_timm_gives_tokens_beside_its_outputs(model: str, output: Any) -> None:
    network = load_timm(TimmModel(model=model, pretrained=False, output=output)).eval()
    network.token_head = nn.Identity()
    crops = [random(1, 2, 3, 96, 96)]
    inner: Any = network.backbone
    size = timm.get_pretrained_cfg(model).input_size[1:]
    with torch.no_grad():
        found = network(crops)
        images = F.interpolate(network.normalize(crops[0][0]), size, mode="bicubic", antialias=True)
        last = inner.model.forward_features(images)
        outputs = inner.model(images)
    assert found.tokens is not None
    torch.testing.assert_close(found.z[0], outputs, rtol=1e-4, atol=1e-5)
    if last.ndim == 3:
        last = last[:, inner.model.num_prefix_tokens :].mT.unflatten(2, found.tokens.shape[-2:])
    torch.testing.assert_close(found.tokens[0], last, rtol=1e-4, atol=1e-5)


def test_the_student_learns_the_teachers_tokens(tiny_spec: Callable) -> None:
    """The head's own loss has no hold on tokens: with a weight of 0 they do not come nearer."""

    def fall(weight: float) -> float:
        settings = (HEAD, "train.epochs=12", "train.log_every=1", "optim.lr=0.01", f"token_weight={weight}")
        rows = [
            row.numbers["token_loss"] for row in train(build(tiny_spec(*DENSE, *settings), registry, CPU))
        ]
        return sum(rows[-4:]) / sum(rows[:4])

    assert fall(3.0) < 0.33
    assert fall(0.0) > 0.8


def test_its_weight_multiplies_its_gradient(tiny_spec: Callable) -> None:
    """Only the token head learns nothing of the outputs' loss, so its gradient is that of the tokens alone."""

    def gradient(weight: float) -> Tensor:
        run = build(tiny_spec(*DENSE, HEAD, "optim.clip=null", f"token_weight={weight}"), registry, CPU)
        next(train(run))
        head: Any = run.student.token_head
        return head.linear.weight.grad.clone()

    torch.testing.assert_close(gradient(3.0), 3 * gradient(1.0))


def test_a_student_of_another_width_and_patch(tiny_spec: Callable, execute: Callable) -> None:
    """The head is the projection to the teacher's width, and its map is made as fine as the student's."""
    folder = execute(tiny_spec("train.epochs=1", "evaluators=[]")).folder
    teacher = f"teacher={{name: frozen, run: {{path: {folder}, output: features}}}}"
    student = ("backbone.width=12", "backbone.patch=8", "augment.local_size=8")
    spec = tiny_spec(*DENSE, HEAD, teacher, *student, "train.epochs=1", "train.log_every=1", "name=small")
    run = build(spec, registry, CPU)
    row = next(train(run)).numbers
    assert 0 < row["token_loss"] < 4
    network = open_run(folder, registry, CPU).backbone("teacher").eval()
    views = Views([random(2, 3, 3, 16, 16)], torch.ones(2, 2, dtype=torch.int8))
    teaching: Any = run.teacher
    with torch.no_grad():
        theirs = network.backbone.tokens(network.normalize(views.crops[0][1]))  # type: ignore[operator]
        found = teaching.forward_tokens(views, None, None)[1]
    torch.testing.assert_close(found[1], theirs, rtol=1e-5, atol=1e-6)
    assert found.shape == (2, 3, 24, 4, 4)


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["teacher={name: siamese}"], ("token_loss",), "needs a teacher with patch tokens"),
        (TIMM, ("token_head",), "tokens of 24 numbers, those of the teacher have 64; token_head.dim"),
        ([*TIMM, "token_head=null"], ("token_head",), "tokens of 24 numbers"),
        ([*TIMM, NONE, *LARGE], ("token_loss",), "of the backbone (Timm gives no patch tokens)"),
        (["token_loss=null"], ("token_head",), "goes with a token_loss"),
        (
            ["token_loss=null", "token_head=null", "token_targets={name: softmax}"],
            ("token_targets",),
            "goes with",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_said(settings: list[str], where: Any, words: str, tiny_spec: Callable) -> None:
    with pytest.raises(Misfit) as raised:
        check(tiny_spec(*DENSE, HEAD, *settings), registry)
    assert raised.value.loc == where
    assert words in str(raised.value)


def test_nothing_of_a_run_without_it_has_changed(tiny_spec: Callable) -> None:
    """Old run folders are found again, and their checkpoints have no new part."""
    plain = tiny_spec()
    assert plain.hash == "35f60a06071d"
    assert "token_objective" not in build(plain, registry, CPU).state_dict()
    assert tiny_spec(*DENSE).hash != tiny_spec(*DENSE, "token_weight=2").hash

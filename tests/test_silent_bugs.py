"""Mistakes that were once made in training code of this kind, and that no loss curve shows.

Those that belong to one file are tested beside it: a centre or queue outside the state dict (test_targets,
test_info_nce), integer BatchNorm statistics averaged to 0 (test_teachers), blur with the probability of no blur
(test_augment_components), keys that are in the queue before they are used (test_info_nce), a number of neighbours
other than the one that is written down (test_knn), state that a resumed run has lost (test_resume).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dino_lab.components.losses.barlow import Barlow
from dino_lab.components.losses.cross_entropy import CrossEntropy
from dino_lab.components.losses.info_nce import InfoNce
from dino_lab.components.losses.mse import Mse
from dino_lab.components.losses.vicreg import Vicreg
from dino_lab.protocols import Data
from dino_lab.registry import registry
from dino_lab.training.build import build
from dino_lab.training.loop import train

CPU = torch.device("cpu")
AUGMENTS = registry.names("augment")
CHANGES = [
    "teacher.momentum.start=0.8",
    "seed=1",
    "targets.temperature=0.02",
    "loss.temperature=0.2",
    "head.hidden=48",
    "augment.hue=0.2",
    "augment.local_scale=[0.1, 0.4]",
    "regularizers=[{name: koleo}]",
    "train.epochs=4",
    "optim.clip=null",
]
STILL = {"flip_probability": 0, "jitter_probability": 0, "grey_probability": 0, "scale": (1.0, 1.0)}


# A run was resumed if name, backbone, method and optimizer agreed: a trial with another seed, momentum, temperature,
# head or augmentation went on from the checkpoint of the trial before it. Longer runs bent the schedules of short ones.
def test_a_trial_never_goes_on_from_another_one(tiny_spec: Callable, execute: Callable) -> None:
    steps = iter(range(100))
    first = execute(tiny_spec("evaluators=[]"), stop=lambda: next(steps) >= 1)
    assert (first.folder / "last.pt").exists()
    started: dict[str, int] = {}

    class Listener:
        def __init__(self, setting: str) -> None:
            self.setting = setting

        def started(self, run: object, folder: object, step: int) -> None:
            started[self.setting] = step

        def __getattr__(self, name: str) -> Callable:
            return lambda *_: None

    for setting in ("seed=0", CHANGES[0]):
        spec = tiny_spec("evaluators=[]", setting)
        execute(spec, stop=lambda: True, listeners=[Listener(setting)])
    assert started == {"seed=0": 2, CHANGES[0]: 0}
    hashes = [tiny_spec(setting).hash for setting in ("seed=0", *CHANGES)]
    assert len(set(hashes)) == len(hashes)


# The strength of colour jitter was passed to the first large view and to the small ones, and forgotten for the second.
@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_jitter_strength_reaches_every_view(name: str, strength: str) -> None:
    images = torch.randint(
        0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def share_changed(value: float) -> Tensor:
        only = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0) | {strength: value}
        views = still_augment(name, {"jitter_probability": 1.0} | only)(
            images, torch.Generator().manual_seed(0)
        )
        sources = images.roll(1, 0) if name == "triplet" else images  # of the third patch
        plain = torch.stack([images, images, sources, sources]) / 255
        seen = torch.cat(views.crops)
        return ((seen - plain[: len(seen)]).abs().amax((2, 3, 4)) > 1e-3).float().mean(1)

    assert (share_changed(0.0) == 0).all()
    assert (share_changed(0.4) > 0.8).all()


def still_list(given: dict[str, object]) -> nn.Module:
    """Whole images and, where strengths are given, a jitter of the views of either group."""
    jitter = {"p" if key == "jitter_probability" else key: value for key, value in given.items()}
    ops = [{"crop": {"scale": [1.0, 1.0]}}, *[{"jitter": jitter}] * bool(given)]
    groups = [{"views": 2, "size": 8, "ops": ops}, {"views": 2, "size": 8, "sees": "student", "ops": ops}]
    params = registry.find("augment", "views").params
    return registry.build("augment", params.model_validate({"name": "views", "groups": groups}))


def still_augment(name: str, given: dict[str, object]) -> nn.Module:
    """An augmentation of views of 8 pixels in which nothing happens but what is given."""
    if name == "views":
        return still_list(given)
    params = registry.find("augment", name).params
    accepted = params.model_fields
    operations = STILL | given
    spec: dict[str, object] = {"name": name}
    spec |= {key: value for key, value in operations.items() if key in accepted}
    spec |= {key: 8 for key in accepted if key.endswith("size")}
    spec |= {key: (1.0, 1.0) for key in accepted if key.endswith("scale")}
    spec |= {key: 2 for key in accepted if key == "local_views"}
    for key in ("blur_probability", "solarize_probability"):
        if key in accepted:
            default = accepted[key].default
            spec[key] = (0.0,) * len(default) if isinstance(default, tuple) else 0.0
    none = {"blur_probability": 0.0, "solarize_probability": 0.0}
    spec |= {key: operations | none for key in ("first", "second", "local") if key in accepted}
    return registry.build("augment", params.model_validate(spec))


# The call that updates the teacher was missing: a student learned from random weights. And where it was there, it stood
# before the forward pass, once for each part of an accumulated batch, so that momentum meant something else.
@pytest.mark.parametrize("parts", [1, 3])
def test_the_teacher_moves_once_after_each_optimizer_step(parts: int, tiny_spec: Callable) -> None:
    run = build(tiny_spec("teacher.momentum=0.9", f"train.accumulate={parts}"), registry, CPU)
    steps = train(run)
    for _ in range(2):
        before = {name: p.clone() for name, p in run.teacher.network.named_parameters()}
        next(steps)
        after = dict(run.student.named_parameters())
        moved = 0
        for name, p in run.teacher.network.named_parameters():
            torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * after[name], rtol=1e-5, atol=1e-7)
            moved += not torch.equal(p, before[name])
        assert moved > 10


# The multi-view pipeline gave views in a form that the method it was written for could not take.
@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_feeds_student_and_teacher(name: str, tiny_spec: Callable) -> None:
    run = build(tiny_spec(), registry, CPU)
    augment = still_augment(name, {})
    images = next(run.data.train(6, 0, 0))[0]
    views = augment(images, torch.Generator().manual_seed(0))
    S, T = views.pairs.shape
    student = run.student(views.crops)
    teacher = run.teacher.forward(views, student, torch.zeros(6, dtype=torch.long))
    assert student.features.shape[:2] == student.p.shape[:2] == (S, 6)
    assert teacher.shape == (T, 6, 32)
    assert not teacher.requires_grad


# A new augmentation was read as a key without a default, so that every older file that lacked it broke.
@pytest.mark.parametrize("name", AUGMENTS)
def test_an_augmentation_needs_nothing_but_its_name(name: str) -> None:
    params = registry.find("augment", name).params
    registry.build("augment", params.model_validate({"name": name}))


# The symmetric loss was the mean of its two directions in one place and their sum in another: half the step, and eleven
# points of accuracy. Here it is the mean, everywhere.
@pytest.mark.parametrize(
    "loss",
    [
        Mse(4),
        CrossEntropy(4),
        InfoNce(4),
        InfoNce(4, in_batch="paired", queue=3),
        Vicreg(4),
        Barlow(4),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_symmetric_loss_is_the_mean_of_its_directions(loss: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    student, target = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    loss = loss.double().eval()

    def value(pairs: list[list[int]]) -> Tensor:
        return loss(student, target, torch.tensor(pairs, dtype=torch.int8))

    one, other, both = value([[0, 1], [0, 0]]), value([[0, 0], [1, 0]]), value([[0, 1], [1, 0]])
    torch.testing.assert_close(both, (one + other) / 2)
    gradients = [torch.autograd.grad(x, student)[0] for x in (one, other, both)]
    torch.testing.assert_close(gradients[2], (gradients[0] + gradients[1]) / 2)


# Neighbours were looked up with BatchNorm and dropout in training mode: an image's features depended on its batch.
def test_features_are_scored_in_evaluation_mode(tiny_spec: Callable) -> None:
    class Alone:
        """How far features move if an image comes with others."""

        every, of, protocol = 1, "student", "none"

        def __init__(self) -> None: ...
        def forward(self, encode: Callable[[Tensor], Tensor], data: Data) -> dict[str, float]:
            images, _ = next(iter(data.test(8)))
            return {"moved": (encode(images)[:2] - encode(images[:2])).abs().max().item()}

    with registry.scratch():
        registry.register("evaluator", "alone")(Alone)
        for backbone in (
            "{name: timm, model: resnet10t}",
            "{name: vit, width: 24, depth: 2, heads: 2, drop_path: 0.5}",
        ):
            run = build(
                tiny_spec(f"backbone={backbone}", "augment.local_size=16", "evaluators=[{name: alone}]"),
                registry,
                CPU,
            )
            next(train(run))
            assert run.evaluate(run.due(0))[0].scores["moved"] < 1e-4
            assert run.student.training

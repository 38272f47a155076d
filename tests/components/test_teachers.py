from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dino_lab.components.backbones.vit import Vit
from dino_lab.components.heads.linear import LinearHead
from dino_lab.components.teachers.ema import Ema
from dino_lab.components.teachers.frozen import Frozen
from dino_lab.components.teachers.labels import Labels
from dino_lab.components.teachers.periodic import Periodic
from dino_lab.components.teachers.siamese import Siamese
from dino_lab.network import Network
from dino_lab.schedule import Schedule, constant
from dino_lab.types import Output, Views

LABELS = torch.zeros(4, dtype=torch.long)


class Normed(nn.Module):
    """A backbone with BatchNorm and dropout."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.drop(self.norm(images)).mean((2, 3))


def network(predictor: bool = True) -> Network:
    head = LinearHead(3, dim=5)
    return Network(Normed(), head, nn.Linear(5, 5) if predictor else None)


def views(seed: int = 0) -> Views:
    generator = torch.Generator().manual_seed(seed)
    crops = [
        torch.randn(2, 4, 3, 8, 8, generator=generator) * 2 + 1,
        torch.randn(3, 4, 3, 4, 4, generator=generator),
    ]
    return Views(crops, 1 - torch.eye(5, 2, dtype=torch.int8))


def shift(student: Network) -> None:
    """A step of some optimizer, and some BatchNorm statistics."""
    with torch.no_grad():
        for i, parameter in enumerate(student.parameters()):
            parameter += 0.1 * (i + 1)
    for seed in range(3):
        student(views(seed).crops)


def test_average_is_the_formula_by_name() -> None:
    student = network()
    teacher = Ema(student, momentum=constant(0.9))
    before = {name: p.clone() for name, p in teacher.network.named_parameters()}
    shift(student)
    teacher.update(student, 0.5, False)
    weights = dict(student.named_parameters())
    assert set(before) == {name for name in weights if not name.startswith("predictor")}
    for name, parameter in teacher.network.named_parameters():
        torch.testing.assert_close(parameter, 0.9 * before[name] + (1 - 0.9) * weights[name])
        assert not torch.equal(parameter, before[name])


def test_average_does_not_depend_on_the_order_of_parameters() -> None:
    student = network(predictor=False)
    teacher = Ema(student, momentum=constant(0.0))
    student._modules = dict(reversed(student._modules.items()))  # head before backbone
    shift(student)
    teacher.update(student, 0.0, False)
    for name, parameter in teacher.network.named_parameters():
        torch.testing.assert_close(parameter, dict(student.named_parameters())[name])


def test_momentum_follows_its_schedule() -> None:
    student = network()
    teacher = Ema(student, momentum=Schedule(start=0.5, end=1.0))
    shift(student)
    before = teacher.network.head.linear.weight.clone()
    teacher.update(student, 1.0, False)
    assert torch.equal(teacher.network.head.linear.weight, before)
    teacher.update(student, 0.5, False)
    torch.testing.assert_close(
        teacher.network.head.linear.weight, 0.75 * before + 0.25 * student.head.linear.weight
    )


def test_default_momentum_is_that_of_dino() -> None:
    momentum = Ema(network()).momentum
    assert (momentum(0.0), momentum(0.5), momentum(1.0)) == pytest.approx((0.996, 0.998, 1.0))


def test_teacher_gets_no_gradient_and_has_no_predictor() -> None:
    student = network()
    teacher = Ema(student)
    out = student(views().crops)
    target = teacher(views(), out, LABELS)
    assert target.shape == (2, 4, 5)
    assert not target.requires_grad
    (out.p[:2] - target).square().sum().backward()
    assert teacher.network.predictor is None
    assert student.predictor is not None
    for parameter in teacher.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    for parameter in student.parameters():
        assert parameter.grad.isfinite().all()


def test_teacher_has_no_dropout_and_no_stochastic_depth() -> None:
    vit = Vit(3, 16, width=12, depth=3, heads=2, patch=4, drop_path=0.5)
    student = Network(nn.Sequential(vit, nn.Dropout(0.5)), nn.Identity())
    teacher = Ema(student)
    x = Views([torch.rand(2, 4, 3, 16, 16)], views().pairs)
    out = Output(torch.empty(0), torch.empty(0), torch.empty(0))
    assert teacher.network.training
    assert torch.equal(teacher(x, out, LABELS), teacher(x, out, LABELS))
    assert not torch.equal(student(x.crops).z, student(x.crops).z)


def norms(student: Network, teacher: Ema | Periodic) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    return student.backbone.norm, teacher.network.backbone.norm


def test_buffers_policy_own_comes_from_the_own_forward_pass() -> None:
    student = network()
    teacher = Ema(student, buffers="own")
    shift(student)
    teacher.update(student, 0.0, False)
    _, norm = norms(student, teacher)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    teacher(views(), student(views().crops), LABELS)
    expected = 0.1 * views().crops[0].mean((0, 1, 3, 4))
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_buffers_policy_copy_takes_those_of_the_student(mode: Any) -> None:
    student = network()
    teacher = Ema(student, buffers="copy", mode=mode)
    shift(student)
    teacher.update(student, 0.0, False)
    theirs, ours = norms(student, teacher)
    for name, buffer in theirs.named_buffers():
        assert torch.equal(dict(ours.named_buffers())[name], buffer)


def test_buffers_policy_ema_moves_with_the_momentum() -> None:
    student = network()
    teacher = Ema(student, buffers="ema", momentum=constant(0.9))
    shift(student)
    teacher.update(student, 0.0, False)
    theirs, ours = norms(student, teacher)
    torch.testing.assert_close(ours.running_mean, 0.1 * theirs.running_mean)
    torch.testing.assert_close(ours.running_var, 0.9 + 0.1 * theirs.running_var)


def test_integer_buffers_are_copied_not_averaged() -> None:
    """Regression: averaging every buffer rounds the integer `num_batches_tracked` down at each step."""
    student = network()
    teacher = Ema(student, buffers="ema", momentum=constant(0.996))
    for _ in range(3):
        shift(student)
        teacher.update(student, 0.0, False)
    theirs, ours = norms(student, teacher)
    assert ours.num_batches_tracked == theirs.num_batches_tracked > 0
    assert ours.num_batches_tracked.dtype == torch.int64


def test_teacher_may_stay_in_evaluation_mode() -> None:
    student = network()
    teacher = Ema(student, buffers="copy", mode="eval")
    teacher.train()
    assert not any(module.training for module in teacher.network.modules())
    teacher(views(), student(views().crops), LABELS)
    assert norms(student, teacher)[1].num_batches_tracked == 0
    with pytest.raises(ValueError, match="gathers no statistics of its own"):
        Ema(student, buffers="own", mode="eval")


def test_teacher_survives_a_checkpoint() -> None:
    student = network()
    teacher, other = Ema(student, momentum=constant(0.5)), Ema(student)
    shift(student)
    teacher.update(student, 0.0, False)
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other.network.head.linear.weight, teacher.network.head.linear.weight)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_siamese_is_the_student_before_its_predictor(stop_gradient: bool) -> None:
    student = network()
    out = student(views().crops)
    teacher = Siamese(student, stop_gradient=stop_gradient)
    target = teacher(views(), out, LABELS)
    assert torch.equal(target, out.z[:2])
    assert target.requires_grad is not stop_gradient
    assert teacher.network is None
    assert not list(teacher.parameters())
    teacher.update(student, 0.5, False)


def test_the_copy_loses_its_drop_path_and_the_student_keeps_it() -> None:
    student = Network(Vit(3, 16, width=12, depth=3, heads=2, patch=4, drop_path=0.5), nn.Identity())

    def rates(network: Network) -> list[float]:
        return [module.drop_prob for module in network.modules() if hasattr(module, "drop_prob")]

    teacher = Ema(student)
    assert max(rates(student)) == 0.5
    assert rates(teacher.network)
    assert max(rates(teacher.network)) == 0


def weights(network: Network) -> dict[str, Tensor]:
    """Everything that a teacher may take over from the student."""
    return {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("predictor.")}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key in found if not torch.equal(found[key], wanted[key])] == []


STEPS_PER_EPOCH = 3


def expected(history: list[dict[str, Tensor]], every: int, unit: str, lag: int) -> dict[str, Tensor]:
    """Of the student's weights after 0, 1, 2, .. steps, those that teach the next step."""
    period = every * (STEPS_PER_EPOCH if unit == "epoch" else 1)
    copies = [weights for steps, weights in enumerate(history) if steps % period == 0]
    return copies[max(0, len(copies) - 1 - lag)]


@pytest.mark.parametrize("unit", ["step", "epoch"])
@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_periodic_is_the_student_of_some_time_ago(every: int, unit: Any, lag: int) -> None:
    student = network()
    teacher = Periodic(student, every=every, unit=unit, lag=lag)
    history = [weights(student)]
    for step in range(14):
        shift(student)
        history.append(weights(student))
        teacher.update(student, step / 14, (step + 1) % STEPS_PER_EPOCH == 0)
        assert_same(weights(teacher.network), expected(history, every, unit, lag))


def test_the_teachers_of_the_paper() -> None:
    """In words: the student as it is, as it was before the last step, as it was when the epoch began."""
    student = network()
    copy = Periodic(student, unit="step")
    iteration = Periodic(student, unit="step", lag=1)
    epoch = Periodic(student)
    history = [weights(student)]
    for step in range(5):
        shift(student)
        history.append(weights(student))
        for teacher in (copy, iteration, epoch):
            teacher.update(student, step / 5, step == 2)
    assert_same(weights(copy.network), history[5])
    assert_same(weights(iteration.network), history[4])
    assert_same(weights(epoch.network), history[3])


def test_periodic_survives_a_checkpoint_within_a_period() -> None:
    student = network()
    teacher = Periodic(student, every=3, unit="step", lag=1)
    for _ in range(4):
        shift(student)
        teacher.update(student, 0.0, False)
    other = Periodic(network(), every=3, unit="step", lag=1)
    other.load_state_dict(teacher.state_dict())
    for _ in range(5):
        shift(student)
        for each in (teacher, other):
            each.update(student, 0.0, False)
        assert_same(weights(other.network), weights(teacher.network))


def test_periodic_may_gather_its_own_statistics() -> None:
    student = network()
    teacher = Periodic(student, unit="step", buffers="own", lag=1)
    for _ in range(3):
        shift(student)
        teacher.update(student, 0.0, False)
    theirs, ours = norms(student, teacher)
    assert torch.equal(ours.running_mean, torch.zeros(3))
    assert not torch.equal(theirs.running_mean, ours.running_mean)
    teacher(views(), student(views().crops), LABELS)
    assert ours.num_batches_tracked == 1
    with pytest.raises(ValueError, match="gathers no statistics of its own"):
        Periodic(student, buffers="own", mode="eval")


def test_frozen_is_the_students_first_weights_for_ever() -> None:
    student = network()
    first = weights(student)
    teacher = Frozen(student)
    for _ in range(3):
        teacher(views(), student(views().crops), LABELS)
        shift(student)
        teacher.update(student, 0.5, True)
        teacher.train()
    assert_same(weights(teacher.source), first)
    assert teacher.network is None  # so that the student is evaluated
    assert not any(module.training for module in teacher.source.modules())


def test_frozen_may_use_the_statistics_of_the_batch() -> None:
    student = network()
    by_batch, by_history = Frozen(student, mode="train"), Frozen(student)
    out = student(views().crops)
    assert not torch.allclose(by_batch(views(), out, LABELS), by_history(views(), out, LABELS))
    assert torch.equal(by_batch(views(), out, LABELS), by_batch(views(), out, LABELS))  # no dropout
    for parameter, other in zip(by_batch.parameters(), by_history.parameters(), strict=True):
        assert torch.equal(parameter, other)


@pytest.mark.parametrize("make", [Periodic, Frozen, Labels])
def test_no_gradient_reaches_any_teacher(make: Any) -> None:
    student = network()
    teacher = make(student)
    out = student(views().crops)
    target = teacher(views(), out, LABELS)
    assert target.shape == (2, 4, 5)
    assert not target.requires_grad
    (out.p[:2] - target).square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_labels_are_one_hot_and_perhaps_smooth(smoothing: float) -> None:
    student = network()
    teacher = Labels(student, smoothing=smoothing)
    labels = [4, 0, 2, 2]
    target = teacher(views(), student(views().crops), torch.tensor(labels))
    rows = [[(1 - smoothing) * (label == k) + smoothing / 5 for k in range(5)] for label in labels]
    torch.testing.assert_close(target, torch.tensor([rows, rows]))
    assert target.dtype == torch.float32
    assert teacher.network is None
    assert not teacher.state_dict()
    teacher.update(student, 0.5, True)


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_that_have_no_output_are_refused(label: int) -> None:
    student = network()
    with pytest.raises(RuntimeError, match=r"labels must be in 0\.\.4"):
        Labels(student)(views(), student(views().crops), torch.tensor([0, label, 1, 2]))


def test_more_classes_than_outputs_are_refused() -> None:
    teacher = Labels(network())
    teacher.check_classes(5)
    with pytest.raises(ValueError, match="5 outputs are too few for the 6 classes"):
        teacher.check_classes(6)

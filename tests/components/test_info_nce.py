"""info_nce against each paper's formula, written out with plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dino_lab.components.losses.info_nce import InfoNce
from dino_lab.registry import registry

TWO_VIEWS = 1 - torch.eye(2, dtype=torch.int8)
ONE_WAY = torch.tensor([[0], [1]], dtype=torch.int8)
TRIPLET = torch.tensor([[0, 1, -1], [0, 0, 0], [0, 0, 0]], dtype=torch.int8)
MULTICROP = 1 - torch.eye(4, 2, dtype=torch.int8)
SIZES = [(2, 3), (5, 4), (7, 1), (3, 16)]  # B, K


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: list[float]) -> list[float]:
    return [value / math.hypot(*x) for value in x]


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(unit(x), unit(y), strict=True))


def softmax_loss(positive: float, negatives: list[float], temperature: float) -> float:
    """-log of the positive's share."""
    total = sum(math.exp(s / temperature) for s in [positive, *negatives])
    return -math.log(math.exp(positive / temperature) / total)


def simclr(z: Tensor, temperature: float) -> float:
    """Eq. 1 and Alg. 1: 2N views in a row, a view and its other one; every other view is a candidate."""
    views = [
        view for sample in z.transpose(0, 1).tolist() for view in sample
    ]  # 2k and 2k + 1 belong together
    terms = []
    for i, query in enumerate(views):
        j = i + 1 if i % 2 == 0 else i - 1
        negatives = [dot(query, views[k]) for k in range(len(views)) if k not in (i, j)]
        terms.append(softmax_loss(dot(query, views[j]), negatives, temperature))
    return sum(terms) / len(terms)


def moco(query: Tensor, key: Tensor, queue: list[list[float]], temperature: float) -> float:
    """Eq. 1: one positive, and the queue."""
    terms = [
        softmax_loss(dot(q, k), [dot(q, old) for old in queue], temperature)
        for q, k in zip(query.tolist(), key.tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


def moco_v3(q: Tensor, k: Tensor, temperature: float) -> float:
    """Alg. 1: ctr(q1, k2) + ctr(q2, k1), each 2 * tau times a cross-entropy over the keys of one view."""

    def ctr(queries: list[list[float]], keys: list[list[float]]) -> float:
        terms = []
        for i, query in enumerate(queries):
            negatives = [dot(query, key) for n, key in enumerate(keys) if n != i]
            terms.append(softmax_loss(dot(query, keys[i]), negatives, temperature))
        return 2 * temperature * sum(terms) / len(terms)

    return ctr(q[0].tolist(), k[1].tolist()) + ctr(q[1].tolist(), k[0].tolist())


def exact(loss: InfoNce) -> InfoNce:
    """The same in float64, the first keys of unit length to the last digit."""
    assert torch.allclose(loss.queue.norm(dim=-1), torch.ones(len(loss.queue)))
    loss = loss.double()
    loss.queue = torch.nn.functional.normalize(loss.queue, dim=-1)
    return loss


@pytest.fixture(params=SIZES, ids=str)
def sizes(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_simclr_is_equation_1(sizes: tuple[int, int], temperature: float) -> None:
    B, K = sizes
    z = draw(2, B, K)
    loss = InfoNce(K, temperature=temperature, in_batch=True)(z, z, TWO_VIEWS)
    assert loss.item() == pytest.approx(simclr(z, temperature), rel=1e-10)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("sizes", [(2, 3), (5, 4), (3, 16)])
def test_dcl_is_its_formula(sizes: tuple[int, int], temperature: float) -> None:
    """arXiv 2110.06848, the loss of view k of sample i: -<z_i1, z_i2> / tau + log of the sum over both views of
    all other samples.
    """
    z = draw(2, *sizes)
    views = z.tolist()
    terms = []
    for i in range(sizes[0]):
        for k in (0, 1):
            others = [
                math.exp(dot(views[k][i], views[v][j]) / temperature)
                for v in (0, 1)
                for j in range(sizes[0])
                if j != i
            ]
            terms.append(math.log(sum(others)) - dot(views[0][i], views[1][i]) / temperature)
    loss = InfoNce(sizes[1], temperature=temperature, decoupled=True)
    assert loss(z, z, TWO_VIEWS).item() == pytest.approx(sum(terms) / len(terms))


def test_every_other_view_is_a_candidate_of_simclr() -> None:
    """All at right angles: the positive is one of 2B - 1 equal candidates, none of them the query itself."""
    B = 6
    z = torch.eye(2 * B, dtype=torch.float64).view(2, B, 2 * B)
    loss = InfoNce(2 * B, in_batch=True)(z, z, TWO_VIEWS)
    assert loss.item() == pytest.approx(math.log(2 * B - 1), rel=1e-12)
    paired = InfoNce(2 * B, in_batch="paired")(z, z, TWO_VIEWS)
    assert paired.item() == pytest.approx(math.log(B), rel=1e-12)


def test_moco_is_equation_1_and_keys_join_the_queue_after_use(sizes: tuple[int, int]) -> None:
    B, K = sizes
    loss = exact(InfoNce(K, temperature=0.2, in_batch=False, queue=11))
    queue = loss.queue.tolist()
    for step in range(5):
        student, key = draw(2, B, K, seed=2 * step), draw(1, B, K, seed=2 * step + 1)
        value = loss(student, key, ONE_WAY).item()
        assert value == pytest.approx(moco(student[1], key[0], queue, 0.2), rel=1e-10)
        queue = [*map(unit, key[0].tolist()), *queue][:11]  # newest first, the oldest leave
        assert torch.allclose(loss.queue, torch.tensor(queue, dtype=torch.float64), rtol=1e-12, atol=0)


def test_moco_v3_is_algorithm_1(sizes: tuple[int, int]) -> None:
    B, K = sizes
    q, k = draw(2, B, K), draw(2, B, K, seed=1)
    loss = InfoNce(K, temperature=0.3, in_batch="paired", scale_by_temperature=True)(q, k, TWO_VIEWS)
    assert 2 * loss.item() == pytest.approx(moco_v3(q, k, 0.3), rel=1e-10)


def test_patches_are_a_choice_between_two(sizes: tuple[int, int]) -> None:
    B, K = sizes
    z = draw(3, B, K)
    terms = [
        softmax_loss(dot(anchor, a), [dot(anchor, b)], 0.2)
        for anchor, a, b in zip(*(view.tolist() for view in z), strict=True)
    ]
    loss = InfoNce(K, temperature=0.2, in_batch=False)(z, z, TRIPLET)
    assert loss.item() == pytest.approx(sum(terms) / B, rel=1e-10)


def anything(
    student: Tensor, target: Tensor, pairs: Tensor, loss: InfoNce, queue: list[list[float]]
) -> tuple[float, float]:
    """Loss and accuracy from the rule in words: which target is a candidate of which query."""
    S, B, _ = student.shape
    terms, right, asked = [], 0, 0

    def score(x: list[float], y: list[float]) -> float:
        return dot(x, y) if loss.normalize else sum(a * b for a, b in zip(x, y, strict=True))

    for s in range(S):
        signs = pairs[s].tolist()
        for b in range(B):
            query, positives, negatives = student[s, b].tolist(), [], []
            for t, sign in enumerate(signs):
                for other in range(B):
                    value = score(query, target[t, other].tolist())
                    if other == b and sign == 1:
                        positives.append(value)
                    elif (
                        (other == b and sign == -1)
                        or (other != b and loss.in_batch is True)
                        or (other != b and loss.in_batch == "paired" and sign == 1)
                    ):
                        negatives.append(value)
            negatives += [score(query, key) for key in queue]
            for i, positive in enumerate(positives):
                rest = positives[:i] + positives[i + 1 :] + negatives
                terms.append(softmax_loss(positive, rest, loss.temperature))
            asked += bool(positives)
            right += bool(positives) and max(positives) > max(negatives, default=-math.inf)
    return sum(terms) / len(terms), right / asked


@pytest.mark.parametrize("pairs", [TWO_VIEWS, ONE_WAY, TRIPLET, MULTICROP], ids=lambda p: str(p.tolist()))
@pytest.mark.parametrize("in_batch", [True, False, "paired"])
@pytest.mark.parametrize("queue", [0, 5])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("duplicates", [False, True])
def test_candidates_are_those_of_the_rule(
    pairs: Tensor, in_batch: bool | str, queue: int, normalize: bool, duplicates: bool
) -> None:
    (S, T), B, K = pairs.shape, 4, 3
    loss = exact(InfoNce(K, in_batch=in_batch, queue=queue, normalize=normalize, temperature=0.5))
    student, target = draw(S, B, K), draw(T, B, K, seed=1)
    if duplicates:
        student[:, 1], target[:, 1] = student[:, 0], target[:, 0]
    value, accuracy = anything(student, target, pairs, loss, loss.queue.tolist())
    assert loss.measure(student, target, pairs)["accuracy"].item() == pytest.approx(accuracy)
    assert loss(student, target, pairs).item() == pytest.approx(value, rel=1e-10, abs=1e-12)


def test_a_tie_is_no_success() -> None:
    """Collapsed outputs, the same for all, must not look like a perfect score."""
    z = torch.ones(3, 4, 8)
    for loss, pairs in ((InfoNce(8, in_batch=False), TRIPLET), (InfoNce(8), TWO_VIEWS)):
        S, T = pairs.shape
        assert loss.measure(z[:S], z[:T], pairs)["accuracy"] == 0


def test_measuring_changes_nothing_and_sees_the_queue_before_this_batch() -> None:
    loss = InfoNce(3, in_batch=False, queue=4).double()
    student, target = draw(2, 4, 3), draw(1, 4, 3, seed=1)
    student[1] = target[0]
    before = loss.queue.clone()
    assert loss.measure(student, target, ONE_WAY)["accuracy"] == 1
    assert torch.equal(loss.queue, before)
    loss(student, target, ONE_WAY)
    # The keys are in the queue now, so that a positive only ties with itself.
    assert loss.measure(student, target, ONE_WAY)["accuracy"] == 0


def test_backward_still_finds_the_queue_that_forward_used() -> None:
    loss = InfoNce(3, in_batch=False, queue=4).double()
    student = draw(2, 2, 3).requires_grad_()
    old = loss.queue
    value = loss(student, draw(1, 2, 3, seed=1), ONE_WAY)
    assert loss.queue is not old
    value.backward()
    with_old = InfoNce(3, in_batch=False, queue=4).double().eval()
    with_old.queue = old
    again = draw(2, 2, 3).requires_grad_()
    with_old(again, draw(1, 2, 3, seed=1), ONE_WAY).backward()
    assert torch.equal(student.grad, again.grad)


def test_the_queue_waits_in_evaluation_mode_and_keeps_no_graph() -> None:
    loss = InfoNce(3, in_batch=False, queue=4)
    target = draw(1, 2, 3).float().requires_grad_()
    before = loss.queue.clone()
    loss.eval()(draw(2, 2, 3).float(), target, ONE_WAY)
    assert torch.equal(loss.queue, before)
    loss.train()(draw(2, 2, 3).float(), target, ONE_WAY)
    assert not torch.equal(loss.queue, before)
    assert not loss.queue.requires_grad


def test_the_queue_survives_a_checkpoint() -> None:
    """Regression of its kind: state outside the state dict is lost at every resume, without a word."""
    one, other = InfoNce(3, queue=4), InfoNce(3, queue=4)
    one(draw(2, 5, 3).float(), draw(1, 5, 3, seed=1).float(), ONE_WAY)
    assert not torch.equal(one.queue, other.queue)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.queue, other.queue)


def make_loss(**given: object) -> Callable[..., Tensor]:
    return InfoNce(3, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pairs", [TWO_VIEWS, ONE_WAY, TRIPLET, MULTICROP], ids=lambda p: str(p.tolist()))
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"in_batch": False, "queue": 5},
        {"in_batch": "paired", "queue": 2},
        {"normalize": False},
        {"decoupled": True},
    ],
)
@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("same", [False, True])
def test_gradients_are_finite(
    dtype: torch.dtype, pairs: Tensor, given: dict[str, object], B: int, same: bool
) -> None:
    """Of views without a candidate too, whose softmax would be that of nothing."""
    S, T = pairs.shape
    student = torch.ones(S, B, 3) if same else draw(S, B, 3)
    student = student.to(dtype).requires_grad_()
    target = (torch.ones(T, B, 3) if same else draw(T, B, 3, seed=1)).to(dtype).requires_grad_()
    value = make_loss(**given)(student, target, pairs)
    value.backward()
    assert value.isfinite()
    assert student.grad.dtype == dtype
    assert student.grad.isfinite().all()
    assert target.grad.isfinite().all()
    assert not student.grad[(pairs <= 0).all(1)].any()


def test_the_gradient_is_that_of_the_value() -> None:
    loss = InfoNce(3, temperature=0.5, queue=4).double().eval()
    student, target = draw(4, 3, 3).requires_grad_(), draw(2, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, MULTICROP), (student, target))


@pytest.mark.parametrize(
    ("given", "pairs", "complains"),
    [
        ({"in_batch": False}, TWO_VIEWS, True),
        ({"in_batch": False}, TRIPLET, False),
        ({"in_batch": False, "queue": 8}, TWO_VIEWS, False),
        ({"in_batch": "paired"}, TWO_VIEWS, False),
    ],
)
def test_a_loss_that_would_always_be_0_is_refused(
    given: dict[str, object], pairs: Tensor, complains: bool
) -> None:
    loss = InfoNce(3, **given)  # type: ignore[arg-type]
    if complains:
        with pytest.raises(ValueError, match="nothing to push apart"):
            loss.check_pairs(pairs)
    else:
        loss.check_pairs(pairs)
    S, T = pairs.shape
    value = loss(draw(S, 4, 3).float(), draw(T, 4, 3, seed=1).float(), pairs)
    assert (abs(value.item()) < 1e-6) is complains


@pytest.mark.parametrize("given", [{"temperature": 0}, {"queue": -1}, {"in_batch": "others"}])
def test_bad_parameters_are_refused(given: dict[str, object]) -> None:
    params = registry.find("loss", "info_nce").params
    with pytest.raises(ValueError, match=next(iter(given))):
        params.model_validate({"name": "info_nce", **given})

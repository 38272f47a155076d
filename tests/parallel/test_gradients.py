"""Gradients averaged over processes by their shares of the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.testing.ranks import on_processes
from dino_lab.training import gradients
from dino_lab.training.gradients import AveragedGradients

B = 7  # 3 + 2 + 2 images
PROCESSES = 3


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.full((size,), 1.0, dtype=torch.float64)) for size in (2, 3, 1, 4)]


def images() -> Tensor:
    return torch.arange(1.0, B + 1, dtype=torch.float64)


def test_shares_are_weighted() -> None:
    def work() -> list[Tensor | None]:
        weights, mine = parameters(), images()[collectives.share(B)]
        averaged = AveragedGradients(weights)
        with collectives.dividing(B), averaged.averaging():
            (mine.mean() * sum(w.sum() * (i + 1) for i, w in enumerate(weights))).backward()
        averaged.close()
        return [w.grad for w in weights]

    for rank in on_processes(PROCESSES, work):
        for i, gradient in enumerate(rank):
            torch.testing.assert_close(
                gradient, torch.full_like(gradient, 4.0 * (i + 1))
            )  # the mean of 1 to 7


def test_a_gradient_on_one_process_reaches_all_and_none_stays_none() -> None:
    def work() -> list[Tensor | None]:
        weights = parameters()
        averaged = AveragedGradients(weights)
        with collectives.dividing(B), averaged.averaging():
            used = weights[0].sum() + (weights[1].sum() if collectives.rank() == 1 else 0)
            used.backward()
        averaged.close()
        return [w.grad for w in weights]

    for rank in on_processes(PROCESSES, work):
        torch.testing.assert_close(rank[0], torch.ones_like(parameters()[0]))
        torch.testing.assert_close(rank[1], torch.full_like(parameters()[1], 2 / 7))
        assert rank[2:] == [None, None]


def test_what_adds_up_is_sent_once() -> None:
    def work() -> tuple[Tensor | None, int]:
        gradients.BUCKET, sent = 4, 0  # several buckets

        def count(*_: object, **__: object) -> object:
            nonlocal sent
            sent += 1
            return send(*_, **__)

        send, gradients.distributed.all_reduce = gradients.distributed.all_reduce, count
        weights, mine = parameters(), images()[collectives.share(B)]
        averaged = AveragedGradients(weights)
        with collectives.dividing(B), averaged.averaging():
            for part in (mine[:1], mine[1:]):
                loss = part.sum() / len(mine) * sum(w.sum() for w in weights)
                if part is mine:
                    loss.backward()
                with averaged.adding_up():
                    loss.backward()
        averaged.close()
        return weights[0].grad, sent

    for gradient, sent in on_processes(PROCESSES, work):
        torch.testing.assert_close(gradient, torch.full_like(parameters()[0], 4.0))
        assert sent == 3


def test_one_process_keeps_its_own() -> None:
    weights = parameters()
    averaged = AveragedGradients(weights)
    with averaged.averaging():
        weights[0].sum().backward()
    averaged.close()
    assert torch.equal(weights[0].grad, torch.ones(2, dtype=torch.float64))
    assert weights[1].grad is None

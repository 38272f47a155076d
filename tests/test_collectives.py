"""A run on two processes computes what one process computes on both halves of the batch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch import Tensor

from dino_lab import collectives
from dino_lab.components.targets.center import Center
from dino_lab.components.targets.sinkhorn import Sinkhorn

WORLD, B, K = 2, 3, 4


def share(rank: int) -> Tensor:
    """The part [T, B, K] of the batch that a process sees."""
    return torch.randn(2, B, K, generator=torch.Generator().manual_seed(rank), dtype=torch.float64)


def weight() -> Tensor:
    return torch.arange(1.0, WORLD * B + 1, dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    try:
        torch.save(results_of(share(rank)), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


def results_of(mine: Tensor) -> dict[str, object]:
    before = mine.clone()
    targets = Center(K).double()
    rows = mine[0].clone().requires_grad_()
    gathered = collectives.gather(rows.T.contiguous().T)  # not contiguous
    (gathered.sum(-1) * weight()).sum().backward()
    return {
        "mean": collectives.mean(mine),
        "unchanged": torch.equal(mine, before),
        "target": [targets(mine, 0.0), targets(mine, 0.5)][1],
        "center": targets.mean,
        "balanced": [Sinkhorn(K, joint=joint)(mine, 0.0) for joint in (False, True)],
        "gathered": gathered.detach(),
        "gradient": rows.grad,
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("gloo")
    # Rank 0 is this process: every process more costs seconds to start.
    other = multiprocessing.get_context("spawn").Process(target=work, args=(1, str(folder)))
    other.start()
    try:
        work(0, str(folder))
    finally:
        other.join(60)
        other.kill()
    assert other.exitcode == 0
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(WORLD)]


def test_mean_is_that_of_all_processes(results: list[dict[str, Tensor]]) -> None:
    for result in results:
        torch.testing.assert_close(result["mean"], (share(0) + share(1)) / 2)
        assert result["unchanged"]


def test_gather_is_in_order_of_rank(results: list[dict[str, Tensor]]) -> None:
    for result in results:
        assert torch.equal(result["gathered"], torch.cat([share(0)[0], share(1)[0]]))


def test_gradient_of_gather_stays_at_home(results: list[dict[str, Tensor]]) -> None:
    for rank, result in enumerate(results):
        mine = weight()[rank * B : (rank + 1) * B]
        assert torch.equal(result["gradient"], mine[:, None].expand(B, K))


def test_the_center_is_that_of_the_whole_batch(results: list[dict[str, Tensor]]) -> None:
    targets, batch = Center(K).double(), torch.cat([share(0), share(1)], dim=1)
    targets(batch, 0.0)
    target = targets(batch, 0.5)
    for rank, result in enumerate(results):
        torch.testing.assert_close(result["center"], targets.mean)
        torch.testing.assert_close(result["target"], target[:, rank * B : (rank + 1) * B])


def test_sinkhorn_balances_the_whole_batch(results: list[dict[str, Tensor]]) -> None:
    batch = torch.cat([share(0), share(1)], dim=1)
    for i, joint in enumerate((False, True)):
        target = Sinkhorn(K, joint=joint)(batch, 0.0)
        for rank, result in enumerate(results):
            found = result["balanced"][i]
            torch.testing.assert_close(found, target[:, rank * B : (rank + 1) * B], rtol=1e-10, atol=0)
            assert not torch.allclose(found, Sinkhorn(K, joint=joint)(share(rank), 0.0))


def test_one_process_is_the_identity() -> None:
    x = share(0)
    assert collectives.mean(x) is x
    assert collectives.gather(x) is x

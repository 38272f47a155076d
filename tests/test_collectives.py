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
from dino_lab.components.losses.barlow import Barlow
from dino_lab.components.losses.info_nce import InfoNce
from dino_lab.components.losses.vicreg import Vicreg
from dino_lab.components.regularizers.koleo import Koleo
from dino_lab.components.targets.center import Center
from dino_lab.components.targets.sinkhorn import Sinkhorn
from dino_lab.types import Output, Views

WORLD, B, K = 2, 3, 4
PAIRS = 1 - torch.eye(2, dtype=torch.int8)


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
        "rank": collectives.rank(),
        "processes": collectives.processes(),
        **contrasted(mine),
        **weighted(mine),
    }


def contrasted(mine: Tensor) -> dict[str, Tensor]:
    """info_nce and koleo of a batch [T, B, K]."""
    target = mine.flip(2)
    torch.manual_seed(0)
    loss = InfoNce(K, queue=8).double()
    spread = Koleo()(Views([mine], PAIRS), Output(mine, mine, mine))
    accuracy = loss.measure(mine, target, PAIRS)["accuracy"]
    return {"info_nce": loss(mine, target, PAIRS), "accuracy": accuracy, "queue": loss.queue, "koleo": spread}


def weighted(mine: Tensor) -> dict[str, Tensor]:
    """Losses of what a layer makes of a batch [T, B, K], and the gradients of the layer."""
    found = {}
    for loss in (Vicreg(K), Barlow(K), InfoNce(K), Koleo()):
        layer = torch.randn(K, K, generator=torch.Generator().manual_seed(9), dtype=torch.float64) / 2
        z = mine @ layer.requires_grad_()
        value = loss(Views([z], PAIRS), Output(z, z, z)) if isinstance(loss, Koleo) else loss(z, z, PAIRS)
        value.backward()
        found |= {type(loss).__name__: value.detach(), f"{type(loss).__name__} gradient": layer.grad}
    return found


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


def test_gradient_of_gather_adds_up_what_both_ask(results: list[dict[str, Tensor]]) -> None:
    for rank, result in enumerate(results):
        mine = 2 * weight()[rank * B : (rank + 1) * B]
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


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """What one process computes on the whole batch."""
    batch = torch.cat([share(0), share(1)], dim=1)
    return contrasted(batch) | weighted(batch)


@pytest.mark.parametrize("name", ["info_nce", "accuracy", "koleo", "Vicreg", "Barlow"])
def test_the_mean_over_processes_is_the_value_of_the_whole_batch(
    name: str, results: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    mean = sum(result[name] for result in results) / WORLD
    torch.testing.assert_close(mean, whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Vicreg gradient", "Barlow gradient", "InfoNce gradient", "Koleo gradient"])
def test_the_mean_gradient_over_processes_is_that_of_the_whole_batch(
    name: str, results: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    mean = sum(result[name] for result in results) / WORLD
    assert mean.abs().max() > 0.1
    torch.testing.assert_close(mean, whole[name], rtol=1e-10, atol=1e-10)


def test_every_process_has_the_queue_of_all(
    results: list[dict[str, Tensor]], whole: dict[str, Tensor]
) -> None:
    for rank, result in enumerate(results):
        assert (result["rank"], result["processes"]) == (rank, WORLD)
        torch.testing.assert_close(result["queue"], whole["queue"], rtol=1e-12, atol=1e-12)


def test_one_process_is_the_identity() -> None:
    assert (collectives.rank(), collectives.processes()) == (0, 1)
    x = share(0)
    assert collectives.mean(x) is x
    assert collectives.gather(x) is x

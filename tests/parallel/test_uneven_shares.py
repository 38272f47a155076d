"""Collectives, losses, targets and diagnostics where processes have unequal shares of a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.components.losses.barlow import Barlow
from dino_lab.components.losses.cross_entropy import CrossEntropy
from dino_lab.components.losses.info_nce import InfoNce
from dino_lab.components.losses.mse import Mse
from dino_lab.components.losses.vicreg import Vicreg
from dino_lab.components.regularizers.koleo import Koleo
from dino_lab.components.targets.batch_softmax import BatchSoftmax
from dino_lab.components.targets.center import Center
from dino_lab.components.targets.sinkhorn import Sinkhorn
from dino_lab.testing.ranks import on_processes
from dino_lab.training.diagnostics import diagnose, diagnose_distribution
from dino_lab.training.loop import on_host
from dino_lab.types import Output, Views

T, B, K = 2, 7, 4
PAIRS = 1 - torch.eye(T, dtype=torch.int8)
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "barlow": lambda: Barlow(K),
    "cross_entropy": lambda: CrossEntropy(K),
    "info_nce": lambda: InfoNce(K),
    "info_nce, paired": lambda: InfoNce(K, in_batch="paired", scale_by_temperature=True),
    "info_nce, queue": lambda: InfoNce(K, in_batch=False, queue=5),
    "mse": lambda: Mse(K),
    "vicreg": lambda: Vicreg(K),
    "koleo": Koleo,
}
TARGETS: dict[str, Callable[[], nn.Module]] = {
    "center": lambda: Center(K),
    "sinkhorn": lambda: Sinkhorn(K),
    "sinkhorn, joint": lambda: Sinkhorn(K, joint=True),
    "batch_softmax": lambda: BatchSoftmax(K),
}


def batch() -> Tensor:
    """Outputs [T, B, K]."""
    return torch.randn(T, B, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def computed() -> dict[str, Tensor]:
    """Of this process's share of the batch: values, gradients of a layer before the loss, states, targets."""
    mine, found = batch()[:, collectives.share(B)], {}
    with collectives.dividing(B):
        for name, make in LOSSES.items():
            torch.manual_seed(0)
            loss = make().double()
            layer = torch.randn(K, K, generator=torch.Generator().manual_seed(9), dtype=torch.float64) / 2
            z = mine @ layer.requires_grad_()
            other = z.flip(2).softmax(-1)
            value = loss(Views([z], PAIRS), Output(z, z, z)) if name == "koleo" else loss(z, other, PAIRS)
            value.backward()
            found[f"{name}: value"] = collectives.mean(value.detach())
            found[f"{name}: gradient"] = collectives.mean(layer.grad)
            found |= {f"{name}: {key}": state for key, state in loss.state_dict().items()}
        for name, make in TARGETS.items():
            targets = make().double()
            found[f"{name}: target"] = [targets(mine, 0.0), targets(mine, 0.5)][1]
            found |= {f"{name}: {key}": state for key, state in targets.state_dict().items()}
        numbers = {
            **diagnose(Output(mine, mine, mine), mine),
            **diagnose_distribution(mine.softmax(-1), PAIRS),
        }
        found |= on_host(numbers)
        found["accuracy"] = collectives.mean(InfoNce(K).measure(mine, mine.flip(2), PAIRS)["accuracy"])
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_components_compute_what_they_do_of_the_whole_batch(processes: int) -> None:
    whole, ranks = computed(), on_processes(processes, computed)
    for rank, found in enumerate(ranks):
        assert found.keys() == whole.keys()
        part = torch.arange(B).tensor_split(processes)[rank]
        for name, value in whole.items():
            wanted = value[:, part] if name.endswith(": target") else value
            torch.testing.assert_close(
                found[name], wanted, rtol=1e-10, atol=1e-7 if name == "accuracy" else 1e-10, msg=name
            )


def collected() -> dict[str, object]:
    mine = batch()[0][collectives.share(B)].clone().requires_grad_()
    with collectives.dividing(B):
        gathered = collectives.gather(mine)
        (gathered * torch.arange(B)[:, None]).sum().backward()
        return {
            "share": collectives.share(B),
            "weights": collectives.weights(),
            "whole": collectives.whole(2 * len(mine)),
            "place": collectives.place(2 * len(mine)),
            "sum": collectives.all_sum(mine.detach().sum(0)),
            "gathered": gathered.detach(),
            "gradient": mine.grad * collectives.weight(),
        }


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_shares_are_those_of_tensor_split(processes: int) -> None:
    parts = torch.arange(B).tensor_split(processes)
    for rank, found in enumerate(on_processes(processes, collected)):
        assert torch.arange(B)[found["share"]].tolist() == parts[rank].tolist()
        assert found["weights"] == pytest.approx([len(part) / B for part in parts])
        assert found["whole"] == 2 * B
        assert found["place"] == 2 * int(parts[rank][0])
        assert torch.equal(found["gathered"], batch()[0])
        torch.testing.assert_close(found["sum"], batch()[0].sum(0))
        # All processes ask the same of every image, so that the mean of what they ask is what one asks.
        torch.testing.assert_close(found["gradient"], parts[rank][:, None].expand(-1, K).double())


def test_the_first_message_reaches_all() -> None:
    def work() -> list[str]:
        said = {0: "", 1: "one", 2: "two"}[collectives.rank()]
        return [collectives.first_message(said), collectives.first_message("")]

    assert on_processes(3, work) == [["one", ""]] * 3

"""The contrastive loss InfoNCE."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.registry import register


@register("loss", "info_nce")
class InfoNce(nn.Module):
    """-log softmax of student . target / temperature at the positive, among all candidates (InfoNCE).

    CPC, arXiv 1807.03748, Eq. 4; mean over positives. Candidates are, of the same sample, the targets that
    `pairs` names, with +1 (positives) or -1; of other samples, with `in_batch: true` all their targets, with
    `paired` those of the views that are positive for this one; and the last `queue` targets of earlier steps.
    A second positive stands in the denominator too (SupCon, arXiv 2004.11362, Eq. 2).

    SimCLR (arXiv 2002.05709, Eq. 1): in_batch. MoCo v2 (arXiv 1911.05722, Eq. 1): no in_batch, a queue. MoCo
    v3 (arXiv 2104.02057, Alg. 1): in_batch: paired, `scale_by_temperature`; it adds the two directions, this
    is their mean. Patch discrimination: neither, -1 pairs. DCL (arXiv 2110.06848): `decoupled`, positives are
    no candidates, so that small batches learn faster. With several processes the targets of all of them are
    candidates, and gradients reach them as on one process.
    """

    negatives = True
    cross_entropy = False
    queue: Tensor

    def __init__(
        self,
        dim: int,
        *,
        temperature: Annotated[
            float, Field(gt=0, description="tau of the softmax; MoCo v2: 0.2, SimCLR: 0.1 to 0.5")
        ] = 0.2,
        in_batch: Annotated[
            bool | Literal["paired"],
            Field(description="candidates of other samples: all their targets, none, or of paired views"),
        ] = True,
        queue: Annotated[int, Field(ge=0, description="targets of earlier steps; MoCo: 65536")] = 0,
        normalize: Annotated[bool, Field(description="scale student and target to unit length first")] = True,
        decoupled: Annotated[
            bool, Field(description="leave positives out of the denominator, as DCL does")
        ] = False,
        scale_by_temperature: Annotated[
            bool, Field(description="multiply the loss by 2 * temperature, as MoCo v3")
        ] = False,
    ) -> None:
        super().__init__()
        self.temperature, self.in_batch, self.normalize = temperature, in_batch, normalize
        self.decoupled = decoupled
        self.scale = 2 * temperature if scale_by_temperature else 1.0
        # Random directions until real targets have pushed them out, as in MoCo's code.
        self.register_buffer("queue", F.normalize(torch.randn(queue, dim), dim=-1))

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """[S, B, K], [T, B, K], [S, T] to a scalar; in training mode the targets then join the queue."""
        student, target = self._directions(student), self._directions(target)
        logits, positive, candidate = self._candidates(student, target, pairs)
        counted = candidate & ~positive if self.decoupled else candidate
        total = logits.masked_fill(~counted, -torch.inf).logsumexp(-1, keepdim=True)
        # Selected, not multiplied: a view without any candidate has a total of -inf.
        pulled = positive & counted.any(-1, keepdim=True)
        loss = torch.where(pulled, total - logits, 0.0).sum() / positive.sum()
        if self.training and len(self.queue):
            newest = _everyones(target).detach().flatten(0, 1).to(self.queue)
            # A new tensor, because backward needs the old one.
            self.queue = torch.cat([newest, self.queue])[: len(self.queue)]
        return loss * self.scale

    def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """`accuracy`: share of samples for which a positive scores above every other candidate."""
        student, target = self._directions(student), self._directions(target)
        logits, positive, candidate = self._candidates(student, target, pairs)
        best = logits.masked_fill(~positive, -torch.inf).amax(-1)  # [S, B]
        rival = logits.masked_fill(positive | ~candidate, -torch.inf).amax(-1)
        asked = (pairs > 0).any(1, keepdim=True)  # [S, 1]
        return {"accuracy": ((best > rival) & asked).sum() / (asked.sum() * student.shape[1])}

    def check_pairs(self, pairs: Tensor) -> None:
        """ValueError where a positive would be the only candidate, so that the loss is always 0."""
        alone = (pairs > 0).any(1) & ~(pairs < 0).any(1)
        if not self.in_batch and not len(self.queue) and bool(alone.any()):
            raise ValueError(
                "nothing to push apart: needs in_batch, a queue, or an augmentation with -1 pairs"
            )

    def _directions(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) if self.normalize else x

    def _candidates(self, query: Tensor, key: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [S, B, candidates], and which of them are positives, and candidates at all."""
        keys = _everyones(key)  # [T, N, K], the samples of all processes
        B, N, Q = query.shape[1], keys.shape[1], len(self.queue)
        first = collectives.place(B)
        place = torch.arange(N, device=pairs.device)
        same = place == place[first : first + B, None]  # [B, N]
        relation = pairs[:, None, :, None]  # [S, 1, T, 1]
        positive = (relation > 0) & same[None, :, None]  # [S, B, T, N]
        candidate = (relation != 0) & same[None, :, None]
        if self.in_batch:
            others = (
                relation > 0 if self.in_batch == "paired" else torch.ones_like(relation, dtype=torch.bool)
            )
            candidate = candidate | (others & ~same[None, :, None])
        batch = torch.einsum("sbk,tnk->sbtn", query, keys).flatten(2)
        logits = torch.cat([batch, query @ self.queue.to(query).T], dim=2) / self.temperature
        return (
            logits,
            F.pad(positive.flatten(2), (0, Q), value=False),
            F.pad(candidate.flatten(2), (0, Q), value=True),
        )


def _everyones(key: Tensor) -> Tensor:
    """[T, B, K] of every process, joined to [T, N, K]."""
    return collectives.gather(key.transpose(0, 1)).transpose(0, 1)

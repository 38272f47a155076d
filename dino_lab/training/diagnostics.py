"""Is it training, or has it collapsed? The numbers of one step, and their reading in words."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.runs.rows import main_score, scores
from dino_lab.types import Output

PATIENCE = 5  # consecutive rows that must agree before a collapse is called one
UNIFORM = 0.99  # share of ln K above which a target says nothing
ONE_OUTPUT = 1.5  # effective number of outputs in use below which there is only one
NO_SPREAD = 0.02  # feature spread below which all features are the same
# Features that drew together: a spread below 0.1 (a mean cosine above 0.99), and below half of the first
# row's, for a network may start low. Of 24 methods on the embedded shapes those that learn stay above 0.2.
LITTLE_SPREAD, SHRUNKEN = 0.1, 0.5
ACCURACIES = ("nn", "top1", "accuracy")  # how the names of scores end that are higher for better features


@torch.no_grad()
def diagnose(student: Output, teacher: Tensor) -> dict[str, Tensor]:
    """Numbers that any method has: of the teacher's outputs [T, B, K] and the student's features.

    center_norm: length of the mean teacher output. feature_spread: root of the variance over the batch of
    unit-length features, summed over D: 1 if they fill the sphere evenly, 0 if they are all the same.
    effective_rank: exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885, Eq. 1),
    at most min(B, D).
    """
    features = student.features[0].float()  # [B, D]
    directions = F.normalize(features, dim=-1)
    spread = directions.std(0, correction=0).square().sum().sqrt()
    return {
        "center_norm": teacher.float().mean((0, 1)).norm(),
        "feature_spread": spread,
        "effective_rank": _effective_rank(features),
    }


def _effective_rank(features: Tensor) -> Tensor:
    tall = features if len(features) >= features.shape[1] else features.T
    # Singular values from the small Gram matrix: 10 times cheaper than an SVD of the features.
    values = torch.linalg.eigvalsh((tall.T @ tall).double().nan_to_num()).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp()


@torch.no_grad()
def diagnose_distribution(target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """Numbers of targets [T, B, K] whose rows sum to 1, views weighted as the loss weighs them.

    entropy: of a single target, mean (DINO, arXiv 2104.14294, Sec. 5.3). entropy_max: ln K.
    outputs_in_use: exp of the entropy of the mean target, at most K.
    """
    weight = (pairs > 0).sum(0).to(target.dtype)  # [T]
    entropy = torch.special.entr(target).sum(-1).mean(1)  # [T]
    return {
        "entropy": (entropy * weight).sum() / weight.sum(),
        "entropy_max": target.new_tensor(math.log(target.shape[-1])),
        "outputs_in_use": torch.special.entr(target.mean((0, 1))).sum().exp(),
    }


@dataclass(frozen=True)
class Verdict:
    """What the numbers of a run say, as a name for programs and a sentence for people.

    `sentence` is a headline, a colon, and the numbers behind it. `doubtful` is True where the name alone
    promises too much: signs of a collapse gather, or the score is not above that before training.
    """

    name: Literal["warming up", "learning", "collapsed to uniform", "collapsed to one output"]
    sentence: str
    doubtful: bool = False

    @property
    def collapsed(self) -> bool:
        """Nothing more will be learned."""
        return self.name.startswith("collapsed")

    @property
    def headline(self) -> str:
        """The sentence without its numbers."""
        return self.sentence.partition(":")[0]


class Reader:
    """Reads row after row and gives a verdict; a collapse must show in several consecutive rows."""

    def __init__(self, warm_up: float) -> None:
        """`warm_up`: share of the run in which nothing is called a collapse."""
        self._warm_up = warm_up
        self._signs: deque[str] = deque(maxlen=PATIENCE)
        self._first_spread: float | None = None
        self._score = ""  # the name of the accuracy that is followed
        self._untrained = self._latest = math.nan
        self.verdict = Verdict("warming up", "warming up: no row yet")

    def read(self, numbers: Mapping[str, float], progress: float) -> Verdict:
        """The verdict after one more row."""
        self._follow_score(numbers)
        if "loss" not in numbers:
            return self.verdict
        if self._first_spread is None:
            self._first_spread = numbers["feature_spread"]
        self._signs.append(_sign(numbers, self._first_spread))
        self.verdict = self._judge(numbers, progress, self._first_spread)
        return self.verdict

    def _follow_score(self, numbers: Mapping[str, float]) -> None:
        """Keep the first and the latest value of the main accuracy."""
        found = {name: value for name, value in scores(numbers).items() if name.endswith(ACCURACIES)}
        if not self._score and (name := main_score(found)):
            self._score, self._untrained = name, found[name]
        elif self._score in found:
            self._latest = found[self._score]

    def _judge(self, numbers: Mapping[str, float], progress: float, first_spread: float) -> Verdict:
        signs = self._consecutive_signs()
        if not all(map(math.isfinite, (numbers["loss"], numbers["feature_spread"]))):
            return Verdict(
                "learning", f"not finite: loss {numbers['loss']}, {_spread(numbers)}", doubtful=True
            )
        if progress < self._warm_up:
            until = f"until {self._warm_up:.0%} of the run"
            return Verdict("warming up", f"warming up {until}: {_state(numbers)}")
        if signs == PATIENCE:
            # A collapse may swing between the two kinds; it is called by what it is now.
            if self._signs[-1] == "uniform":
                return Verdict("collapsed to uniform", _uniform(numbers))
            return Verdict("collapsed to one output", _one_output(numbers, first_spread))
        if signs:
            headline = f"signs of collapse ({signs} of {PATIENCE} rows)"
            seen = [_state(numbers)]
            if "outputs_in_use" in numbers:
                seen += [f"{numbers['outputs_in_use']:.1f} outputs in use", _spread(numbers)]
            return Verdict("learning", f"{headline}: {', '.join(seen)}", doubtful=True)
        if self._latest <= self._untrained:
            compared = f"{self._score} {self._latest:.4f}, {self._untrained:.4f} untrained"
            sentence = f"learning, but no better than untrained yet: {compared}; {_state(numbers)}"
            return Verdict("learning", sentence, doubtful=True)
        return Verdict("learning", f"learning: {_state(numbers)}")

    def _consecutive_signs(self) -> int:
        """How many of the latest rows, without a gap, show a sign of collapse."""
        latest_first = list(reversed(self._signs))
        return latest_first.index("") if "" in latest_first else len(latest_first)


def _sign(numbers: Mapping[str, float], first_spread: float) -> str:
    spread = numbers["feature_spread"]
    if spread < NO_SPREAD or numbers.get("outputs_in_use", math.inf) < ONE_OUTPUT:
        return "one output"
    if "entropy" in numbers and numbers["entropy"] > UNIFORM * numbers["entropy_max"]:
        return "uniform"
    if spread < min(LITTLE_SPREAD, SHRUNKEN * first_spread):
        return "one output"
    return ""


def _state(numbers: Mapping[str, float]) -> str:
    if "entropy" not in numbers:
        return f"{_spread(numbers)}, rank {numbers['effective_rank']:.1f}"
    text = f"target entropy {numbers['entropy']:.2f} of at most {numbers['entropy_max']:.2f}"
    return text + (f", KL {numbers['kl']:.3f}" if "kl" in numbers else "")


def _spread(numbers: Mapping[str, float]) -> str:
    return f"feature spread {numbers['feature_spread']:.2f}"


def _uniform(numbers: Mapping[str, float]) -> str:
    outputs = round(math.exp(numbers["entropy_max"]))
    return (
        f"collapsed to uniform: target entropy {numbers['entropy']:.3f} is ln {outputs} = "
        f"{numbers['entropy_max']:.3f}, so the teacher gives every output the same weight and there is "
        "nothing to learn. Usual cause: targets.temperature is too high (0.04 is safe; above 0.06 it needs a "
        "warm-up); else optim.lr is too high"
    )


def _one_output(numbers: Mapping[str, float], first_spread: float) -> str:
    seen = f"feature spread {numbers['feature_spread']:.3f}, {first_spread:.3f} at first"
    if "outputs_in_use" in numbers:
        seen = f"{numbers['outputs_in_use']:.1f} outputs in use, {seen}"
    return (
        f"collapsed to one output: {seen}: every image gets nearly the same answer. Usual cause: no centring "
        "(targets softmax, or targets.momentum at 1 or 0.999), a teacher that is the student itself, or a "
        "loss without negatives and without predictor"
    )

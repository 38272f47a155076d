"""Is it training, or has it collapsed? The numbers of one step, and their reading in words."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab import collectives
from dino_lab.runs.rows import main_score, scores
from dino_lab.types import Output, at_least_float32

PATIENCE = 5  # consecutive rows that must agree before a collapse is called one
UNIFORM = 0.99  # share of ln K above which a target says nothing
ONE_OUTPUT = 1.5  # effective number of outputs in use below which there is only one
NO_SPREAD = 0.02  # feature spread below which all features are the same
# Features that drew together: a spread below 0.1 (a mean cosine above 0.99), and below half of the first
# row's, for a network may start low. Of 24 methods on the embedded shapes those that learn stay above 0.2.
LITTLE_SPREAD, SHRUNKEN = 0.1, 0.5
# Targets without doubt on a handful of many outputs: on the way to one, or a few clusters are told apart.
SURE, FEW_OUTPUTS, MANY_OUTPUTS = 0.01, 4, 64  # share of ln K; outputs in use; K
ACCURACIES = ("nn", "top1", "accuracy")  # how the names of scores end that are higher for better features

Floors = Mapping[str, Mapping[str, float]]  # of scores, as Status.floors
Tone = Literal["good", "doubtful", "bad", "waiting"]


@dataclass(frozen=True)
class OnHost:
    """A number that `finish` makes of a tensor once that is on the host."""

    tensor: Tensor
    finish: Callable[[Tensor], float]


@torch.no_grad()
def diagnose(student: Output, teacher: Tensor) -> dict[str, Tensor | OnHost]:
    """Numbers that any method has: of the teacher's outputs [T, B, K] and the student's features.

    Of the images of every process.

    center_norm: length of the mean teacher output. feature_spread: root of the variance over the batch of
    unit-length features, summed over D: 1 if they fill the sphere evenly, 0 if they are all the same.
    effective_rank: exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885, Eq. 1),
    at most min(B, D).
    """
    features = collectives.gather(at_least_float32(student.features[0]))  # [B, D]
    directions = F.normalize(features, dim=-1)
    spread = directions.std(0, correction=0).square().sum().sqrt()
    return {
        "center_norm": collectives.mean(at_least_float32(teacher).mean((0, 1))).norm(),
        "feature_spread": spread,
        "effective_rank": _effective_rank(features),
    }


def _effective_rank(features: Tensor) -> OnHost:
    tall = (features if len(features) >= features.shape[1] else features.T).double()
    # Singular values from the small Gram matrix: 10 times cheaper than an SVD of the features. In float32 its
    # rounding would be singular values of 1e-4 of the largest, which differ with the number of processes.
    # The eigenvalues are the host's work: a GPU takes longer for them, and would be waited for meanwhile.
    return OnHost((tall.T @ tall).nan_to_num(), _rank_of_gram)


def _rank_of_gram(gram: Tensor) -> float:
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=1e-12)
    return torch.special.entr(share).sum().exp().item()


@torch.no_grad()
def diagnose_distribution(target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """Numbers of targets [T, B, K] whose rows sum to 1, views weighted as the loss weighs them.

    entropy: of a single target, mean (DINO, arXiv 2104.14294, Sec. 5.3). entropy_max: ln K.
    outputs_in_use: exp of the entropy of the mean target, at most K.
    """
    weight = (pairs > 0).sum(0).to(target.dtype)  # [T]
    entropy = collectives.mean(torch.special.entr(target).sum(-1).mean(1))  # [T]
    return {
        "entropy": (entropy * weight).sum() / weight.sum(),
        "entropy_max": target.new_tensor(math.log(target.shape[-1])),
        "outputs_in_use": torch.special.entr(collectives.mean(target.mean((0, 1)))).sum().exp(),
    }


@dataclass(frozen=True)
class Verdict:
    """What the numbers of a run say, as a name for programs and a sentence for people.

    `sentence` is a headline, a colon, and the numbers behind it. `doubtful` is True where the name alone
    promises too much: signs of a collapse gather, or the score is not above that before training. `better` is
    True where the score is above it; `below_start` where the run began with trained weights and is below
    their score.
    """

    name: Literal["warming up", "learning", "collapsed to uniform", "collapsed to one output"]
    sentence: str
    doubtful: bool = False
    better: bool = False
    below_start: bool = False

    @property
    def collapsed(self) -> bool:
        """Nothing more will be learned."""
        return self.name.startswith("collapsed")

    @property
    def headline(self) -> str:
        """The sentence without its numbers."""
        return self.sentence.partition(":")[0]

    @property
    def tone(self) -> Tone:
        """How it is coloured; `good` is only a score that is above that before training."""
        if self.collapsed:
            return "bad"
        if self.doubtful:
            return "doubtful"
        return "good" if self.better and self.name == "learning" else "waiting"


def followed_score(names: Iterable[str]) -> str | None:
    """The accuracy that a verdict speaks of, or None where none of the scores is an accuracy."""
    return main_score(name for name in names if name.endswith(ACCURACIES))


class Reader:
    """Reads row after row and gives a verdict; a collapse must show in several consecutive rows."""

    def __init__(self, warm_up: float, floors: Floors | None = None, *, begins_trained: bool = False) -> None:
        """`warm_up`: share of the run in which nothing is called a collapse; `floors`: those of scores.

        `begins_trained` is whether first weights are trained ones, which the score should not fall below.
        """
        self._warm_up, self._floors, self._begins_trained = warm_up, floors or {}, begins_trained
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
        found = scores(numbers)
        if not self._score and (name := followed_score(found)):
            self._score, self._untrained = name, found[name]
        elif self._score in found:
            self._latest = found[self._score]

    def _judge(self, numbers: Mapping[str, float], progress: float, first_spread: float) -> Verdict:
        if not all(map(math.isfinite, (numbers["loss"], numbers["feature_spread"]))):
            return Verdict(
                "learning", f"not finite: loss {numbers['loss']}, {_spread(numbers)}", doubtful=True
            )
        kind, signs = self._signs[-1], self._consecutive_signs()
        gathering = f"signs of collapse to {kind} ({signs} of {PATIENCE} rows)"
        if progress < self._warm_up:
            headline = f"warming up until {self._warm_up:.0%} of the run" + f", {gathering}" * bool(signs)
            return Verdict("warming up", f"{headline}: {_seen(numbers, signs)}", doubtful=bool(signs))
        if signs == PATIENCE:
            # A collapse may swing between the two kinds; it is called by what it is now.
            if kind == "uniform":
                return Verdict("collapsed to uniform", _uniform(numbers))
            return Verdict("collapsed to one output", _one_output(numbers, first_spread))
        if signs:
            return Verdict("learning", f"{gathering}: {_seen(numbers, signs)}", doubtful=True)
        if _is_sure_of_few(numbers):
            headline = "learning, but few outputs are in use"
            return Verdict("learning", f"{headline}: {_seen(numbers, 1)}", doubtful=True)
        return self._compared(_state(numbers))

    def _consecutive_signs(self) -> int:
        """How many of the latest rows, without a gap, show a sign of collapse."""
        latest_first = list(reversed(self._signs))
        return latest_first.index("") if "" in latest_first else len(latest_first)

    def _compared(self, state: str) -> Verdict:
        """That it learns, and how the score stands to those of no training and no learning."""
        if math.isnan(self._latest):
            return Verdict("learning", f"learning: {state}")
        first = "first weights" if self._begins_trained else "untrained"
        floors = {first: self._untrained, **self._floors.get(self._score, {})}
        values = ", ".join(f"{value:.4f} {name}" for name, value in floors.items())
        if self._latest <= self._untrained:
            compared = f"{self._score} {self._latest:.4f}, {values}"
            fell = self._begins_trained and self._latest < self._untrained
            headline = f"below its {first}" if fell else f"learning, but no better than {first} yet"
            return Verdict("learning", f"{headline}: {compared}; {state}", doubtful=True, below_start=fell)
        below = [floor for floor, value in floors.items() if self._latest <= value]
        above = [floor for floor in floors if floor not in below and floor != "chance"]
        name = re.sub(r"^.*\.(\d+)nn$", r"\1-NN", self._score)
        headline = f"learning; {name} above {' and '.join(above)}"
        headline += f", below {' and '.join(below)}" if below else ""
        return Verdict("learning", f"{headline}: {self._latest:.4f}, {values}; {state}", better=True)


def _sign(numbers: Mapping[str, float], first_spread: float) -> str:
    spread = numbers["feature_spread"]
    if spread < NO_SPREAD or numbers.get("outputs_in_use", math.inf) < ONE_OUTPUT:
        return "one output"
    if "entropy" in numbers and numbers["entropy"] > UNIFORM * numbers["entropy_max"]:
        return "uniform"
    if spread < min(LITTLE_SPREAD, SHRUNKEN * first_spread):
        return "one output"
    return ""


def _is_sure_of_few(numbers: Mapping[str, float]) -> bool:
    if "entropy" not in numbers:
        return False
    highest = numbers["entropy_max"]
    return (
        highest >= math.log(MANY_OUTPUTS)
        and numbers["entropy"] < SURE * highest
        and numbers["outputs_in_use"] < FEW_OUTPUTS
    )


def _seen(numbers: Mapping[str, float], signs: int) -> str:
    """The state, and with signs of a collapse what they are read from."""
    seen = [_state(numbers)]
    if signs and "outputs_in_use" in numbers:
        seen += [f"{numbers['outputs_in_use']:.1f} outputs in use", _spread(numbers)]
    return ", ".join(seen)


def _state(numbers: Mapping[str, float]) -> str:
    if "entropy" not in numbers:
        return f"{_spread(numbers)}, rank {numbers['effective_rank']:.1f}"
    entropy = numbers["entropy"]
    shown = f"{entropy:.2f}" if entropy >= 0.01 or entropy == 0 else f"{entropy:.0e}"
    text = f"target entropy {shown} of at most {numbers['entropy_max']:.2f}"
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

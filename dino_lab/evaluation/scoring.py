"""Evaluators applied to networks: one pass, in which each image goes through each network once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from dino_lab.building.data_check import check_labels
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.protocols import Data, Evaluator, Teacher


@dataclass(frozen=True)
class Scored:
    """What one evaluator found."""

    name: str
    protocol: str
    of: str  # whose features: teacher or student
    scores: dict[str, float]
    files: dict[str, bytes]  # names and contents of what it leaves

    @property
    def named_scores(self) -> dict[str, float]:
        """Scores under the evaluator's name, as a row has them."""
        return {f"{self.name}.{key}": value for key, value in self.scores.items()}

    @property
    def named_files(self) -> dict[str, bytes]:
        """Files under the evaluator's name and whose features they are of."""
        return {f"{self.name}.{self.of}.{file}": content for file, content in self.files.items()}


def score(
    evaluators: Sequence[tuple[str, Evaluator]],
    data: Data,
    network: Callable[[str], Network],
    size: int,
    autocast: Callable[[], AbstractContextManager[object]],
    *,
    files: bool = True,
) -> list[Scored]:
    """What evaluators, by name, find of `network(of)`, seeing images of `size` pixels.

    Without `files` they are not asked for what they would leave.
    """
    for _, one in evaluators:
        check_labels(one, data)
    wants = frozenset({"features"}).union(*(getattr(e, "wants", ()) for _, e in evaluators))
    with ExitStack() as stack:
        encoders: dict[int, Encoder] = {}  # the student's may be asked for under both names

        def encoder(of: str) -> Encoder:
            its = network(of)
            if id(its) not in encoders:
                stack.enter_context(frozen(its))
                encoders[id(its)] = Encoder(its, size, autocast, wants)
            return encoders[id(its)]

        # Who looks at annotated images comes first: others find there what they ask of the same images.
        order = sorted(evaluators, key=lambda its: "data.annotated" not in getattr(its[1], "needs", ()))
        found = {name: _score(name, one, encoder(one.of), data, files) for name, one in order}
        return [found[name] for name, _ in evaluators]


def network_of(of: str, student: Network, teacher: Teacher) -> Network:
    """The teacher's network if `of` is "teacher" and it has one, else the student."""
    return teacher.network if of == "teacher" and teacher.network is not None else student


def _score(name: str, evaluator: Any, encode: Encoder, data: Data, files: bool) -> Scored:
    try:
        scores = evaluator.forward(encode, data)
        left = evaluator.files(encode, data) if files and hasattr(evaluator, "files") else {}
    except UserError as error:  # of what all share, such as the encoder, it does not say who asked
        said = str(error)
        raise UserError(said if said.startswith("evaluator ") else f"evaluator {name}: {said}") from error
    return Scored(name, evaluator.protocol, evaluator.of, scores, left)


@contextmanager
def frozen(network: Network) -> Iterator[None]:
    """Evaluation mode; every module is put back as it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

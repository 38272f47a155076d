"""Evaluators applied to networks: one pass, in which each image goes through each network once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from dino_lab.building.data_check import check_labels
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import Representation
from dino_lab.network import Network, evaluation_mode
from dino_lab.protocols import (
    Data,
    Evaluator,
    GivesAnnotations,
    GivesFiles,
    ability,
    needs_of,
    representations_of,
)
from dino_lab.runs.folder import RunFolder


@dataclass(frozen=True)
class Scored:
    """The results of one evaluator."""

    name: str
    protocol: str
    of: str  # whose features: teacher or student
    scores: dict[str, float]
    files: dict[str, bytes]  # names and contents

    @property
    def named_scores(self) -> dict[str, float]:
        """Scores under the evaluator's name, as a row has them."""
        return {f"{self.name}.{key}": value for key, value in self.scores.items()}

    @property
    def named_files(self) -> dict[str, bytes]:
        """Files under the evaluator's name and whose features they are of."""
        return {f"{self.name}.{self.of}.{file}": content for file, content in self.files.items()}


def write_files(found: Sequence[Scored], folder: RunFolder, step: int) -> None:
    """Keep the files of evaluators in a run's folder, under their names and those of their networks."""
    for scored in found:
        for name, content in scored.named_files.items():
            folder.write_evaluation(step, name, content)


def score(
    evaluators: Sequence[tuple[str, Evaluator]],
    data: Data,
    network: Callable[[str], Network],
    size: int,
    autocast: Callable[[], AbstractContextManager[object]],
    *,
    files: bool = True,
) -> list[Scored]:
    """The results of evaluators, by name, for `network(of)` at images of `size` pixels.

    Without `files` they write none.
    """
    for _, one in evaluators:
        check_labels(one, data)
    features: frozenset[Representation] = frozenset({"features"})
    wants = features.union(*(representations_of(evaluator) for _, evaluator in evaluators))
    with ExitStack() as stack:
        encoders: dict[int, Encoder] = {}  # the student's may be asked for under both names

        def encoder(of: str) -> Encoder:
            its = network(of)
            if id(its) not in encoders:
                stack.enter_context(evaluation_mode(its))
                encoders[id(its)] = Encoder(its, size, autocast, wants)
            return encoders[id(its)]

        # First those of annotated images, whose outputs others then need not compute again.
        order = sorted(evaluators, key=lambda its: ("data", GivesAnnotations) not in needs_of(its[1]))
        found = {name: _score(name, one, encoder(one.of), data, files) for name, one in order}
        return [found[name] for name, _ in evaluators]


@contextmanager
def naming(name: str) -> Iterator[None]:
    """A UserError that says which evaluator asked: what all share, such as the encoder, does not know."""
    try:
        yield
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith("evaluator ") else f"evaluator {name}: {said}") from error


def _score(name: str, evaluator: Evaluator, encode: Encoder, data: Data, files: bool) -> Scored:
    with naming(name):
        scores = evaluator.forward(encode, data)
        writer = ability(evaluator, GivesFiles) if files else None
        written = {} if writer is None else writer.files(encode, data)
    return Scored(name, evaluator.protocol, evaluator.of, scores, written)

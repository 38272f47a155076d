"""The conformance kit: what built-in components and those of plugins are tested with alike."""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dino_lab.evaluation.floors import pixel_encoder
from dino_lab.protocols import GivesFloors, ability
from dino_lab.registry import ComponentError, Registry
from dino_lab.registry import registry as default_registry
from dino_lab.testing.divided import check_divided
from dino_lab.testing.images import AugmentTrial, DataTrial, OperationTrial
from dino_lab.testing.networks import BackboneTrial, HeadTrial
from dino_lab.testing.objectives import LossTrial, RegularizerTrial, TargetsTrial
from dino_lab.testing.parameters import check_edges, check_refusals, check_schema
from dino_lab.testing.teacher import TeacherTrial
from dino_lab.testing.tested_component import Failed, TestedComponent, tensors
from dino_lab.testing.trial import Size, Stateless, Trial
from dino_lab.training.build import Run
from dino_lab.training.loop import train


@contextmanager
def installed(*folders: Path, registry: Registry = default_registry) -> Iterator[dict[str, str]]:
    """Let the plugins in `folders`, each with a pyproject.toml, be found; forget them in the end.

    Yields the environment in which other processes find them too.
    """
    known = set(sys.modules)
    with tempfile.TemporaryDirectory() as metadata, registry.scratch():
        for folder in folders:
            write_metadata(folder, Path(metadata))
        paths = [metadata, *(str(folder.resolve()) for folder in folders)]
        sys.path[:0] = paths
        try:
            python_path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
            yield os.environ | {"PYTHONPATH": python_path}
        finally:
            for path in paths:
                sys.path.remove(path)
            for name in set(sys.modules) - known:
                if _lies_in(sys.modules[name], paths[1:]):
                    del sys.modules[name]


def write_metadata(folder: Path, into: Path) -> None:
    """What an installer would write of a plugin's pyproject.toml: name, version, needs and entry points."""
    project: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    name, version = project["name"], project.get("version", "0")  # another file may say the version
    info = into / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in project.get("dependencies", [])]
    (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    groups = project.get("entry-points", {}).items()
    points = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups]
    (info / "entry_points.txt").write_text("".join(points), encoding="utf-8")


def _lies_in(module: Any, folders: list[str]) -> bool:
    file = getattr(module, "__file__", None) or ""
    return any(Path(folder) in Path(file).parents for folder in folders)


def check_run(subject: TestedComponent) -> None:
    """Two steps move the student, leave the teacher without gradient, and can be stopped in between."""
    whole, resumed = subject.run(), subject.run()
    before = tensors(whole.student.state_dict())
    _evaluate(whole)  # which must not change the run: the resumed one does without
    _step(subject, whole, 0)
    saved = io.BytesIO()
    torch.save(whole.state_dict(), saved)
    saved.seek(0)
    _step(subject, whole, 1)
    moved = tensors(whole.student.state_dict())
    subject.expect(
        any(not torch.equal(before[key], moved[key]) for key in before),
        "two steps of training do not move the student; a gradient should reach it",
    )
    network: Any = whole.teacher.network
    subject.expect(
        network is None or all(parameter.grad is None for parameter in network.parameters()),
        "a gradient reaches the teacher's network; it should be made under torch.no_grad()",
    )
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    _step(subject, resumed, 1)
    _expect_same(subject, whole, resumed)
    _step(subject, replace(whole, spec=subject.spec("train.precision=bfloat16")), 2)


def _step(subject: TestedComponent, run: Run, step: int) -> None:
    with subject.trying(f"a training step in {run.spec.train.precision}", "a run with it should go through"):
        next(train(run, step))


def _evaluate(run: Run) -> list[dict[str, float]]:
    return [scored.scores for scored in run.evaluate(list(run.evaluators.items()))]


def _expect_same(subject: TestedComponent, whole: Run, resumed: Run) -> None:
    one, other = tensors(whole.state_dict()), tensors(resumed.state_dict())
    different = [key for key in one if key not in other or not torch.equal(one[key], other[key])]
    subject.expect(
        not different,
        f"a run that is stopped after the first step and resumed ends with another {(different or [''])[0]}; "
        "what changes should be a buffer or a parameter, and random numbers come from the run's generators",
    )
    subject.expect(
        _evaluate(whole) == _evaluate(resumed),
        "the same weights get other scores in a resumed run; they should depend on features and data alone",
    )


class EvaluatorTrial(Stateless):
    """Frozen features and data to scores by name."""

    sizes: ClassVar = [()]
    randomness = "a generator of its own with a fixed seed"

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """Nothing."""
        return ()

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The scores of the method's network before training, in the order of their names."""
        with self.subject.trying("forward", "it should return scores by name"):
            (scored,) = self.subject.method.evaluate([(self.subject.entry.name, part)])
            scores = scored.scores
        if not isinstance(scores, dict) or not scores:
            self.subject.fail(
                f"forward returns {scores!r}; it should be a dict of at least one score by name"
            )
        for name, score in scores.items():
            self.expect(
                isinstance(name, str) and isinstance(score, (int, float)) and math.isfinite(score),
                f"says {name!r}: {score!r}; a score should be a finite number with a name",
            )
        for file, content in scored.files.items():
            self.expect(
                file == Path(file).name and isinstance(content, bytes),
                f"writes {file!r}: {type(content).__name__}; files should be bytes by a name without folder",
            )
        return [torch.tensor([scores[name] for name in sorted(scores)], dtype=torch.float64)]

    def rules(self) -> None:
        """What it says of itself."""
        part = self.make(self.sizes[0])
        self.expect(part.every >= 1, f"its every is {part.every}; it should be at least 1")
        self.expect(
            part.of in ("teacher", "student"), f"its of is {part.of!r}; it should be 'teacher' or 'student'"
        )
        self.expect(
            bool(part.protocol) and "\n" not in part.protocol,
            f"its protocol is {part.protocol!r}; it should be one line: name/version and every constant",
        )
        if (giving := ability(part, GivesFloors)) is not None:
            self._check_floors(giving)

    def _check_floors(self, part: GivesFloors) -> None:
        data, right = self.subject.method.data, "it should return numbers by score and by the floor's name"
        with self.subject.trying("floors", right):
            found = part.floors(pixel_encoder(data), data)
            values = [value for floors in found.values() for value in floors.values()]
        finite = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        self.expect(finite, f"floors returns {found!r}; {right}")


TRIALS: dict[str, type[Trial]] = {
    "data": DataTrial,
    "augment": AugmentTrial,
    "operation": OperationTrial,
    "backbone": BackboneTrial,
    "head": HeadTrial,
    "teacher": TeacherTrial,
    "targets": TargetsTrial,
    "loss": LossTrial,
    "regularizer": RegularizerTrial,
    "evaluator": EvaluatorTrial,
}


def check_component(
    kind: str,
    name: str,
    *,
    params: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    registry: Registry = default_registry,
) -> None:
    """Raise an AssertionError that says in one sentence what is wrong, and what would be right.

    Asked for are: the contract of its kind; shapes, also of odd sizes; finite float32 numbers, and finite
    ones in bfloat16; any device; the same numbers from the same seed; a state_dict that holds all state; no
    gradient where none belongs; docstring, types and JSON schema; one clear line for wrong parameters; a run
    of two steps that ends the same when it is stopped in between; and one that computes the same on two and
    three processes and with its batches in parts.

    `params` are parameters that it cannot do without, or that make it small enough to be tried quickly.
    `settings` change the method that the run is made of, as `--set` does: crops that a backbone takes, a loss
    that understands what an augmentation gives.
    """
    if kind not in TRIALS:
        raise Failed(f"no kind is called {kind!r} (there are: {', '.join(TRIALS)})")
    try:
        entry = registry.find(kind, name)
    except ComponentError as error:
        raise Failed(str(error)) from error
    subject = TestedComponent(entry, dict(params or {}), tuple(settings), registry)
    check_schema(subject)
    trial = TRIALS[kind](subject)
    trial.check()
    check_refusals(subject)
    check_edges(trial)
    check_run(subject)
    check_divided(subject)

"""Runs that begin with the state of another: forks in the middle, and stages one after the other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_methods import METHODS

from dino_lab.errors import Misfit, UserError
from dino_lab.registry import registry
from dino_lab.reports.page.base_spec import base_spec_of
from dino_lab.reports.study.comparison import study_of
from dino_lab.reports.study.findings import findings
from dino_lab.reports.study.results import read_results
from dino_lab.runs.checkpoint import kept_epochs
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.spec.difference import difference
from dino_lab.spec.file import dump_yaml, load_text, parent_of
from dino_lab.spec.identity import decisive, identity_of
from dino_lab.spec.model import After, Spec
from dino_lab.spec.stages import after
from dino_lab.training.build import build
from dino_lab.training.inherit import inheritance, take_over


def saved(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def tensors(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{prefix}.{key}").items()}


def different(one: Any, other: Any) -> list[str]:
    a, b = tensors(one), tensors(other)
    assert a.keys() == b.keys()
    assert a
    return [key for key in a if not torch.equal(a[key], b[key])]


def fork(spec: Spec, parent: Spec, epoch: int) -> Spec:
    return spec.model_copy(update={"after": after(parent, epoch)})


@pytest.fixture(scope="module")
def trained() -> list[Path]:
    return []


@pytest.fixture
def parent(
    trained: list[Path], tiny_spec: Callable, execute: Callable, tmp_path_factory: Any, tmp_path: Path
) -> Path:
    """The folder of a finished run of 3 epochs that kept the first two; it is trained once."""
    spec = tiny_spec("train.keep=[1, 2]")
    if not trained:
        trained.append(execute(spec, runs=tmp_path_factory.mktemp("runs")).folder)
    return shutil.copytree(trained[0], tmp_path / "runs" / "tiny" / trained[0].name)


def test_kept_epochs_are_no_part_of_the_identity(parent: Path, tiny_spec: Callable) -> None:
    assert tiny_spec().hash == tiny_spec("train.keep=[1, 2]").hash == parent.name
    assert kept_epochs(parent) == [1, 2]
    assert [saved(parent, f"epoch_{epoch}.pt")["step"] for epoch in (1, 2)] == [4, 8]
    assert different(saved(parent, "epoch_2.pt"), saved(parent))


def test_old_runs_keep_their_identity(tiny_spec: Callable) -> None:
    now = identity_of(tiny_spec())
    before = {key: value for key, value in now.settings.items() if not key.endswith((".units", ".cool"))}
    assert len(before) < len(now.settings)
    assert not {"after", "train.keep", "after.run"} & now.settings.keys()
    assert now.same_as(before, {})
    recorded = tiny_spec().dump()
    for key in ("keep", "keep_best"):
        recorded["train"].pop(key)
    recorded.pop("after")
    assert now.same_as(decisive(recorded), None)
    forked = fork(tiny_spec(), tiny_spec(), 2)
    assert identity_of(forked).same_as(decisive(forked.dump()), None)
    assert not identity_of(forked).same_as(before, {})
    assert not now.same_as(identity_of(forked).settings, {})


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_fork_with_nothing_changed_is_its_parent(
    epoch: int, parent: Path, tiny_spec: Callable, execute: Callable
) -> None:
    spec = fork(tiny_spec(), tiny_spec(), epoch)
    assert spec.hash != tiny_spec().hash
    outcome = execute(spec)
    assert (outcome.status, outcome.folder.name) == ("finished", spec.hash)
    assert not different(
        {key: value for key, value in saved(outcome.folder).items() if key != "seconds"}, saved(parent)
    )
    own, its = (
        [{key: row[key] for key in ("step", "loss", "knn.5nn") if key in row} for row in RunFolder(f).rows()]
        for f in (outcome.folder, parent)
    )
    assert own == its


@pytest.mark.parametrize("method", ["every third step", "frozen", "byol", "moco v2", "resnet"])
def test_every_state_is_taken_over(method: str, tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec(*METHODS[method], "train.epochs=2", "train.keep=[1]", "evaluators=[]")
    whole = execute(spec).folder
    outcome = execute(fork(spec, spec, 1))
    assert (outcome.status, outcome.step) == ("finished", 8)
    assert outcome.folder != whole
    assert not different(
        *(
            {key: value for key, value in saved(f).items() if key != "seconds"}
            for f in (outcome.folder, whole)
        )
    )


def test_a_change_in_the_middle_begins_there(parent: Path, tiny_spec: Callable, execute: Callable) -> None:
    spec = fork(tiny_spec("targets.name=softmax"), tiny_spec(), 2)
    folder = execute(spec).folder
    rows, its = RunFolder(folder).rows(), RunFolder(parent).rows()
    assert [row for row in rows if row["step"] <= 8] == [row for row in its if row["step"] <= 8]
    # The same weights see the same crops; without the centre another target is learned from.
    assert rows[-1]["step"] == its[-1]["step"] == 12
    later = [row["loss"] for row in rows if row["step"] > 8]
    assert len(later) == 2
    assert later[0] != next(row["loss"] for row in its if row["step"] > 8)
    assert RunFolder(folder).environment()["init"] == [f"state of {parent} after epoch 2"]


def test_a_fork_is_compared_with_its_parent(parent: Path, tiny_spec: Callable, execute: Callable) -> None:
    spec = fork(tiny_spec("targets.name=softmax"), tiny_spec(), 2)
    folder = execute(spec.model_copy(update={"train": tiny_spec("train.keep=[1, 2]").train})).folder
    study = study_of([parent, folder], registry, "knn.5nn")
    name = f"epoch 2 of tiny/{parent.name}"
    assert [arm.label for arm in study.arms] == ["tiny", f"tiny after={name} targets=softmax"]
    found = findings(study, read_results(study))
    assert found.notes[-1] == f"{study.arms[1].label}: forked after epoch 2 from tiny"
    assert found.lines[1].difference.n == 1  # of the same seed
    changes = {change.key: change.new for change in difference(tiny_spec(), spec)}
    assert changes == {"after": name, "targets": "softmax"}
    with_after = [change for change in base_spec_of(spec, {}, registry).changes if change.key == "after"]
    assert [change.new for change in with_after] == [name]


def test_seeds_of_one_fork_are_one_arm(parent: Path, tiny_spec: Callable, tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        spec = fork(tiny_spec(f"seed={seed}"), tiny_spec(f"seed={seed}"), 2)
        folder = folder_of(tmp_path / "runs", spec)
        folder.path.mkdir()
        folder.write_spec(spec)
        folders.append(folder.path)
    assert [list(arm.folders) for arm in study_of(folders, registry, "loss").arms] == [[0, 1]]


def test_a_fork_needs_no_parent_once_it_has_begun(
    parent: Path, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    spec = fork(tiny_spec("teacher.momentum=0.5"), tiny_spec(), 1)
    whole = execute(spec).folder
    shutil.move(whole, tmp_path / "whole")
    steps = iter(range(100))
    stopped = execute(spec, stop=lambda: next(steps) >= 2)
    assert (stopped.status, stopped.step) == ("interrupted", 7)
    shutil.rmtree(parent)
    again = load_text(dump_yaml(spec), "again.yaml").spec
    assert (again, again.hash) == (spec, spec.hash)
    assert execute(again).status == "finished"
    assert not different(
        {key: value for key, value in saved(stopped.folder).items() if key != "seconds"},
        saved(tmp_path / "whole"),
    )


def test_killed_before_its_first_step_it_still_has_the_state(
    parent: Path, tiny_spec: Callable, execute: Callable
) -> None:
    class Killed(Exception):
        pass

    class Kills:
        def started(self, *_: Any) -> None: ...
        def row(self, *_: Any) -> None: ...
        def saved(self, *_: Any) -> None: ...
        def progressed(self, *_: Any) -> None:
            raise Killed

    spec = fork(tiny_spec("teacher.momentum=0.5"), tiny_spec(), 2)
    with pytest.raises(Killed):
        execute(spec, listeners=[Kills()])
    shutil.rmtree(parent)
    outcome = execute(spec)
    assert (outcome.status, outcome.step) == ("finished", 12)
    assert [row["step"] for row in RunFolder(outcome.folder).rows()] == [0, 2, 4, 6, 8, 10, 12]


def test_what_is_missing_is_said_in_one_line(parent: Path, tiny_spec: Callable, execute: Callable) -> None:
    (parent / "epoch_1.pt").unlink()
    with pytest.raises(UserError, match=r"has no checkpoint of epoch 1 \(there are: 2, 3\); train\.keep"):
        execute(fork(tiny_spec(), tiny_spec(), 1))
    (parent / "epoch_2.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"epoch_2\.pt: not a whole checkpoint"):
        execute(fork(tiny_spec(), tiny_spec(), 2))
    with pytest.raises(UserError, match=r"the run that this one comes after has no checkpoint here|no check"):
        execute(fork(tiny_spec(), tiny_spec("seed=7"), 1))
    with pytest.raises(Misfit, match="backbone"):
        execute(fork(tiny_spec("backbone.width=48"), tiny_spec(), 3))
    for spec in ({}, {"name": "a", "train": {"epochs": 0}}, {"name": "a", "train": 1, "after": {}}):
        with pytest.raises(ValidationError, match="needs the whole spec of that run"):
            After(run="0123456789ab", spec=spec)
    other = tiny_spec().model_dump(mode="json", serialize_as_any=True)
    wrong = tiny_spec().model_copy(
        update={"after": after(tiny_spec(), 2).model_copy(update={"spec": other | {"seed": 3}})}
    )
    with pytest.raises(UserError, match=r"after\.spec is that of the run \w{12}, not of \w{12}"):
        parent_of(wrong, registry)


def test_parts_that_are_others_begin_anew_and_the_rest_is_kept(
    parent: Path, tiny_spec: Callable, execute: Callable
) -> None:
    spec = fork(tiny_spec("head.dim=48", "train.epochs=4"), tiny_spec(), 3)
    folder = execute(spec, stop=lambda: True).folder
    said = RunFolder(folder).environment()["init"]
    student = build(spec, registry, torch.device("cpu"), first_weights=False).student
    new, of = (sum(p.requires_grad for p in part.parameters()) for part in (student.head, student))
    assert said[1:] == [
        "head: without a state from before",
        "teacher's head: without a state from before",
        "targets: without a state from before",
        f"optimizer: {new} of {of} parameters without a state from before",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["teacher.name=siamese"], []),
        (["teacher={name: periodic, lag: 1}"], ["teacher: begins as a copy of the student"]),
        (["teacher={name: frozen}"], ["teacher: without a state from before"]),
        (["optim.name=sgd"], ["optimizer: without a state from before"]),
        (["seed=3"], []),
    ],
    ids=["siamese", "periodic", "frozen", "sgd", "seed"],
)
def test_other_components_from_there_on(
    settings: list[str], said: list[str], parent: Path, tiny_spec: Callable, execute: Callable
) -> None:
    outcome = execute(fork(tiny_spec(*settings), tiny_spec(), 2), stop=lambda: True)
    assert outcome.step == 9
    assert RunFolder(outcome.folder).environment()["init"][1:] == said


def test_a_new_teacher_begins_as_the_student(parent: Path, tiny_spec: Callable, tmp_path: Path) -> None:
    spec = fork(tiny_spec("teacher={name: periodic, lag: 1}"), tiny_spec(), 2)
    run = build(spec, registry, torch.device("cpu"))
    take_over(run, inheritance(spec, registry, tmp_path / "runs", torch.device("cpu")))
    student = saved(parent, "epoch_2.pt")["student"]
    for network in (run.teacher.network, run.teacher.waiting[0], run.student):
        found = network.state_dict()
        assert not [name for name, value in found.items() if not torch.equal(value, student[name])]

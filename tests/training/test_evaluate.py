"""Evaluators that ask for more than features, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch

from dino_lab.building.check import check
from dino_lab.errors import Misfit, UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.scoring import write_files
from dino_lab.evaluation.subjects import run_subject
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.training.build import build

CPU = torch.device("cpu")


class Picky:
    """Writes down how many patch tokens there are."""

    every = 2
    protocol = "picky/1"
    needs = ("backbone.tokens", "data.annotated")

    def __init__(self, *, of: Literal["teacher", "student"] = "teacher", extra: str = "") -> None:
        self.of = of
        self.needs = (*self.needs, extra) if extra else self.needs

    def forward(self, encode: Encoder, data: Any) -> dict[str, float]:
        return {"tokens": float(self._tokens(encode, data).shape[2])}

    def files(self, encode: Encoder, data: Any) -> dict[str, bytes]:
        assert not encode.network.training
        return {"tokens.txt": str(tuple(self._tokens(encode, data).shape)).encode()}

    def _tokens(self, encode: Encoder, data: Any) -> torch.Tensor:
        return encode.ask("tokens", data.annotated("test", torch.arange(2))[0])


@pytest.fixture(autouse=True)
def picky() -> Iterator[None]:
    with registry.scratch():
        registry.register("evaluator", "picky")(Picky)
        yield


def test_files_are_kept_for_each_evaluation(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("evaluators=[{name: picky}, {name: knn, k: [5]}]"))
    left = sorted(file for file in (outcome.folder / "evaluations").rglob("*") if file.is_file())
    # Before training, after the second of the three epochs of 4 steps, and at the end.
    assert [str(file.relative_to(outcome.folder)) for file in left] == [
        f"evaluations/{step:06}/picky.teacher.tokens.txt" for step in (0, 8, 12)
    ]
    assert {file.read_text() for file in left} == {"(2, 24, 4, 4)"}
    assert outcome.scores_after["picky.tokens"] == 4


def test_evaluating_a_run_again_writes_its_files_again(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("evaluators=[{name: picky}]"))
    last = outcome.folder / "evaluations" / "000012"
    (last / "picky.teacher.tokens.txt").unlink()
    for of in (None, "student"):
        subject = run_subject(outcome.folder, registry, CPU)
        write_files(subject.score(of), RunFolder(outcome.folder), subject.step)
    assert sorted(file.name for file in last.iterdir()) == [
        "picky.student.tokens.txt",
        "picky.teacher.tokens.txt",
    ]


def test_an_evaluator_that_leaves_nothing_makes_no_folder(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("train.epochs=1"))
    assert not (outcome.folder / "evaluations").exists()


def test_evaluators_leave_the_networks_as_they_were(tiny_spec: Callable) -> None:
    run = build(tiny_spec("evaluators=[{name: picky}]"), registry, CPU)
    before = [module.training for module in run.teacher.modules()]
    (scored,) = run.evaluate(list(run.evaluators.items()))
    assert scored.files.keys() == {"tokens.txt"}
    assert before == [module.training for module in run.teacher.modules()]
    assert any(before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["evaluators.1.extra=backbone.levels"],
            "'picky' asks for levels, which backbone 'vit' does not give",
        ),
        (
            ["data={name: image_folder, path: nowhere, size: 16}"],
            "'picky' asks for annotated, which data 'image_folder' does not give",
        ),
    ],
)
def test_what_an_evaluator_needs_is_checked_before_data_is_read(
    settings: list[str], message: str, tiny_spec: Callable
) -> None:
    spec = tiny_spec("evaluators=[{name: knn}, {name: picky}]", *settings)
    with pytest.raises(Misfit) as caught:
        check(spec, registry)
    assert caught.value.loc == ("evaluators", 1, "name")
    assert caught.value.message == message


def test_files_that_nobody_keeps_are_not_made(
    tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = execute(tiny_spec("evaluators=[{name: picky}]", "train.epochs=1"))
    monkeypatch.setattr(Picky, "files", lambda *_: pytest.fail("was asked for files"))
    (scored,) = run_subject(outcome.folder, registry, CPU).score(files=False)
    assert scored.scores == {"tokens": 4.0}
    assert scored.files == {}


def test_what_the_encoder_refuses_says_who_asked(tiny_spec: Callable) -> None:
    run = build(tiny_spec("evaluators=[{name: attention_masks, images: 999}]"), registry, CPU)
    with pytest.raises(UserError, match=r"^evaluator attention_masks: images = 999 is more than the "):
        run.evaluate(list(run.evaluators.items()))


@pytest.mark.parametrize("annotated", [None, 3, 7])
def test_all_evaluators_share_one_forward_of_each_image(annotated: int | None, tiny_spec: Callable) -> None:
    """Also where some of the images are those that others look at with their masks."""
    names = ["knn, k: [3]", "linear_probe, epochs: 2, mean_tokens: true", "logistic", "clusters", "retrieval"]
    last = [] if annotated is None else [f"attention_masks, images: {annotated}", "dense, images: 7, k: 3"]

    def scored(names: list[str]) -> tuple[dict[str, float], int]:
        spec = tiny_spec(f"evaluators=[{', '.join(f'{{name: {name}}}' for name in names)}]")
        run = build(spec, registry, CPU)
        seen: list[int] = []
        backbone: Any = run.network("teacher").backbone
        backbone.model.patch_embed.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        found = run.evaluate(list(run.evaluators.items()))
        assert [one.name for one in found] == [name.partition(",")[0] for name in names]
        assert sum(seen) == run.data.train_images + run.data.test_images
        return {key: value for one in found for key, value in one.named_scores.items()}, len(found)

    scores, count = scored(names + last)
    assert count == len(names + last)
    alone, _ = scored(names)
    assert {key: scores[key] for key in alone} == pytest.approx(alone, abs=1e-5)

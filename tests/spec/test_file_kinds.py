"""A file for another verb is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_lab.cli import app as cli

SWEEP = "base: tiny.yaml\nmetric: knn.5nn\ngrid: {targets.momentum: [0, 0.9]}\n"
EVALUATION = "evaluators: [{name: knn, k: [5]}]\n"


@pytest.mark.parametrize(
    ("verb", "text", "words"),
    [
        ("validate", SWEEP, "a sweep, not a spec; it is for: dino-lab sweep "),
        ("run", SWEEP.replace("base", "bsae"), "a sweep, not a spec; it is for: dino-lab sweep "),
        ("run", EVALUATION, "a file of evaluators, not a spec; it is for: dino-lab eval RUN --with "),
        ("sweep", None, "a spec, not a sweep; it is for: dino-lab run "),
        ("sweep", "extends: tiny.yaml\nhead: {dim: 4}\n", "a spec, not a sweep; it is for: dino-lab run "),
        ("sweep", EVALUATION, "a file of evaluators, not a sweep; it is for: dino-lab eval RUN --with "),
        ("eval", SWEEP, "a sweep, not a file of evaluators; it is for: dino-lab sweep "),
        ("eval", None, "a spec, not a file of evaluators; it is for: dino-lab run "),
    ],
)
def test_the_right_verb_is_named(
    verb: str,
    text: str | None,
    words: str,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(tiny.read_text() if text is None else text)
    options = {"eval": ["timm:resnet18", "--with"], "sweep": ["--executor", "inline"]}
    assert cli.main([verb, *options.get(verb, []), str(file)]) == 2
    assert capsys.readouterr().err == f"{file}: {words}{file}\n"

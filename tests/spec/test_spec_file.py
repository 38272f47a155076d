"""Good specs: what they mean, how they are laid over one another, and that they can be written down again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from spec_components import GOOD, registry

from dino_lab.errors import SpecError
from dino_lab.registry import Registry
from dino_lab.spec.file import dump_yaml, load, load_text
from dino_lab.spec.model import Spec

pytestmark = pytest.mark.usefixtures("only_fakes")


def spec_of(text: str, *settings: str) -> Spec:
    return load_text(text, "x.yaml", settings, registry).spec


def test_numbers_are_read_as_yaml_1_2_reads_them() -> None:
    spec = spec_of(GOOD)
    assert spec.optim.lr.start == 0.001
    assert spec.targets.temperature.end == 0.04  # type: ignore[attr-defined]
    assert spec.loss.temperature == 5.0  # type: ignore[attr-defined]
    assert spec_of(GOOD, "seed=010").seed == 10


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "1.2.3"])
def test_only_true_and_false_are_booleans(word: str) -> None:
    assert spec_of(GOOD, f"name={word}").name == word


def test_narrowing_gives_each_place_the_component_it_names() -> None:
    spec = spec_of(GOOD)
    assert type(spec) is Spec
    for field, kind in (("data", "data"), ("loss", "loss"), ("teacher", "teacher")):
        params = getattr(spec, field)
        assert type(params) is registry.find(kind, params.name).params
    assert [e.model_dump()["every"] for e in spec.evaluators] == [1, 5]
    assert spec.predictor is None
    assert spec_of(GOOD, "predictor={name: fake_head}").predictor.layers == 3  # type: ignore[union-attr]
    assert spec_of(GOOD, "predictor=null", "evaluators=[]").evaluators == ()
    assert [r.model_dump() for r in spec.regularizers] == [{"name": "fake_spread", "weight": 0.5}]
    assert spec_of(GOOD, "regularizers=[]").regularizers == ()


def test_only_what_a_spec_names_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    find = Registry.find

    def spy(self: Registry, kind: str, name: str) -> object:
        asked.append((kind, name))
        return find(self, kind, name)

    monkeypatch.setattr(Registry, "find", spy)
    spec_of(GOOD)
    assert ("loss", "fake_nce") in asked
    assert ("loss", "fake_mse") not in asked


def test_the_name_is_that_of_the_file_unless_given(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("name: good\n", ""))
    (tmp_path / "over.yaml").write_text("extends: base.yaml\n")
    assert load(tmp_path / "base.yaml", registry=registry).spec.name == "base"
    assert load(tmp_path / "over.yaml", registry=registry).spec.name == "over"
    assert load(tmp_path / "over.yaml", ["name=mine"], registry).spec.name == "mine"
    (tmp_path / "a b.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(SpecError, match=r"a b.yaml:1:1: name: must match the pattern"):
        load(tmp_path / "a b.yaml", registry=registry)


def test_extends_changes_keys_or_replaces_components(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "root.yaml").write_text(GOOD)
    (tmp_path / "middle.yaml").write_text("extends: far/root.yaml\ntrain: {epochs: 7}\nloss: {queue: 3}\n")
    (tmp_path / "top.yaml").write_text(
        "extends: middle.yaml\nloss: {temperature: 2}\nhead: {name: fake_head}\n"
    )
    spec = load(tmp_path / "top.yaml", registry=registry).spec
    assert (spec.train.epochs, spec.train.batch_size) == (7, 8)
    assert spec.loss.model_dump() == {"name": "fake_nce", "temperature": 2.0, "queue": 3}
    (tmp_path / "new.yaml").write_text("extends: middle.yaml\nloss: {name: fake_mse}\n")
    assert load(tmp_path / "new.yaml", registry=registry).spec.loss.model_dump() == {
        "name": "fake_mse",
        "reduce": "mean",
    }
    (tmp_path / "same.yaml").write_text("extends: middle.yaml\nloss: {name: fake_nce}\n")
    assert load(tmp_path / "same.yaml", registry=registry).spec.loss.model_dump()["queue"] == 0


def test_a_mistake_is_reported_in_the_file_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD.replace("width: 8", "width: x"))
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nseed: -1\n")
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "over.yaml", ["train.epochs=0"], registry)
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        "base.yaml:5:33: backbone.width: must be a whole number, got 'x'",
        "over.yaml:2:1: seed: must be at least 0, got -1",
        "--set train.epochs=0: train.epochs: must be greater than 0, got 0",
    ]


def test_files_may_not_extend_each_other_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "a.yaml", registry=registry)
    assert str(caught.value).replace(f"{tmp_path}/", "") == (
        "b.yaml:1:10: extends: files extend each other in a circle: a.yaml -> b.yaml -> a.yaml"
    )


def test_settings() -> None:
    settings = ["evaluators.0.every=3", "optim.lr=1e-4", "train={epochs: 9}", "teacher.momentum.end=0.95"]
    spec = spec_of(GOOD, *settings)
    assert spec.evaluators[0].model_dump() == {"name": "fake_knn", "every": 3, "of": "teacher", "k": (1, 2)}
    assert spec.optim.lr.end == 1e-4
    assert (spec.train.epochs, spec.train.batch_size) == (9, 8)
    assert spec.teacher.momentum.model_dump()["start"] == 0.9  # type: ignore[attr-defined]
    assert spec_of(GOOD, "seed=1", "seed=2").seed == 2
    replaced = spec_of(GOOD, "loss.name=fake_mse", "loss.reduce=sum", "evaluators.1.name=fake_knn")
    assert replaced.loss.model_dump() == {"name": "fake_mse", "reduce": "sum"}
    assert replaced.evaluators[1].model_dump()["every"] == 1


def test_anchors_are_fine() -> None:
    text = GOOD.replace("[1, 2]", "&k [3]").replace("every: 5", "k: *k")
    assert [e.model_dump()["k"] for e in spec_of(text).evaluators] == [(3,), (3,)]


@pytest.mark.parametrize(
    "path", ["1e-3", "no", "'", "a: b", "ü\n x", "", "null", "010", "~", ".5", "2020-01-01", "<<"]
)
def test_a_spec_can_be_written_and_read_again(path: str) -> None:
    spec = spec_of(GOOD, "optim.lr=1e-07", "optim.clip=null")
    data = spec.data.model_copy(update={"path": path})
    spec = spec.model_copy(update={"data": data, "seed": 2**32 - 1})
    text = dump_yaml(spec)
    again = load_text(text, "spec.yaml", registry=registry).spec
    assert again == spec
    assert again.hash == spec.hash
    assert again.data.path == path  # type: ignore[attr-defined]
    assert dump_yaml(again) == text
    assert yaml.safe_load(text)["data"]["path"] == path  # any YAML reader sees the same


def test_the_written_spec_is_readable() -> None:
    text = dump_yaml(spec_of(GOOD))
    assert [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()] == list(Spec.model_fields)
    assert "optim:\n  name: adamw\n" in text
    assert "  k: [1, 2]\n" in text


def test_later_mistakes_point_at_the_text_too() -> None:
    document = load_text(GOOD, "x.yaml", ["optim.lr=1"], registry)
    assert document.line(("loss", "name"), "no") == "x.yaml:11:8: loss.name: no"
    assert document.line(("evaluators", 1, "every"), "no") == "x.yaml:17:5: evaluators.1.every: no"
    assert document.line(("data", "path"), "two\nlines") == "x.yaml:3:1: data.path: two lines"
    assert document.line(("optim", "lr"), "no") == "--set optim.lr=1: optim.lr: no"


def test_reading_specs_needs_no_torch() -> None:
    code = "import sys, dino_lab.spec.file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

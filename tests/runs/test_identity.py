"""What is another run, and what is the same one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.runs.data_record import fingerprint
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.spec.file import load
from dino_lab.spec.identity import flat, identity_of

PLUGIN = '''
from torch import Tensor, nn
from dino_lab.registry import register


@register("loss", "halved")
class Halved(nn.Module):
    """Half of the squared distance."""

    negatives = False
    cross_entropy = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        return (student.mean() - target.mean()).square() / 2
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "halved.py"
    with registry.scratch():
        file.write_text(PLUGIN)
        load_plugins([file])
        yield file


@pytest.mark.parametrize(
    "setting",
    [
        "evaluators=[]",
        "train.log_every=1",
        "train.on_collapse=stop",
        "train.accumulate=2",
        "train.channels_last=true",
        "name=other",
    ],
)
def test_what_does_not_decide_the_weights_changes_no_hash(setting: str, tiny_spec: Callable) -> None:
    assert tiny_spec(setting).hash == tiny_spec().hash


@pytest.mark.parametrize(
    "setting",
    [
        "seed=1",
        "train.epochs=4",
        "train.precision=bfloat16",
        "targets.momentum=0.8",
        "regularizers=[{name: koleo}]",
    ],
)
def test_what_decides_the_weights_changes_the_hash(setting: str, tiny_spec: Callable) -> None:
    assert tiny_spec(setting).hash != tiny_spec().hash


def test_a_default_that_is_written_out_changes_nothing(tiny_spec: Callable) -> None:
    one, other = identity_of(tiny_spec("targets.momentum=0.9")), identity_of(tiny_spec())
    assert (one, one.hash, one.full_hash) == (other, other.hash, other.full_hash)


def test_the_same_spec_finds_its_folder(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("train.epochs=1"))
    assert outcome.folder.name == tiny_spec("train.epochs=1").hash
    recorded = json.loads((outcome.folder / "identity.json").read_text())
    assert recorded["settings"]["targets.momentum.start"] == 0.9
    assert "train.log_every" not in recorded["settings"]
    assert recorded["data"] == {
        "train_images": 96, "test_images": 48, "classes": 10, "channels": 3, "size": 16, "files": {}
    }  # fmt: skip


def test_a_changed_default_has_a_folder_of_its_own(
    tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    """As if batch norm had been the default when it was trained: the hash cannot tell, the record can."""
    spec = tiny_spec("train.epochs=1", "evaluators=[]")
    outcome = execute(spec)
    file = outcome.folder / "identity.json"
    recorded = json.loads(file.read_text())
    assert recorded["settings"]["head.batch_norm"] is False
    recorded["settings"]["head.batch_norm"] = True
    file.write_text(json.dumps(recorded))
    again = execute(spec)
    assert again.status == "finished"
    assert again.folder != outcome.folder
    assert folder_of(tmp_path / "runs", spec).path == again.folder
    then = tiny_spec("train.epochs=1", "evaluators=[]", "head.batch_norm=true")
    assert folder_of(tmp_path / "runs", then).path == outcome.folder


def test_edited_plugin_code_is_another_run(plugin: Path, tiny: Path, execute: Callable) -> None:
    settings = ["loss={name: halved}", "targets={name: identity}", "evaluators=[]", "train.epochs=1"]
    first = execute(load(tiny, settings).spec)
    assert execute(load(tiny, settings).spec).status == "already finished"
    plugin.write_text(PLUGIN.replace("/ 2", "/ 3"))
    second = execute(load(tiny, settings).spec)
    assert second.status == "finished"
    assert second.folder != first.folder
    plugin.write_text(PLUGIN)
    assert execute(load(tiny, settings).spec).folder == first.folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    source = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for i in range(16):
                Image.fromarray(source.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_other_data_are_refused_unless_asked_for(
    images: Path, tiny_spec: Callable, execute: Callable
) -> None:
    spec = tiny_spec(
        f"data={{name: image_folder, path: {images}, size: 16}}", "train.epochs=2", "train.batch_size=8"
    )
    steps = iter(range(100))
    cut = execute(spec, stop=lambda: next(steps) >= 2)
    assert cut.status == "interrupted"
    extra = images / "train" / "cat" / "more.png"
    shutil.copy(images / "train" / "cat" / "0.png", extra)
    with pytest.raises(
        UserError, match=r"trained on other data \(32 train images then, 33 now; data.path has "
    ):
        execute(spec)
    extra.unlink()
    assert execute(spec).status == "finished"
    (images / "test" / "dog" / "0.png").write_bytes(b"another")
    with pytest.raises(UserError, match=r"data\.path has other files"):
        execute(spec)
    assert execute(spec, accept_data=True).status == "already finished"
    assert execute(spec).status == "already finished"  # recorded


def test_a_copy_of_a_folder_has_the_same_fingerprint(images: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(images, tmp_path / "copy"))
    assert fingerprint(copy) == fingerprint(images) != ""
    (copy / "train" / "cat" / "0.png").rename(copy / "train" / "cat" / "zero.png")
    assert fingerprint(copy) != fingerprint(images)
    assert fingerprint(tmp_path / "nowhere") == ""


def test_flat() -> None:
    assert flat({"a": {"b": 1, "c": []}, "d": [{"e": None}, 2]}) == {
        "a.b": 1,
        "a.c": [],
        "d.0.e": None,
        "d.1": 2,
    }


def test_a_recorded_hash_is_trusted(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("train.epochs=1", "evaluators=[]"))
    moved = outcome.folder.rename(outcome.folder.with_name("kept"))
    assert RunFolder(moved).hash == outcome.folder.name

"""`dino-lab report`, on runs that were really made."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from dino_lab.cli import app as cli
from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.reports.page.html import page
from dino_lab.reports.page.network_section import Pictures
from dino_lab.reports.page.run_facts import read_facts
from dino_lab.runs.files import LEARNED
from dino_lab.runs.status import read_status
from dino_lab.runs.study import Arm, Study
from dino_lab.training.diagnostics import Verdict

SECTIONS = (
    "scores",
    "curves",
    "crops",
    "attention",
    "tokens",
    "neighbours",
    "features",
    "spec",
    "environment",
)
Execute = Callable[..., object]


@pytest.fixture
def run(tiny_spec: Execute, execute: Execute) -> Path:
    return execute(tiny_spec("augment.local_views=1")).folder


def report(*arguments: object) -> int:
    return cli.main(["report", *map(str, arguments), "--device", "cpu"])


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


def test_a_run_is_shown_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "evaluations" / "000012"
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "clusters.teacher.confusion.png")
    (folder / "invariance.teacher.curve.json").write_text('{"strength": [0, 1], "distance": [0.0, 0.5]}')
    assert report(run) == 0
    assert re.fullmatch(r"wrote .*report\.html: \d\.\d MB, \d+ s\n", capsys.readouterr().out)
    page = (run / "report.html").read_text()
    assert sections(page) == [*SECTIONS[:-2], "evaluations", *SECTIONS[-2:]]
    assert len(page) < 5_000_000
    assert run.name in page
    assert json.loads((run / "status.json").read_text())["sentence"].partition(": ")[2] in page
    assert "ln K = 3.47" in page  # 32 outputs
    assert "knn/2: k=5" in page
    assert "64 px" not in page
    assert "16 px, both" in page
    assert "8 px, student" in page
    assert "invariance: curve (teacher)" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "url(http" not in page
    assert list(run.glob("*.tmp")) == []


def test_the_picture_and_the_floors_of_a_run_are_shown(run: Path) -> None:
    Image.new("RGB", (9, 9)).save(run / LEARNED)
    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert sections(page)[:3] == ["scores", "learned", "curves"]
    assert page.count("data:image/png;base64," + base64.b64encode((run / LEARNED).read_bytes()).decode()) == 1
    floors = read_status(run).floors["knn.5nn"]
    assert f"<small>chance {floors['chance']:.4f}, raw pixels {floors['raw pixels']:.4f}</small>" in page
    assert "those of 16 x 16 px" in page
    assert "Thin lines: chance dotted, raw pixels dashed." in page


@pytest.mark.parametrize("student", [False, True], ids=["teacher", "student"])
def test_the_features_are_those_of_the_network_that_there_is(
    student: bool, tiny_spec: Execute, execute: Execute
) -> None:
    siamese = ["teacher={name: siamese}", "targets={name: sinkhorn}", "augment.local_views=0"]
    folder = execute(tiny_spec("train.epochs=1", *(siamese if student else []))).folder
    assert report(folder) == 0
    page = (folder / "report.html").read_text()
    assert ("the student's features" if student else "the teacher's features") in page.replace("&#39;", "'")


def test_without_checkpoint_the_rest_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("last.pt", "env.json"):
        (run / name).unlink()
    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert sections(page) == ["scores", "curves", "crops", "spec"]
    out = capsys.readouterr().out
    assert "left out: everything that needs the network: there is no checkpoint (last.pt)" in out
    assert "there is no checkpoint (last.pt)" in page
    assert "there is no env.json" in page


def test_without_data_the_rows_are_shown(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = run / "spec.yaml"
    gone = tmp_path / "moved"
    spec.write_text(
        re.sub(
            r"data:\n(  .*\n)+", f"data: {{name: image_folder, path: {gone}, size: 16}}\n", spec.read_text()
        )
    )
    assert report(run) == 0
    assert sections((run / "report.html").read_text()) == ["scores", "curves", "spec", "environment"]
    assert str(gone) in capsys.readouterr().out


def test_a_run_that_goes_on_is_read_from_its_rows(run: Path) -> None:
    (run / "status.json").unlink()
    rows = (run / "rows.jsonl").read_text().splitlines(keepends=True)
    (run / "rows.jsonl").write_text("".join(rows[:-1]))
    assert report(run) == 0
    page = (run / "report.html").read_text()
    assert "not finished, 10 of 12 steps" in page
    assert 'class="verdict learning"' in page or 'class="verdict warming"' in page


def test_a_diverged_network_is_no_traceback(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.load(run / "last.pt", weights_only=True)
    for part in ("teacher", "student"):
        for tensor in state[part].values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
    torch.save(state, run / "last.pt")
    assert report(run) == 0
    out = capsys.readouterr().out
    assert "the features are not finite; the network has diverged" in out
    assert sections((run / "report.html").read_text()) == ["scores", "curves", "crops", "spec", "environment"]


def test_what_a_path_or_a_name_says_is_text(run: Path, tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)<" / "script>&amp;'\""
    evil.parent.mkdir()
    shutil.copytree(run, evil)
    environment = json.loads((evil / "env.json").read_text())
    environment["command"] = ["</script><img src=x onerror=alert(1)>"]
    (evil / "env.json").write_text(json.dumps(environment))
    folder = evil / "evaluations" / "000012"
    folder.mkdir(parents=True)
    (folder / "a.teacher.<b>.json").write_text('{"x": [0, 1], "</script><script>alert(1)": [0, 1]}')
    (folder / "a.teacher.t.txt").write_text("<script>alert(1)</script>")
    assert report(evil) == 0
    page = (evil / "report.html").read_text()
    data = page.count('<script type="application/json">')
    assert page.count("<script") == page.count("</script>") == data + 1
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page

    name = "</script><script>alert(1)</script> $x$"
    study = Study(
        name,
        "knn.5nn",
        "max",
        None,
        ("a",),
        (Arm(name, {"a": name}, {0: evil}), Arm("b", {"a": 1}, {0: run})),
    )
    study.write(tmp_path / "sweep")
    assert report(tmp_path / "sweep") == 0
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert page.count("<script") == page.count("</script>")
    assert "<script>alert" not in page


def test_several_runs_are_compared(
    tiny_spec: Execute, execute: Execute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("train.epochs=1",)
    runs = [
        execute(tiny_spec(*short, f"seed={seed}", f"targets.momentum={m}")).folder
        for seed, m in ((0, 0.9), (1, 0.9), (0, 0.5))
    ]
    monkeypatch.chdir(tmp_path)
    assert report(*runs, runs[0]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "2 arms, 3 runs, compared by knn.5nn" in page
    assert "targets.momentum" in page
    assert sections(page) == ["arms", "runs", "curves"]


def test_a_sweep_and_a_run_beside_it_are_compared(
    tiny_spec: Execute, execute: Execute, run: Path, tmp_path: Path
) -> None:
    """What a run changes is on no axis of the sweep, so that there is nothing to draw."""
    other = execute(tiny_spec("train.epochs=1", "targets.momentum=0.5", "seed=1")).folder
    arms = (Arm("low", {"t": 1}, {0: run}), Arm("high", {"t": 2}, {0: run}))
    Study("s", "knn.5nn", "max", "low", ("t",), arms).write(tmp_path / "sweep")
    to = tmp_path / "all.html"
    assert report(tmp_path / "sweep", run, other, "--to", to) == 0
    page = to.read_text()
    assert "4 arms, 4 runs, compared by knn.5nn" in page
    assert sections(page) == ["arms", "runs", "curves"]


def test_runs_without_scores_are_compared_by_loss(
    tiny_spec: Execute, execute: Execute, tmp_path: Path
) -> None:
    runs = [execute(tiny_spec("train.epochs=1", "evaluators=[]", f"seed={seed}")).folder for seed in (0, 1)]
    to = tmp_path / "two.html"
    assert report(*runs, "--to", to) == 0
    assert "compared by loss" in to.read_text()


def test_the_number_that_is_compared_stands_first(
    tiny_spec: Execute, execute: Execute, tmp_path: Path
) -> None:
    probes = "evaluators=[{name: clusters}, {name: knn, k: [5]}]"
    runs = [execute(tiny_spec("train.epochs=1", probes, f"seed={seed}")).folder for seed in (0, 1)]
    to = tmp_path / "two.html"
    assert report(*runs, "--to", to, "--metric", "knn.5nn") == 0
    headings = re.findall("<th>([^<]*)</th>", to.read_text().partition('id="runs"')[2])
    assert headings[:4] == ["arm", "seed", "knn.5nn", "clusters.accuracy"]


def test_a_sweep_whose_runs_were_moved_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = (Arm("here", {"t": 1}, {0: run}), Arm("moved", {"t": 2}, {0: tmp_path / "gone"}))
    Study("s", "knn.5nn", "max", "here", ("t",), arms).write(tmp_path / "sweep")
    assert report(tmp_path / "sweep") == 0
    assert f"moved seed 0: {tmp_path / 'gone'} is not there" in capsys.readouterr().out
    shutil.rmtree(run)
    assert report(tmp_path / "sweep", "--to", tmp_path / "none.html") == 2
    assert "none of its runs has a row" in capsys.readouterr().err
    assert not (tmp_path / "none.html").exists()


def test_what_cannot_be_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in (
        ([tmp_path / "nowhere"], "no such folder"),
        ([tmp_path / "file"], "a file; give the folder of a run or of a sweep"),
        ([tmp_path / "empty"], "the folder is empty; a run has a spec.yaml, a sweep a study.json"),
        ([run.parent], f"neither a run (spec.yaml) nor a sweep (study.json); there is one below it: {run}"),
        ([run, tmp_path / "empty"], "the folder is empty"),
        ([run, "--to", tmp_path], "should end in .html"),
        ([run, "--to", tmp_path / "no" / "x.html"], "there is no folder"),
        ([run, "--to", tmp_path / "last.pt"], "should end in .html"),
        ([run, "--to", "/proc/x.html"], "/proc/x.html: cannot be written"),
    ):
        assert report(*arguments) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    (run / "rows.jsonl").write_text("no row\n")
    assert report(run) == 2
    assert "rows.jsonl:1: not a row of numbers" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_part_that_fails_is_left_out_in_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("'list' object has no attribute 'ndim'\nmore")

    monkeypatch.setattr("dino_lab.evaluation.encoder.Encoder.outputs", fail)
    assert report(run) == 0
    out = capsys.readouterr().out
    line = "AttributeError: 'list' object has no attribute 'ndim'\n"
    assert f"left out: attention: {line}" in out
    assert f"left out: tokens: {line}" in out
    wanted = [name for name in SECTIONS if name not in ("attention", "tokens")]
    assert sections((run / "report.html").read_text()) == wanted


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("rows.jsonl", "[1, 2]\n"),
        ("rows.jsonl", '{"step": 0}\n'),
        ("rows.jsonl", '{"step": 0, "epoch": 0, "loss": "low"}\n'),
        ("rows.jsonl", "[" * 100_000 + "\n"),
        ("status.json", "{"),
        ("status.json", "[]"),
        ("status.json", '{"state": "finished", "verdict": 3, "sentence": 4}'),
        ("status.json", '{"state": "finished", "verdict": "a", "sentence": "b", "seconds": "x"}'),
        ("env.json", "[]"),
        ("env.json", '{"command": 5}'),
    ],
)
def test_damaged_files_are_one_line(file: str, content: str, run: Path) -> None:
    (run / file).write_text(content)
    with pytest.raises(UserError, match=r"not a row of|not what a run writes|cannot be read"):
        read_facts(run, registry)


def test_control_characters_are_written_out() -> None:
    text = page("run.html.j2", **EVIL_PAGE)
    assert "\x1b" not in text
    assert r"<title>a\x1b[2J\nb 0123</title>" in text
    assert r"left \x1b[31m out" in text


class Facts:
    """As much of a run as a page needs."""

    title = "a\x1b[2J\nb 0123"
    after = SimpleNamespace(in_words="epoch 1 of \x1b")
    spec = SimpleNamespace(name="a\x1b[2J\nb", hash="0123", seed=0, after=after)
    verdict = Verdict("learning", "learning: \x1b")
    status, seconds, path, tone, failed = "finished", None, Path("x\x1b"), "good", False
    scores: tuple[()] = ()


EVIL_PAGE: dict[str, object] = {
    "facts": Facts,
    "base": SimpleNamespace(name="b\x1b", changes=[]),
    "pictures": Pictures(),
    "learned": "",
    "spec_yaml": "key: \x1b",
    "left_out": ["left \x1b[31m out"],
    **dict.fromkeys(("protocols", "environment", "charts", "singles", "files"), ()),
    "file_charts": {},
}

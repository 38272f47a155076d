"""Tables and pictures of runs that are written by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest

from dino_lab.errors import UserError
from dino_lab.reports.study.figures import draw_figures
from dino_lab.reports.study.files import write_study
from dino_lab.reports.study.results import read_result, read_results
from dino_lab.runs.status import Status, read_status, write_status
from dino_lab.runs.study import FILE, Arm, Study, read_study


def run(folder: Path, scores: list[float], status: str = "finished", reason: str = "") -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"step": i, "epoch": i, "loss": 1.0, "images_per_second": 100.0 + i, "knn.5nn": score}
        for i, score in enumerate(scores)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    verdict = "collapsed to uniform" if status == "collapsed" else "learning"
    write_status(folder, Status(status, 3, 3, verdict, "", reason, 36.0))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Study:
    def arm(name: str, settings: dict[str, object], *results: tuple[list[float], str, str]) -> Arm:
        folders = {seed: run(tmp_path / name / str(seed), *result) for seed, result in enumerate(results)}
        return Arm(name, settings, folders)

    done, failed = ("finished", ""), ("failed", "out of memory")
    arms = (
        arm("low", {"t": 0.1, "m": 0}, ([0.1, 0.3], *done), ([0.1, 0.5], *done), ([0.2, 0.7], *done)),
        arm("high_|", {"t": 0.2, "m": 0}, ([0.1, 0.4], *done), ([0.1, 0.61], *done), ([0.1, 0.79], *done)),
        arm("gone", {"t": 0.1, "m": 1}, ([0.1], "collapsed", ""), ([0.1], "collapsed", ""), ([0.1], *failed)),
    )
    return Study("s", "knn.5nn", "max", "low", ("t", "m"), arms)


def test_the_table_says_what_mattered_and_how_sure_that_is(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    low, high, gone = write_study(study, folder).lines
    assert low.cells()[:7] == ["low", "3", "0.5000 ± 0.4968", "0.5000", "0.2000", "", "baseline"]
    assert high.reading == "better"
    assert high.cells()[5] == "+0.1000 ± 0.0248"
    assert gone.cells()[1] == "2 of 3"
    assert gone.ended == "2 collapsed to uniform; 1 failed: out of memory"
    assert gone.reading == "no difference seen"
    assert low.rate == 100.5
    assert low.hours == pytest.approx(0.03)
    tables, pictures = ("csv", "md", "parquet", "tex"), ("curves", "effects", "heat", "parallel")
    files = {FILE, *(f"table.{end}" for end in tables), *(f"{name}.svg" for name in pictures)}
    assert {path.name for path in folder.iterdir()} == files
    text = (folder / "table.md").read_text()
    assert "| high_&#124; | 3 |" in text
    assert "2 arms are compared at 95 % each: about 0.1 of them" in text
    (record, *_) = csv.DictReader((folder / "table.csv").read_text().splitlines())
    assert (float(record["mean"]), float(record["t"])) == (0.5, 0.1)
    assert pyarrow.parquet.read_table(folder / "table.parquet").num_rows == 3
    assert r"high\_\textbar{} & 3 & 0.6000 $\pm$" in (folder / "table.tex").read_text()


def test_numbers_that_were_drawn_lie_at_their_place(tmp_path: Path) -> None:
    rates = [10.0**-i for i in range(8)]
    arms = tuple(
        Arm(
            f"{rate}",
            {"m": "ab"[i % 2], "lr": rate},
            {0: run(tmp_path / str(i), [0.1, 0.1 * i], "finished", "")},
        )
        for i, rate in enumerate(rates)
    )
    arms = (*arms, Arm("no rate", {"m": "a"}, {0: run(tmp_path / "no", [0.1], "finished", "")}))
    study = Study("s", "knn.5nn", "max", "0.1", ("m", "lr"), arms)
    pictures = dict(draw_figures(study, read_results(study)))
    assert set(pictures) == {"curves", "effects", "parallel"}  # a heat map would be one cell a row
    rate_panel = pictures["effects"].axes[1]
    assert rate_panel.get_xscale() == "log"
    assert sorted({float(line.get_xdata()[0]) for line in rate_panel.lines}) == sorted(rates)
    lines = pictures["parallel"].axes[0].lines
    assert list(lines[-1].get_xdata()) == [0, 2]  # what has no rate passes its axis by
    assert [float(line.get_ydata()[1]) for line in lines[:3]] == pytest.approx([1, 6 / 7, 5 / 7])


def test_pictures_are_the_same_every_time(study: Study, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_study(study, tmp_path / name)
    for picture in (tmp_path / "a").glob("*.svg"):
        assert picture.read_bytes() == (tmp_path / "b" / picture.name).read_bytes()


def test_axes_that_no_arm_shares_are_not_crossed(study: Study) -> None:
    low, high, _ = study.arms
    arms = [
        replace(arm, label=f"{key}{arm.label}", settings={key: arm.settings["t"]})
        for key in "tm"
        for arm in (low, high)
    ]
    crossed = replace(study, arms=tuple(arms))
    drawn = [name for name, _ in draw_figures(crossed, read_results(crossed))]
    assert "heat" not in drawn


def test_a_smaller_metric_may_be_the_better_one(study: Study, tmp_path: Path) -> None:
    _, high, _ = write_study(Study(**{**vars(study), "mode": "min"}), tmp_path / "out").lines
    assert high.reading == "worse"


def test_a_study_comes_back(study: Study, tmp_path: Path) -> None:
    study.write(tmp_path / "x")
    assert read_study(tmp_path / "x") == study
    with pytest.raises(UserError, match="no sweep lies here"):
        read_study(tmp_path)
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(UserError, match="not the file of a sweep"):
        read_study(tmp_path)


def test_a_folder_without_a_run_has_not_run(tmp_path: Path) -> None:
    write_status(tmp_path, Status("finished", 3, 3, "learning", seconds=12.0))
    assert read_status(tmp_path).seconds == 12.0
    assert read_status(tmp_path / "nowhere").state == "not run"


def test_an_unfinished_run_has_a_curve_and_no_score(tmp_path: Path) -> None:
    found = read_result(run(tmp_path / "r", [0.1, 0.2], "interrupted"), "knn.5nn")
    assert found.score is None
    assert len(found.curve) == 2

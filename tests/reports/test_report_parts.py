"""What a report computes, against naive statements of it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from dino_lab.imaging.pictures import HeatScale, overlay, picture_of
from dino_lab.registry import registry
from dino_lab.reports.page.base_spec import base_spec_of
from dino_lab.reports.page.chart import Chart, ChartFloor, ChartLine, draw, thinned
from dino_lab.reports.page.evaluator_files import charts_of, read_evaluator_files
from dino_lab.reports.page.galleries import nearest_in, principal_colours
from dino_lab.reports.page.run_curves import RunRows, comparison_charts, run_charts, single_numbers
from dino_lab.reports.page.samples import _drawn, multiplications, sample_sizes
from dino_lab.reports.page.scatter import embedded
from dino_lab.spec.file import load


@pytest.mark.parametrize(("queries", "bank", "width", "k"), [(3, 7, 4, 5), (1, 3, 2, 5), (10, 40, 16, 5)])
def test_neighbours_are_those_of_a_loop(queries: int, bank: int, width: int, k: int) -> None:
    torch.manual_seed(0)
    q, b = (F.normalize(torch.randn(n, width).double(), dim=1) for n in (queries, bank))
    cosine, at = nearest_in(q, b, k)
    for i in range(queries):
        found = sorted((sum(x * y for x, y in zip(q[i], b[j], strict=True)).item(), j) for j in range(bank))[
            ::-1
        ][:k]
        assert at[i].tolist() == [j for _, j in found]
        assert cosine[i].tolist() == pytest.approx([value for value, _ in found], rel=1e-9)


def test_token_colours_are_the_principal_components_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    torch.manual_seed(0)
    tokens = torch.randn(4, 6, 5, 5) * torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.1]).view(1, 6, 1, 1)
    flat = tokens.permute(0, 2, 3, 1).reshape(-1, 6).double().numpy()
    wanted = torch.from_numpy(PCA(3).fit_transform(flat))
    found = principal_colours(tokens).permute(0, 2, 3, 1).reshape(-1, 3)
    for i in range(3):
        inside = (found[:, i] > 0) & (found[:, i] < 1)
        assert inside.double().mean() > 0.9
        pair = torch.stack([found[inside, i].double(), wanted[inside, i]])
        assert abs(torch.corrcoef(pair)[0, 1].item()) == pytest.approx(1, abs=1e-6)


def test_tokens_of_fewer_than_three_numbers_have_colours() -> None:
    assert principal_colours(torch.randn(2, 2, 3, 3)).shape == (2, 3, 3, 3)


def test_an_overlay_is_brightest_where_the_weight_is_largest() -> None:
    weights = torch.zeros(4, 4)
    weights[1, 2] = 0.02
    scale = HeatScale.of(weights, "attention")
    image = torch.full((1, 16, 16), 51, dtype=torch.uint8)
    found = torch.from_numpy(np.asarray(overlay(image, weights, scale, 16)).astype(int)).sum(-1)
    row, column = divmod(int(found.argmax()), 16)
    assert (row // 4, column // 4) == (1, 2)
    assert overlay(image, torch.zeros(4, 4), HeatScale.of(torch.zeros(4, 4), "attention")).size == (160, 160)


def test_a_thinned_line_keeps_its_ends_and_its_peaks() -> None:
    y = [math.sin(i / 500) for i in range(10_000)]
    y[4321], y[77] = 50.0, math.nan
    thin = thinned(ChartLine("a", list(range(10_000)), y), 400)
    assert len(thin.x) <= 400
    assert max(thin.y) == 50.0
    assert thin.x == sorted(thin.x)
    assert thin.x[0] < 50
    assert thin.x[-1] > 9950
    short = thinned(ChartLine("a", [0, 1, 2], [1.0, math.inf, 2.0]))
    assert (short.x, short.y) == ([0, 2], [1.0, 2.0])


ROWS = [
    {"step": 0, "epoch": 0.0, "knn.5nn": 0.2, "spectrum.rank": 9.0},
    {"step": 2, "epoch": 1.0, "loss": 2.0, "entropy": 1.0, "entropy_max": 3.0, "kl": 1.0, "regularizer.koleo": 4.0, "lr": 0.1, "weight_decay": 0.04, "odd": 1.0, "knn.5nn": 0.4, "spectrum.rank": 7.0},
    {"step": 4, "epoch": 2.0, "loss": 1.5, "entropy": 0.9, "entropy_max": 3.0, "kl": 0.6, "regularizer.koleo": 3.0, "lr": 0.05, "weight_decay": 0.04, "odd": 2.0},
]  # fmt: skip


def test_every_number_of_a_row_has_a_chart() -> None:
    charts = {chart.title: chart for chart in run_charts(ROWS)}
    assert list(charts)[:3] == ["Loss", "Scores of knn", "spectrum.rank"]
    assert charts["Entropy of the target"].level == (3.0, "ln K = 3.00")
    assert {"KL of target and student", "Learning rate", "Regularizer koleo", "odd"} <= set(charts)
    assert "Weight decay" not in charts, "a constant is no curve"
    assert charts["Scores of knn"].lines[0].y == [0.2, 0.4]


def test_floors_are_thin_lines_in_the_colour_of_their_curve() -> None:
    rows = [row | {"knn.9nn": 0.1} for row in ROWS]
    floors = {"knn.5nn": {"chance": 0.1, "raw pixels": 0.3}, "knn.9nn": {"chance": 0.1, "raw pixels": 0.2}}
    chart = next(chart for chart in run_charts(rows, floors) if chart.title == "Scores of knn")
    assert [line.name for line in chart.lines] == ["5nn", "9nn"]
    # Chance is the same for both; raw pixels are not, and the first to be drawn with dashes.
    assert chart.floors == (ChartFloor(0.1, 0), ChartFloor(0.3, 1, 0), ChartFloor(0.2, 1, 1))
    assert chart.note == "Thin lines: chance dotted, raw pixels dashed."
    (plain,) = (chart for chart in run_charts(ROWS) if chart.title == "Scores of knn")
    assert (plain.floors, plain.note) == ((), "")


def test_a_floor_below_the_curve_is_on_the_picture() -> None:
    line = ChartLine("5nn", [0, 1], [0.5, 0.6])
    low, high = draw(Chart("a", "score", (line,), floors=(ChartFloor(0.1, 0, 0),))).data["limits"][2:]
    assert low < 0.1 < 0.6 < high


def test_what_stands_in_one_row_is_a_number_and_no_chart() -> None:
    charts = {chart.title for chart in run_charts(ROWS[:2])}
    assert charts == {"Scores of knn", "spectrum.rank"}
    found = {one.title: (one.value, one.epoch) for one in single_numbers(ROWS[:2])}
    assert next(iter(found)) == "Loss"
    assert found == {
        "Loss": (2.0, 1.0),
        "Entropy of the target": (1.0, 1.0),
        "KL of target and student": (1.0, 1.0),
        "Learning rate": (0.1, 1.0),
        "Weight decay": (0.04, 1.0),
        "Regularizer koleo": (4.0, 1.0),
        "odd": (1.0, 1.0),
    }
    assert {one.title for one in single_numbers(ROWS)} == {"Weight decay"}
    assert run_charts(ROWS[:1]) == []
    assert single_numbers(ROWS[:1]) == []
    one_dot = [RunRows(name, 0, ROWS[:2]) for name in "ab"]
    assert {chart.title for chart in comparison_charts(one_dot, "knn.5nn")} == {"knn.5nn", "spectrum.rank"}


def test_several_runs_share_charts() -> None:
    runs = [RunRows("a", 0, ROWS), RunRows("b", 1, ROWS[:1])]
    charts = {c.title: c for c in comparison_charts(runs, "spectrum.rank")}
    assert list(charts)[:3] == ["spectrum.rank", "knn.5nn", "Loss"]
    assert [line.name for line in charts["knn.5nn"].lines] == ["a", "b"]
    assert [line.name for line in charts["Loss"].lines] == ["a"]


def test_json_becomes_curves_where_it_holds_some() -> None:
    columns = {"strength": [0, 1, 2], "distance": [0.0, 0.1, 0.3]}
    (chart,) = charts_of(columns)
    assert (chart.x_label, chart.y_label, list(chart.lines[0].y)) == ("strength", "distance", [0.0, 0.1, 0.3])
    (same,) = charts_of([{"strength": 0, "distance": 0.0}, {"strength": 1, "distance": 0.1}])
    assert list(same.lines[0].x) == [0.0, 1.0]
    nested = list(charts_of({"version": 1, "curves": {"blur": columns, "hue": columns}}))
    assert [chart.title for chart in nested] == ["curves blur", "curves hue"]
    for nothing in (
        3,
        [],
        {"a": [1, 2], "b": [1]},
        {"a": "text"},
        [[1, 2]],
        {"a": [True, False], "b": [1, 2]},
    ):
        assert not list(charts_of(nothing))


def test_what_evaluators_left_is_read_last_first(tmp_path: Path) -> None:
    for step in (0, 12):
        folder = tmp_path / "evaluations" / f"{step:06}"
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4), (step, 0, 0)).save(folder / "clusters.teacher.confusion.png")
        (folder / "clusters.teacher.broken.png").write_bytes(b"no picture")
        (folder / "clusters.teacher.weights.bin").write_bytes(b"1")
        (folder / "clusters.teacher.note.txt").write_text("x" * 9000)
        (folder / "clusters.teacher.bad.json").write_text("{")
    Image.effect_noise((2500, 2500), 90).convert("RGB").save(
        tmp_path / "evaluations/000012/attend.student.big.png"
    )
    found = read_evaluator_files(tmp_path)
    kept = {item.title: item for item in found.shown}
    picture = kept["clusters: confusion (teacher)"]
    assert (picture.step, picture.earlier_step) == (12, 0)
    assert picture.picture.startswith("data:image/png;base64,")
    assert picture.picture != picture.earlier
    assert len(kept["clusters: note (teacher)"].text) < 5000
    assert sorted(line.partition(": ")[0].rpartition("/")[2] for line in found.left_out) == [
        "attend.student.big.png", "clusters.teacher.bad.json", "clusters.teacher.broken.png", "clusters.teacher.weights.bin",
    ]  # fmt: skip
    assert any("to keep the page below 5 MB" in line for line in found.left_out)


def test_the_base_is_what_the_file_extends_as_long_as_that_is_so(tiny: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: tiny.yaml\ntargets: {momentum: 0.5}\n")
    command = ["dino-lab", "run", "child.yaml", "--set", "train.epochs=2", "--set=seed=3"]
    environment = {"command": command, "directory": str(tmp_path)}
    spec = load(child, ["train.epochs=2", "seed=3"]).spec
    found = base_spec_of(spec, environment, registry)
    assert found.name == str(tiny)
    assert [(c.key, c.old, c.new) for c in found.changes] == [
        ("seed", "0", "3"), ("targets.momentum", "0.9", "0.5"), ("train.epochs", "3", "2"),
    ]  # fmt: skip

    alone = base_spec_of(
        load(tiny, ["seed=1"]).spec, {"command": ["x", "run", str(tiny), "--set", "seed=1"]}, registry
    )
    assert (alone.name, [c.key for c in alone.changes]) == (str(tiny), ["seed"])

    child.write_text("extends: tiny.yaml\ntargets: {momentum: 0.6}\n")
    for changed in (environment, {}, {"command": ["dino-lab", "sweep", "s.yaml"]}):
        defaults = base_spec_of(spec, changed, registry)
        assert defaults.name == "the defaults"
        changes = {c.key: (c.old, c.new) for c in defaults.changes}
        assert changes["targets.momentum"] == ("0.9", "0.5")
        assert changes["train.epochs"] == ("-", "2")
        assert changes["evaluators.0.k"] == ("[10, 20]", "[5]")
        assert "loss.temperature" not in changes


def test_features_that_are_all_the_same_are_a_point_and_no_warning() -> None:
    method, places = embedded(F.normalize(torch.ones(40, 8), dim=1))
    assert method == "PCA"
    assert places.abs().max() < 1e-6
    assert embedded(torch.ones(1, 1))[1].shape == (1, 2)


def test_tsne_keeps_two_heaps_apart() -> None:
    torch.manual_seed(0)
    heaps = torch.cat([torch.randn(30, 8) * 0.05 + centre for centre in (torch.ones(8), -torch.ones(8))])
    method, places = embedded(F.normalize(heaps, dim=1))
    assert method == "t-SNE"
    one, other = places[:30], places[30:]
    assert torch.cdist(one, other).min() > torch.cdist(one, one).max() / 4
    assert torch.cdist(one.mean(0)[None], other.mean(0)[None]) > 2 * one.std(0).norm()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_have_a_picture(channels: int) -> None:
    assert picture_of(torch.zeros(channels, 5, 6, dtype=torch.uint8)).size == (6, 5)


def test_the_number_of_images_depends_on_the_network_alone() -> None:
    assert sample_sizes(0) == sample_sizes(1e6) == (500, 1500)
    assert sample_sizes(4e9) == (50, 150)
    assert sample_sizes(1e12) == (40, 120)


def test_multiplications_are_those_of_the_layers() -> None:
    """Of 8 x 8 pixels: 3 x 3 kernels of 3 channels at 6 x 6 places for 4 outputs, then 4 numbers to 5."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    network = SimpleNamespace(backbone=layers)

    class Asked:
        def __init__(self) -> None:
            self.network = network

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return layers(images.float())

    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    found = multiplications(Asked(), images)  # type: ignore[arg-type]
    assert found == 6 * 6 * 4 * 3 * 3 * 3 + 4 * 5
    assert not layers[0]._forward_hooks


@pytest.mark.parametrize("has_read", [True, False])
def test_drawn_images_are_a_random_part_and_the_same_every_time(has_read: bool) -> None:
    images, labels = torch.arange(50).view(50, 1, 1, 1).to(torch.uint8), torch.arange(50) % 7

    def read(split: str, rows: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(images[row], labels[row]) for row in rows]

    data = SimpleNamespace(
        test_images=50, test=lambda size: zip(images.split(size), labels.split(size), strict=True)
    )
    if has_read:
        data.read = read
    batches = list(_drawn(data, 20))
    seen = torch.cat([batch[0] for batch in batches]).flatten().tolist()
    assert seen == torch.randperm(50, generator=torch.Generator().manual_seed(0))[:20].tolist()
    assert torch.cat([batch[1] for batch in batches]).tolist() == [number % 7 for number in seen]


def test_evaluator_files_of_any_damage_are_a_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations" / "000012"
    folder.mkdir(parents=True)
    (folder / "a.teacher.deep.json").write_text("[" * 100_000)
    (folder / "a.teacher.large.json").write_text(f'{{"x": [0, 1], "y": [1{"0" * 400}, 2]}}')
    (folder / "a.teacher.cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    (folder / "a.teacher.note.txt").write_text("good")
    found = read_evaluator_files(tmp_path)
    assert [file.title for file in found.shown] == ["a: note (teacher)"]
    assert len(found.left_out) == 3

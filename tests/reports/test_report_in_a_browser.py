"""Reports in headless Chromium: nothing is loaded, nothing complains, and what moves does move."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dino_lab.cli import app as cli
from dino_lab.runs.study import Arm, Study

NAMES = ("chromium", "chromium-browser", "google-chrome")
EVIL = "</script><script>document.title='broken'</script>"
Execute = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    flags = ["--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as started:
        # Chromium refuses its sandbox to root, in a container for example.
        opened = started.chromium.launch(
            executable_path=program, args=[*flags, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        yield opened
        opened.close()


class Opened:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, file))
        self.page.goto(file.as_uri())

    def _asked(self, url: str, file: Path) -> None:
        if not url.startswith("data:") and url != file.as_uri():
            self.said.append(f"request of {url}")

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_inner_texts()]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def open_file(file: Path, width: int = 1200, scheme: str = "light") -> Opened:
        opened.append(Opened(browser, file, width, scheme))
        return opened[-1]

    yield open_file
    for one in opened:
        one.page.close()
        assert one.said == []


@pytest.fixture
def run(tiny_spec: Execute, execute: Execute) -> Path:
    return execute(tiny_spec("augment.local_views=1")).folder


@pytest.fixture
def sweep(tiny_spec: Execute, execute: Execute, tmp_path: Path) -> Path:
    probes = "{name: knn, k: [5]}", "{name: clusters}"
    settings = ((0.02, probes[0]), (0.04, probes[0]), (0.1, ", ".join(probes)))
    runs = [
        execute(tiny_spec("train.epochs=1", f"targets.temperature={t}", f"evaluators=[{those}]")).folder
        for t, those in settings
    ]
    labels = (EVIL, "middle $t$", "hot")
    arms = (
        Arm(label, {"t": t}, {0: path}) for label, t, path in zip(labels, (0.1, 9, 10), runs, strict=True)
    )
    Study("s", "knn.5nn", "max", EVIL, ("t",), tuple(arms)).write(tmp_path / "sweep")
    assert cli.main(["report", str(tmp_path / "sweep")]) == 0
    return tmp_path / "sweep" / "report.html"


def test_a_run(run: Path, open_page: Callable[..., Opened]) -> None:
    assert cli.main(["report", str(run), "--device", "cpu"]) == 0
    opened = open_page(run / "report.html")
    page = opened.page
    charts = page.locator("#curves .chart")
    assert charts.count() > 8
    for i in range(charts.count()):
        box = charts.nth(i).locator("svg [data-series] path").first.bounding_box()
        assert box is not None
        assert box["width"] + box["height"] > 20, "a chart without its curve"
    # Every picture is there.
    broken = "[...document.images].filter((one) => !one.complete || !one.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.locator("#attention .gallery img").count() == 8 * (1 + 1 + 2)
    assert page.locator("#attention .scale img").count() == 1

    tip = page.locator("#tip")
    assert not tip.is_visible()
    plot = page.locator("#curves .plot svg").first
    plot.scroll_into_view_if_needed()
    plot.hover(position={"x": 150, "y": 80})
    assert "loss" in tip.inner_text()
    assert page.locator(".cursor").count() == 1

    page.locator("#features").scroll_into_view_if_needed()
    point = page.locator("#features .plot [data-series] use").first
    point.hover()
    assert tip.locator("canvas").is_visible()
    seen = "document.querySelector('#tip canvas').getContext('2d').getImageData(0, 0, 40, 40).data.some((v, i) => i % 4 < 3 && v)"
    assert page.evaluate(seen), "the thumbnail is black"
    swatches = "[...document.querySelectorAll('#features .swatch')].map((one) => getComputedStyle(one).borderTopColor)"
    points = "[...document.querySelectorAll('#features .plot [data-series]')].map((one) => getComputedStyle(one.querySelector('use')).fill)"
    assert page.evaluate(swatches) == page.evaluate(points)
    page.locator("#features .legend button").first.click()
    assert (
        page.locator("#features .plot .away").count() == page.locator("#features .legend button").count() - 1
    )


def test_colours_follow_the_system_until_someone_chooses(run: Path, open_page: Callable[..., Opened]) -> None:
    (run / "last.pt").unlink()
    assert cli.main(["report", str(run), "--device", "cpu"]) == 0
    background = "getComputedStyle(document.body).backgroundColor"
    light = open_page(run / "report.html").page
    dark = open_page(run / "report.html", scheme="dark").page
    day, night = light.evaluate(background), dark.evaluate(background)
    assert day != night
    ink = "getComputedStyle(document.querySelector('#curves text')).fill"
    assert light.evaluate(ink) != dark.evaluate(ink)
    dark.locator("#theme").click()
    assert dark.evaluate(background) == day
    dark.reload()
    assert dark.evaluate(background) == day, "the choice is forgotten"
    dark.locator("#theme").click()
    assert dark.evaluate(background) == night


@pytest.fixture
def probed(tiny_spec: Execute, execute: Execute) -> Path:
    """A run with a protocol in which a list of numbers is one long word."""
    return execute(tiny_spec("evaluators=[{name: linear_probe, epochs: 1}]")).folder


@pytest.mark.parametrize("kind", ["run", "probed", "sweep"])
def test_a_phone_scrolls_one_way(
    kind: str, request: pytest.FixtureRequest, open_page: Callable[..., Opened]
) -> None:
    file = request.getfixturevalue(kind)
    if kind != "sweep":
        assert cli.main(["report", str(file), "--device", "cpu"]) == 0
        file = file / "report.html"
    page = open_page(file, width=390).page
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ends = "[...document.querySelectorAll('#scores tr')].map(row => row.getBoundingClientRect().right)"
    assert all(right <= 390 for right in page.evaluate(ends)), "what the score is now is out of sight"
    height = page.locator("#curves").bounding_box()["height"]
    assert height < 500, "charts hide the rest of the page"
    size = "parseFloat(getComputedStyle(document.querySelector('#curves text')).fontSize)"
    scale = "(() => { const one = document.querySelector('#curves svg'); return one.getBoundingClientRect().width / one.viewBox.baseVal.width; })()"
    assert page.evaluate(size) * page.evaluate(scale) > 8, "too small to read"


def test_a_sweep_is_sorted_and_filtered(sweep: Path, open_page: Callable[..., Opened]) -> None:
    opened = open_page(sweep)
    page = opened.page
    assert page.title() == "s"
    labels = "#arms tbody tr td:first-child"
    assert opened.texts(labels) == [EVIL, "middle $t$", "hot"]
    heading = page.locator("#arms th").last  # t: 0.1, 9, 10, as numbers and not as texts
    heading.click()
    assert opened.texts("#arms tbody tr td:last-child") == ["0.1", "9", "10"]
    heading.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert opened.texts("#arms tbody tr td:last-child") == ["10", "9", "0.1"]

    assert page.locator("#runs tbody tr:visible").count() == 3
    chart = page.locator("#curves .chart").first
    assert chart.locator("[data-series]:visible").count() == 3
    page.locator("#runs input").fill("MIDDLE")
    assert opened.texts("#runs tbody tr:visible td:first-child") == ["middle $t$"]
    assert page.locator("#runs output").inner_text() == "1 of 3"
    assert chart.locator("[data-series]:visible").count() == 1
    assert "clusters.nmi" not in opened.texts("#curves .chart:visible h3"), "an empty chart is shown"
    chart.locator("svg").hover(position={"x": 150, "y": 80})
    assert "middle $t$ seed 0" in page.locator("#tip").inner_text()
    assert "hot" not in page.locator("#tip").inner_text()
    page.locator("#runs input").fill("")
    assert "clusters.nmi" in opened.texts("#curves .chart:visible h3")
    assert chart.locator("[data-series]:visible").count() == 3
    page.locator("#runs tbody tr").first.hover()
    assert chart.locator(".away").count() == 2
    assert page.locator("#pictures svg").count() == 1

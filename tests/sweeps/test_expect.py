"""Claims in a sweep file: their arms are found before anything runs, and every mistake has its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dino_lab.cli import app as cli
from dino_lab.errors import SpecError
from dino_lab.registry import registry
from dino_lab.sweeps.plan.plan import Plan, load_plan

HEAD = "base: tiny.yaml\nmetric: knn.5nn\n"
VARIANTS = HEAD + "variants: {plain: {}, no centring: {targets: {name: softmax}}}\n"
GRID = HEAD + "grid: {targets.temperature: [0.02, 0.04], targets.momentum: [0, 0.9]}\n"
Make = Callable[[str], Plan]


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Make:
    def make(text: str) -> Plan:
        file = tmp_path / "s.yaml"
        file.write_text(text)
        return load_plan(file, (), registry, runs=tmp_path / "runs")

    return make


@pytest.mark.parametrize(
    ("head", "claim", "labels", "statement"),
    [
        (VARIANTS, "{arm: no centring, verdict: one output}", ["no centring"], "no centring: one output"),
        (
            VARIANTS,
            "{better: plain, than: no centring, by: 0.02}",
            ["plain", "no centring"],
            "plain better than no centring by at least 0.02",
        ),
        (VARIANTS, "{arm: plain, above: raw pixels}", ["plain"], "plain above raw pixels"),
        (
            VARIANTS,
            "{arm: plain, near: 3.47, within: 0.1, metric: entropy}",
            ["plain"],
            "plain near 3.47 within 0.1, entropy",
        ),
        (
            GRID,
            "{equal: [temperature=0.04 momentum=0, {targets.momentum: 0.9, targets.temperature: 0.04}], within: 0.02}",
            ["temperature=0.04 momentum=0", "temperature=0.04 momentum=0.9"],
            "temperature=0.04 momentum=0 equal to temperature=0.04 momentum=0.9 within 0.02",
        ),
        (
            VARIANTS + "grid: {targets.temperature: [0.04]}\n",
            "{arm: no centring, verdict: collapsed}",
            ["no centring temperature=0.04"],
            "no centring temperature=0.04: collapsed",
        ),
        (
            HEAD + "grid: {targets.momentum: [0.5]}\n",
            "{better: {targets.momentum: 0.5}, than: base}",
            ["momentum=0.5", "base"],
            "momentum=0.5 better than base",
        ),
    ],
)
def test_arms_are_named_by_variant_label_or_settings(
    head: str, claim: str, labels: list[str], statement: str, plan: Make
) -> None:
    (found,) = plan(f"{head}expect: [{claim}]\n").study.expect
    assert found.labels == labels
    assert found.statement("knn.5nn") == statement
    assert (found.metric, found.mode) in (("knn.5nn", "max"), ("entropy", "max"), (None, None))


@pytest.mark.parametrize(
    ("head", "claim", "wanted"),
    [
        (
            VARIANTS,
            "{arm: no centering, verdict: uniform}",
            "4:11: expect.0.arm: no arm is called 'no centering'; did you mean 'no centring'? "
            "(there are: plain, no centring)",
        ),
        (
            VARIANTS,
            "{arm: plain, verdict: one outputs}",
            "4:23: expect.0.verdict: must be one of learning, collapsed, uniform, one output, got 'one outputs'; "
            "did you mean 'one output'?",
        ),
        (
            GRID,
            "{equal: [{targets.temprature: 0.02}, temperature=0.04 momentum=0], within: 1}",
            "4:19: expect.0.equal.0: no arm sets 'targets.temprature'; did you mean 'targets.temperature'? "
            "(arms set: targets.temperature, targets.momentum)",
        ),
        (
            GRID,
            "{arm: {targets.momentum: 0}, above: chance}",
            "4:11: expect.0.arm: names 2 arms: temperature=0.02 momentum=0, temperature=0.04 momentum=0; "
            "name one of them",
        ),
        (GRID, "{arm: {targets.momentum: 7}, above: 0}", "no arm has {targets.momentum: 7} (there are: temp"),
        (VARIANTS, "{arm: plain}", "4:10: expect.0: needs the keys of one of these, those in brackets if"),
        (VARIANTS, "{better: plain, than: no centring, within: 1}", "got better, than, within"),
        (VARIANTS, "{equal: [plain, no centring]}", "4:10: expect.0: needs the keys of one of these"),
        (VARIANTS, "{equal: [plain], within: 1}", "4:11: expect.0.equal: has too few items"),
        (VARIANTS, "{equal: [plain, plain], within: 1}", "4:10: expect.0: compares plain with itself"),
        (VARIANTS, "{arm: plain, above: pixels}", "4:23: expect.0.above: must be one of untrained, raw pix"),
        (VARIANTS, "{arm: plain, above: 0, by: -1}", "4:33: expect.0.by: must be greater than 0, got -1"),
        (VARIANTS, "{arm: plain, is: good}", "4:23: expect.0.is: unknown key (accepted: arm, verdict,"),
        (
            VARIANTS,
            "{arm: plain, above: 0, metric: probe.top1}",
            "4:33: expect.0.metric: no evaluator of tiny is called 'probe' (there are: knn)",
        ),
        (
            VARIANTS,
            "{arm: plain, near: untrained, within: 1, metric: loss}",
            "4:23: expect.0.near: loss has no value that is untrained",
        ),
        (VARIANTS, "{arm: plain, verdict: uniform, metric: loss}", "4:10: expect.0: a verdict depends on no"),
    ],
)
def test_a_mistake_is_told_at_its_place(head: str, claim: str, wanted: str, plan: Make) -> None:
    with pytest.raises(SpecError) as caught:
        plan(f"{head}expect: [{claim}]\n")
    (line,) = str(caught.value).splitlines()
    assert wanted in line


def test_all_mistakes_are_told_at_once(plan: Make) -> None:
    with pytest.raises(SpecError) as caught:
        plan(f"{VARIANTS}expect:\n- {{arm: a, above: 0}}\n- {{better: b, than: c}}\n")
    assert [line.rpartition("/")[2].split(": ")[0] for line in str(caught.value).splitlines()] == [
        "s.yaml:5:4",
        "s.yaml:6:4",
        "s.yaml:6:15",
    ]


def test_a_search_has_no_arms_to_name(plan: Make) -> None:
    text = HEAD + "search: {name: optuna, samples: 2}\nspace: {targets.momentum: {uniform: [0, 1]}}\n"
    with pytest.raises(SpecError, match="expect names arms, and those of a search are not known"):
        plan(f"{text}expect: [{{arm: base, above: 0}}]\n")


def test_claims_do_not_move_the_folder(plan: Make, tmp_path: Path) -> None:
    without = plan(VARIANTS).folder(tmp_path)
    assert plan(f"{VARIANTS}expect: [{{arm: plain, above: 0}}]\n").folder(tmp_path) == without


def test_a_sweep_lists_its_claims_and_checks_them(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "s.yaml"
    text = f"{VARIANTS}set: {{train.epochs: 1}}\nseeds: 2\n"

    def sweep(claims: str, *arguments: str) -> int:
        file.write_text(f"{text}{claims}")
        options = ["--runs", str(tmp_path / "runs"), "--executor", "inline", *arguments]
        return cli.main(["sweep", str(file), *options])

    true = "{arm: plain, above: -1}"
    assert sweep(f"expect: [{true}]\n", "--dry-run") == 0
    assert "expected: plain above -1\n" in capsys.readouterr().out
    assert sweep("", "--check") == 2
    assert "s.yaml: nothing to check; `expect` lists what is claimed of the arms" in capsys.readouterr().err
    assert sweep("expect: [{arm: plain, above: 0, metric: knn.5n}]\n") == 2
    assert "expect.0.metric: no evaluator reports 'knn.5n'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert sweep(f"expect: [{true}]\n", "--check") == 0
    assert "plain above -1  as expected  +" in capsys.readouterr().out
    # What has run is judged anew.
    claims = f"expect: [{true}, {{arm: plain, above: 2}}]\n"
    assert sweep(claims) == 0
    assert sweep(claims, "--check") == 1
    assert "plain above 2   not as expected  -" in capsys.readouterr().out

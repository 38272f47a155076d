"""The card beside an export: what it is, what it scored, how it is loaded."""

from __future__ import annotations

from dino_lab import __version__
from dino_lab.building.components import make_evaluators
from dino_lab.exports.exported_backbone import ExportedBackbone
from dino_lab.exports.round_trip import LIMIT
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import SavedRun
from dino_lab.runs.rows import scores
from dino_lab.spec.file import dump_yaml

PARTS = (
    *("augment", "head", "predictor", "teacher", "targets", "loss"),
    *("token_head", "token_targets", "token_loss"),
)


def card(run: SavedRun, subject: ExportedBackbone, *, of: str, lines: str, difference: float) -> str:
    """Markdown."""
    spec, data = run.spec, run.data
    parts = ", ".join(
        f"{part} `{getattr(spec, part).name}`" for part in PARTS if getattr(spec, part) is not None
    )
    shape = " x ".join(map(str, subject.shape))
    mean, std = _numbers(subject.mean), _numbers(subject.std)
    return "\n".join(
        [
            f"# {spec.name}",
            "",
            f"The {of}'s backbone of a run of dino-lab {__version__}, `{subject.name}`: images {shape} to "
            f"{subject.features.shape[1]} features.",
            "",
            f"- Method: {parts}",
            f"- Data: `{spec.data.name}`, {data.train_images} training and {data.test_images} test images",
            *_evaluated_on(run),
            f"- Weights: of step {run.step}",
            f"- Training: {_progress(run.folder)}",
            f"- Images: in 0..1, less mean {mean}, over standard deviation {std}",
            f"- Checked: features of {len(subject.images)} test images differ from the run's by "
            f"{difference:.1e} of the largest (limit {LIMIT:g})",
            "- Licence: to be stated by whoever publishes this",
            "",
            "## Load",
            "",
            "```python",
            lines,
            "```",
            "",
            "## Scores",
            "",
            *_scores(run),
            "",
            "## Spec",
            "",
            f"Hash {run.folder.hash}; `dino-lab run` on this file trains it again.",
            "",
            "```yaml",
            dump_yaml(spec).rstrip(),
            "```",
            "",
        ]
    )


def _evaluated_on(run: SavedRun) -> list[str]:
    params = run.spec.evaluate_on
    return [] if params is None else [f"- Evaluated on: `{params.name}`"]


def _progress(folder: RunFolder) -> str:
    status = folder.status()
    if status.state == "finished":
        return f"finished, {status.step} of {status.total} steps; {status.sentence}"
    rows = folder.rows()
    return f"not finished; the last row is of step {rows[-1]['step']}" if rows else "not finished"


def _scores(run: SavedRun) -> list[str]:
    """A table of the last scores up to the weights' step, each with the protocol that it was measured by."""
    scored = [row for row in run.folder.rows() if scores(row) and row["step"] <= run.step]
    if not scored:
        return ["None: no evaluator had run."]
    protocols = {
        name: evaluator.protocol
        for name, evaluator in make_evaluators(run.spec.evaluators, run.registry).items()
    }
    rows = [
        f"| {name} | {value:.4f} | {protocols.get(name.partition('.')[0], '')} |"
        for name, value in scores(scored[-1]).items()
    ]
    return [f"After step {scored[-1]['step']}.", "", "| score | value | protocol |", "|---|---|---|", *rows]


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)})"

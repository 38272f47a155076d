"""The claims of DINO's paper, at a size for CPUs: every sweep of experiments/paper/, and docs/paper.md.

    python -m benchmarks.paper FOLDER/cifar10 [--seeds 3] [--only components teacher]

Finished runs are kept in runs/paper and not repeated, so this may be stopped and called again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import dino_lab
from benchmarks.report import hardware, table
from dino_lab.reports.study.claims import CLAIM_HEADERS, SEEN_FROM, Judgement
from dino_lab.sweeps.run import SweepResult

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper.md"
PICTURES = ROOT / "docs" / "paper"
SWEEPS = ROOT / "experiments" / "paper"
RUNS = ROOT / "runs" / "paper"
NAMES = (
    "components",
    "teacher",
    "centring_momentum",
    "temperature",
    "crop_scale",
    "multi_crop",
    "attention",
)
DRAWN = ("attention",)  # on drawn images, not on CIFAR-10
COLUMNS = ("claim", "paper", "measured", "outcome", "seen from", "remark")
HEAD = """# The paper's claims

What *Emerging Properties in Self-Supervised Vision Transformers*
([arXiv 2104.14294](https://arxiv.org/abs/2104.14294)) says of DINO's parts, tried at a size for two CPU
cores: a small ResNet, CIFAR-10 (re-encoded as JPEG), two epochs, a head without batch norm
(`experiments/paper/dino_small.yaml`); attention with the quickstart's ViT on drawn objects. The paper's
numbers are k-NN accuracies of ViT-S/16 on ImageNet, and Jaccard overlaps on PASCAL VOC. This page says
whether the claims show at this size; what holds here need not hold there, and the other way round.

The page is written by

```sh
{command}
```

Each claim stands in the sweep file beside the arms that it is about, and `dino-lab sweep FILE --check`
judges it anew. Hours and images/s are of cores beside other programs.
"""


def claims_table(found: Sequence[tuple[str, Judgement]]) -> str:
    """Every claim in a line, with the sweep that it comes from."""
    columns = [CLAIM_HEADERS.index(column) for column in COLUMNS]
    rows = [
        [*(judged.cells()[column] for column in columns), f"[`{name}`](#{name})"] for name, judged in found
    ]
    return table([*COLUMNS, "sweep"], rows)


def section(name: str, result: SweepResult) -> str:
    """The table of one sweep and the picture of its effects, which is copied beside the page."""
    _, text = (result.folder / "table.md").read_text().split("\n", 1)
    parts = [
        f"## {name}",
        f"`dino-lab sweep experiments/paper/{name}.yaml`",
        text.partition("## Claims")[0].strip(),
    ]
    if (picture := result.folder / "effects.svg").exists():
        PICTURES.mkdir(exist_ok=True)
        shutil.copyfile(picture, PICTURES / f"{name}.svg")
        parts.append(f"![Effects of {name}](paper/{name}.svg)")
    return "\n\n".join(parts)


def main() -> None:
    """Run what is left of every sweep, one after the other, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the folder of CIFAR-10 as Parquet")
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray")
    parser.add_argument("--seeds", type=int, help="of each sweep, in place of the five that its file has")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these sweeps alone")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished runs lie")
    given = parser.parse_args()
    cifar = f"data.path={Path(given.data).resolve()}"
    seeds = [f"seeds={given.seeds}"] if given.seeds else []
    results = {
        name: dino_lab.sweep(
            SWEEPS / f"{name}.yaml",
            *([] if name in DRAWN else [cifar]),
            *seeds,
            runs=given.runs,
            executor=given.executor,
        )
        for name in given.only
    }
    found = [(name, judged) for name, result in results.items() for judged in result.claims]
    shown = sum(judged.is_shown for _, judged in found)
    missing = [name for name in NAMES if name not in given.only]
    command = "python -m benchmarks.paper FOLDER/cifar10" + (f" --seeds {given.seeds}" if seeds else "")
    head = HEAD.format(command=command + (f" --only {' '.join(given.only)}" if missing else ""))
    if missing:
        head += f"\nNot run yet: {', '.join(missing)}.\n"
    parts = [head, f"{hardware()}: {shown} of {len(found)} claims are as expected.", claims_table(found)]
    parts += [f"- {SEEN_FROM}", *(section(name, result) for name, result in results.items())]
    PAGE.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

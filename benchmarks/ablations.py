"""The three ablations of the paper's Appendix D, small enough for a CPU: pages under docs/ablations/.

Finished runs are kept in runs/ablations and not repeated, so this may be stopped and called again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.report import hardware

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "ablations"
SWEEPS = ROOT / "experiments" / "sweeps"
RUNS = ROOT / "runs" / "ablations"
NAMES = ("temperature", "crop_scale", "centering_momentum")
SETTINGS = ("train.epochs=2",)
PICTURES = ("effects", "curves")


def command(name: str) -> list[str]:
    """What is typed, without the program."""
    words = ["sweep", f"experiments/sweeps/{name}.yaml", "--runs", str(RUNS.relative_to(ROOT))]
    return words + [word for setting in SETTINGS for word in ("--set", setting)]


def said(name: str) -> str:
    """The comment at the head of the sweep file, as text: what the paper found, and what we did."""
    lines = (SWEEPS / f"{name}.yaml").read_text().splitlines()
    comment = [
        line[1:].strip() for line in lines if line.startswith("#") and "yaml-language-server" not in line
    ]
    return "\n".join(comment)


def page(name: str) -> str:
    """Run the sweep; its table and pictures as a page, the pictures beside it."""
    program = str(Path(sys.executable).with_name("dino-lab"))
    subprocess.run([program, *command(name)], cwd=ROOT, check=True)
    (folder,) = (RUNS / "_sweeps" / name).iterdir()
    title, table = (folder / "table.md").read_text().split("\n", 1)
    pictures = []
    for picture in PICTURES:
        if (folder / f"{picture}.svg").exists():
            shutil.copyfile(folder / f"{picture}.svg", PAGES / f"{name}_{picture}.svg")
            pictures.append(f"![{picture} of {name}]({name}_{picture}.svg)")
    typed = f"`dino-lab {' '.join(command(name))}`, {hardware()}"
    return "\n\n".join([title, said(name), typed, table.strip(), *pictures]) + "\n"


def main() -> None:
    """All three."""
    PAGES.mkdir(exist_ok=True)
    for name in NAMES:
        (PAGES / f"{name}.md").write_text(page(name), encoding="utf-8")


if __name__ == "__main__":
    main()

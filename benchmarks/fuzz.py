"""Damaged input: the verbs' own functions answer with a UserError, within 5 seconds and 1 GB, or not at all.

    python -m benchmarks.fuzz --specs 20000 --settings 20000 --sweeps 5000 --runs 2000

Every case is made from the seed, its kind and its number alone, so `--only specs:1234` makes one again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from dino_lab.building.check import check
from dino_lab.errors import Misfit, UserError
from dino_lab.evaluation.subjects import run_subject
from dino_lab.registry import registry
from dino_lab.reports.page.run_facts import read_facts
from dino_lab.reports.study.comparison import study_of
from dino_lab.reports.study.results import read_results
from dino_lab.spec.file import load
from dino_lab.sweeps.plan.plan import load_plan
from dino_lab.training.trainer import FitOptions, fit

ROOT = Path(__file__).parents[1]
KINDS = {"specs": 20_000, "settings": 20_000, "sweeps": 5000, "runs": 2000}  # how many cases
SECONDS, BYTES = 5.0, 1 << 30  # that one case may take
TINY = """\
seed: 0
data: {name: shapes, train_images: 32, test_images: 16, size: 16}
augment: {name: multicrop, global_size: 16, local_size: 8, local_views: 1}
backbone: {name: vit, width: 16, depth: 1, heads: 2, patch: 4}
head: {name: prototypes, hidden: 16, bottleneck: 8, dim: 16}
teacher: {name: ema, momentum: 0.9}
targets: {name: center, temperature: 0.04}
loss: {name: cross_entropy, temperature: 0.1}
optim: {name: adamw, lr: 1.0e-3, weight_decay: 0.04}
train: {epochs: 2, batch_size: 16, log_every: 1}
evaluators: [{name: knn, k: [5], temperature: 0.07}]
"""
HOSTILE: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-300, 1e300, float("inf"), float("nan")),
    *(2**31, 2**32, 2**63, 10**9, 10**23, 10**40, "", " ", "a b", "a #b", "~", "~/x", "\x00", "\x1b[31m"),
    *("a\nb: c", "\u200b", "\ud800", "ü", "x" * 5000, "<<", "*a", "&a", "!!int x", "{", "[", "- a"),
    *("../..", "/dev/null", "/proc/self/mem", "http://x", "null", "1e5", [], {}, [[]], [{}], [0], ["a"]),
    *([1, 2, 3], {"name": None}, {"name": "vit"}, {"a": 1}, {"start": 0, "end": 1}, [0] * 5000),
    *({"start": 1, "end": 0, "warmup": 1}, {"name": "shapes", "size": 10**9}),
]
PIECES = [
    *("\t", "\0", "\ufeff", "\u2028", ": ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!set ", "---\n"),
    *("# ", "'", '"', "|\n", "%", "\r", "? "),
]
WORDS = [
    *("name", "seed", "size", "dim", "k", "lr", "start", "end", "warmup", "epochs", "every", "of", "width"),
    *("path", "model", "run", "timm", "queue", "evaluators"),
]
FILES: list[bytes] = [
    *(
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"a"',
        b"{",
        b"\xff\xfe",
        b"\0" * 100,
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ),
    *(b'{"step": 1e999, "epoch": NaN}\n', b'{"step": "x", "epoch": []}\n', b'{"verdict": 3}', b"a: &a [*a]"),
]


class Fuzz:
    """Cases by kind and number, in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.specs = [
            ROOT / "experiments" / "quickstart.yaml",
            *sorted((ROOT / "experiments/methods").glob("*.yaml")),
        ]
        self.sweeps = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
        self._run: Path | None = None

    def case(self, kind: str, number: int) -> tuple[str, Callable[[], object]]:
        """What it is, and what is called."""
        draw = random.Random(f"{self.seed} {kind} {number}")
        return {"specs": self._spec, "settings": self._setting, "sweeps": self._sweep, "runs": self._damaged}[
            kind
        ](draw)

    def _spec(self, draw: random.Random) -> tuple[str, Callable[[], object]]:
        file = self._mutated(draw, draw.choice(self.specs), ROOT / "experiments")
        return file.read_bytes()[:3000].decode(errors="replace"), lambda: _checked(file)

    def _sweep(self, draw: random.Random) -> tuple[str, Callable[[], object]]:
        file = self._mutated(draw, draw.choice(self.sweeps), ROOT / "experiments" / "sweeps")
        text = file.read_bytes()[:3000].decode(errors="replace")
        return text, lambda: load_plan(file, (), registry, runs=self.folder / "runs")

    def _setting(self, draw: random.Random) -> tuple[str, Callable[[], object]]:
        plain = yaml.safe_load(TINY)
        path = draw.choice(list(_paths(plain)))
        key = ".".join(map(str, path if draw.random() < 0.8 else (*path, draw.choice(WORDS))))
        value = _hostile(draw)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        setting = _scrambled(draw, f"{key}={text}") if draw.random() < 0.3 else f"{key}={text}"
        return setting[:3000], lambda: _checked(self._tiny(), setting)

    def _damaged(self, draw: random.Random) -> tuple[str, Callable[[], object]]:
        whole = self.run()
        run = self.folder / "damaged" / whole.name
        shutil.rmtree(run.parent, ignore_errors=True)
        shutil.copytree(whole, run)
        said = [_damage(draw, run) for _ in range(draw.choice([1, 1, 1, 2, 5]))]
        return "; ".join(said), lambda: _read_run(run)

    def _tiny(self) -> Path:
        file = self.folder / "tiny.yaml"
        if not file.exists():
            file.write_text(TINY)
        return file

    def run(self) -> Path:
        """A finished run, made once."""
        if self._run is None:
            spec = load(self._tiny()).spec
            cpu = torch.device("cpu")
            outcome = fit(spec, registry, FitOptions(self.folder / "whole", cpu))
            self._run = outcome.folder
        return self._run

    def _mutated(self, draw: random.Random, source: Path, folder: Path) -> Path:
        """A copy with some changes of its values or its text, in which `extends` and `base` still hold."""
        plain = yaml.safe_load(source.read_text())
        for key in ("extends", "base"):
            if key in plain:
                plain[key] = str((source.parent / plain[key]).resolve())
        for _ in range(draw.choice([1, 1, 2, 3, 8])):
            _mutate(draw, plain)
        text = (
            yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
            if isinstance(plain, dict)
            else str(plain)
        )
        if draw.random() < 0.4:
            text = _scrambled(draw, text)
        file = self.folder / "case.yaml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        return file


def _hostile(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(HOSTILE))  # a later mutation may change a part of it


def _checked(file: Path, *settings: str) -> None:
    """As `validate` does."""
    document = load(file, settings)
    try:
        check(document.spec, registry)
    except Misfit as misfit:
        raise UserError(document.line(misfit.loc, misfit.message)) from misfit


def _read_run(run: Path) -> None:
    """As `report`, `compare` and `eval` do; each of them, whether or not another refuses it."""
    errors = []
    for read in (
        lambda: read_facts(run, registry),
        lambda: read_results(study_of([run], registry, None)),
        lambda: run_subject(run, registry, torch.device("cpu")),
    ):
        try:
            read()
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """To every value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:50]:
        yield (*path, key)
        if len(path) < 6:
            yield from _paths(item, (*path, key))


def _mutate(draw: random.Random, plain: Any) -> None:
    """One value replaced, removed, renamed, copied elsewhere, or nested."""
    paths = list(_paths(plain))
    if not paths:
        return
    path = draw.choice(paths)
    holder = plain
    for step in path[:-1]:
        holder = holder[step]
    key, way = path[-1], draw.random()
    if way < 0.55:
        holder[key] = _hostile(draw)
    elif way < 0.65:
        del holder[key]
    elif way < 0.8 and isinstance(holder, dict):
        name = draw.choice([*WORDS, *(str(value)[:300] for value in HOSTILE)])
        holder[name] = holder.pop(key)
    elif way < 0.9:
        holder[key] = [holder[key]] * draw.choice([1, 2, 30])
    else:
        for _ in range(draw.choice([1, 5, 45, 60])):
            holder[key] = {draw.choice(WORDS): holder[key]}


def _scrambled(draw: random.Random, text: str) -> str:
    """Characters and lines removed, doubled, put elsewhere, or put in."""
    for _ in range(draw.choice([1, 2, 5])):
        at = draw.randrange(len(text) + 1)
        end = min(len(text), at + draw.choice([1, 1, 3, 20]))
        way = draw.random()
        if way < 0.25:
            text = text[:at] + text[end:]
        elif way < 0.5:
            text = text[:at] + draw.choice(PIECES) + text[at:]
        elif way < 0.7:
            text = text[:at] + draw.choice(PIECES) * draw.choice([2, 30, 3000]) + text[at:]
        elif way < 0.85:
            text = text[:end] + text[at:]
        else:
            lines = text.splitlines(keepends=True)
            draw.shuffle(lines)
            text = "".join(lines)
    return text


def _damage(draw: random.Random, run: Path) -> str:
    """One file of a run's folder cut, flipped, replaced, emptied, removed, or turned into a folder."""
    file = draw.choice(sorted(path for path in run.rglob("*") if path.is_file()) or [run / "spec.yaml"])
    content = bytearray(file.read_bytes() if file.exists() else b"")
    way = draw.choice(["cut", "bit", "bits", "replaced", "replaced", "removed", "folder", "doubled", "value"])
    if way == "value" and (lines := _json_lines(file)):
        _mutate(draw, draw.choice(lines))
        text = "\n".join(map(json.dumps, lines)) + "\n"
        file.write_bytes(text.encode("utf-8", "backslashreplace"))
    elif way == "replaced" or not content:
        file.write_bytes(draw.choice(FILES))
    elif way in ("removed", "folder"):
        file.unlink()
        if way == "folder":
            file.mkdir()
    else:
        if way == "cut":
            del content[draw.randrange(len(content)) :]
        elif way == "doubled":
            content += content[draw.randrange(len(content)) :]
        else:
            for _ in range(1 if way == "bit" else 50):
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    return f"{file.relative_to(run)} {way}"


def _json_lines(file: Path) -> list[Any]:
    """The values of a file of JSON, or of one with a value on every line; none of another file."""
    try:
        text = file.read_text()
        return (
            [json.loads(text)] if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
        )
    except (OSError, ValueError, RecursionError):
        return []


def failure(call: Callable[[], object]) -> str | None:
    """What is wrong with how a case ended, or None: well, or with a UserError that can be read."""
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = None
    try:
        call()
    except UserError as error:
        if len(str(error)) > 100_000:
            said = f"a message of {len(str(error))} characters"
    except Exception as error:
        trace, where = error.__traceback__, ""
        while trace is not None:
            where, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({where})"
    seconds = time.process_time() - began
    taken = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory)
    if said is None and seconds > SECONDS:
        said = f"{seconds:.1f} s"
    return f"{taken / 2**30:.1f} GiB" if said is None and taken > BYTES else said


def main() -> None:
    """Print what failed, and a line of how many cases there were."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind, number in KINDS.items():
        parser.add_argument(f"--{kind}", type=int, default=number, metavar="CASES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many of each kind")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="this case alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {kind: range(getattr(given, kind)) for kind in KINDS}
    if given.only:
        kind, _, number = given.only.partition(":")
        kinds = {kind: range(int(number), int(number) + 1)}
    done, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder), given.seed)
        for kind, numbers in kinds.items():
            began, count = time.monotonic(), 0
            for number in numbers:
                what, call = fuzz.case(kind, number)
                count += 1
                if (said := failure(call)) is not None:
                    failed += 1
                    print(f"{kind}:{number}: {said}", *([what] if given.only else []), sep="\n", flush=True)
                if time.monotonic() - began > given.seconds:
                    break
            done.append(f"{count} {kind} in {time.monotonic() - began:.0f} s")
    print(f"{', '.join(done)}, seed {given.seed}: {failed} failed")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()

"""Data in shards: images a second against a folder of the same files, and the order of 10^8 images."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.packed import write_photographs
from benchmarks.report import section, spread, table
from dino_lab.components.data import _shard_writer
from dino_lab.components.data._labelled import Labelled
from dino_lab.components.data._shard_index import Arrays, Header, Wanted, places, write_index
from dino_lab.components.data._shard_order import ShardOrder
from dino_lab.components.data._shard_set import ShardSet, index_all
from dino_lab.components.data._shard_writer import write_shards
from dino_lab.components.data._storage import never_resident
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.shards import Shards

ROUNDS = 5
BATCH = 64
IMAGES = 8 * BATCH
SIZE = 256
SHARDS, SHARD_IMAGES = 10_000, 10_000
STEPS, LARGE_BATCH = 200, 1024
CPU = torch.device("cpu")


class _Handler(BaseHTTPRequestHandler):
    """Parts of the files below the folder that `serve` names."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder = Path()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        file = self.folder / self.path.lstrip("/")
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = file.stat().st_size
        first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        with file.open("rb") as opened:
            opened.seek(first)
            content = opened.read(last + 1 - first)
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.wfile.write(content)


def serve(folder: str) -> None:
    """Answer for ever; the port is printed."""
    _Handler.folder = Path(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    """A server on loopback, in a process of its own, as it is elsewhere in use."""
    script = f"import benchmarks.shards; benchmarks.shards.serve({str(folder)!r})"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


def _rate(data: Labelled) -> float:
    """Images a second once the first batch is there."""
    batches = data.train(BATCH, 0, 0)
    next(batches)
    began = time.perf_counter()
    count = sum(len(images) for images, _ in islice(batches, IMAGES // BATCH - 1))
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    return count / seconds


def rates() -> str:
    """A table of interleaved rounds; nothing is held decoded."""
    with tempfile.TemporaryDirectory() as place, never_resident():
        os.environ["DINO_LAB_CACHE"] = f"{place}/cache"
        write_photographs(Path(place, "files"), IMAGES)
        files = ImageFolder(CPU, path=f"{place}/files", size=SIZE)
        _shard_writer.SHARD_IMAGES = IMAGES // 8
        write_shards(files, Path(place, "shards"), Path(place, "cache"), lambda done, total: None)
        with _server(Path(place, "shards")) as url:

            def opened(at: str, cache_gb: float = 0.0) -> Shards:
                path, test = f"{at}/train-{{00000..00007}}.tar", f"{at}/test-00000.tar"
                return Shards(CPU, path=path, test=test, size=SIZE, cache_gb=cache_gb)

            ways: dict[str, Labelled] = {
                "folder of JPEG files": files,
                "shards, local": opened(f"{place}/shards"),
                "shards over HTTP, each image asked for": opened(url),
                "shards over HTTP, copies kept": opened(url, 10.0),
            }
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, data in ways.items():
                    found[name].append(_rate(data))
    base = found["folder of JPEG files"]
    rows = [
        [name, spread(its, 0), spread([a / b for a, b in zip(its, base, strict=True)], 2)]
        for name, its in found.items()
    ]
    return table(["training images", "images/s, median (range)", "over the folder, in pairs"], rows)


def _write_indexes(folder: Path) -> None:
    """Shards without content, and whole indexes of them."""
    arrays = Arrays(
        np.arange(SHARD_IMAGES, dtype=np.uint64) * 100_000,
        np.full(SHARD_IMAGES, 90_000, np.uint32),
        np.zeros(SHARD_IMAGES, np.int32),
        np.random.default_rng(0).integers(0, 2**32, SHARD_IMAGES, np.uint32),
    )
    header = Header(10**9, str(10**18), (SHARD_IMAGES,), ())
    write_index(folder / "first", header, arrays)
    for number in range(SHARDS):
        shard = folder / f"{number:05}.tar"
        shard.touch()
        os.truncate(shard, header.size)
        os.utime(shard, ns=(int(header.stamp), int(header.stamp)))
        shutil.copyfile(folder / "first", places(str(shard), Wanted(None, None), folder)[0])


def measure_order(folder: Path) -> dict[str, Any]:
    """Seconds until all shards are known, bytes of memory, and milliseconds of the order of any steps."""
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    addresses = sorted(str(file) for file in folder.glob("*.tar"))
    files, _, _ = index_all(addresses, Wanted(None, None), "error", folder)
    split = ShardSet(files, 0)
    found: dict[str, Any] = {"known": time.perf_counter() - began, "wall": [], "own": []}
    began = time.perf_counter()
    images = len(ShardSet(files, 2**32 // 100))
    found["divided"] = time.perf_counter() - began
    assert 0.98 * len(split) < images < len(split)
    steps = len(split) // LARGE_BATCH
    generator = random.Random(0)
    for _ in range(STEPS):
        wall, own = time.perf_counter(), time.thread_time()
        order = ShardOrder(split.counts, 8, 0)  # as a process that has just started
        order.positions(generator.randrange(1000), generator.randrange(steps) * LARGE_BATCH, LARGE_BATCH)
        found["wall"].append(1000 * (time.perf_counter() - wall))
        found["own"].append(1000 * (time.thread_time() - own))
    found["memory"] = process.memory_info().rss - before
    return found


def order_of_many() -> str:
    """Lines on 10^8 images, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        _write_indexes(Path(place))
        call = f"measure_order(pathlib.Path({place!r}))"
        script = f"import json, pathlib; from benchmarks.shards import *; print(json.dumps({call}))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return (
        f"{SHARDS} shards with indexes of {SHARD_IMAGES} images each, 10^8 images: all known after "
        f"{found['known']:.1f} s, divided by `test_fraction` after {found['divided']:.1f} s more; "
        f"{found['memory'] / 1e6:.0f} MB of memory. The order of a step of {LARGE_BATCH} images, by a "
        f"process that has just started, {STEPS} steps of any of 1000 epochs: {spread(found['wall'], 1)} ms, "
        f"of which on a processor {spread(found['own'], 1)} ms."
    )


def main() -> str:
    """Both parts."""
    text = f"{rates()}\n\n{order_of_many()}"
    return section(
        f"Data: shards of JPEG files of 500 x 400, at {SIZE} pixels", "python -m benchmarks.shards", text
    )


if __name__ == "__main__":
    print(main())

"""Data in shards that lie on a server: ranges, cut connections, copies of bounded size, other stores."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import urllib3
from components.made_shards import CPU, encoded, pixels, sample, write_tar

from dino_lab.components.data import _shard_files
from dino_lab.components.data._shard_cache import ShardCache
from dino_lab.components.data.shards import Shards
from dino_lab.errors import UserError


class Server:
    """The files of a folder over HTTP with ranges, and what should go wrong with the next answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.sent = folder, Counter[str](), Counter[str]()
        self.faults: list[str] = []  # of the first answers about the same bytes: a status, or "cut"
        self.answers = Counter[str]()
        self.always: str | None = None
        self.ranges, self.over = True, threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.lstrip("/")
        self.asked[name] += 1
        asked_for = f"{name} {handler.headers['Range']}"
        fault = self.always or "".join(self.faults[self.answers[asked_for] :][:1])
        self.answers[asked_for] += 1
        file = self.folder / name
        if fault == "slow":
            self.over.wait(5)
        status = (
            int(fault) if fault.isdecimal() else 404 if not file.is_file() else 206 if self.ranges else 200
        )
        if status >= 400:
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        assert asked is not None
        part = content[int(asked[1]) : int(asked[2]) + 1] if self.ranges else content
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(part)))
        handler.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{len(content)}")
        handler.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
        handler.end_headers()
        if fault == "cut":
            handler.wfile.write(part[: len(part) // 2])
            handler.close_connection = True
            return
        self.sent[name] += len(part)
        handler.wfile.write(part)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DINO_LAB_CACHE", str(folder))
    monkeypatch.setattr(_shard_files, "DELAYS", (0.0, 0.0, 0.0))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard in range(4):
        write_tar(
            tmp_path / f"{shard}.tar", {f"{i:03}": sample(i) for i in range(12 * shard, 12 * shard + 12)}
        )
    write_tar(tmp_path / "test.tar", {f"{i:03}": sample(i) for i in range(100, 104)})
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    its = Server(folder)
    yield its
    its.over.set()
    its.server.shutdown()
    its.server.server_close()


def opened(place: object, path: str = "{0..3}.tar", test: str = "test.tar", **given: Any) -> Shards:
    given = {"label": "cls", "window": 2, "cache_gb": 1.0} | given
    return Shards(CPU, path=f"{place}/{path}", test=f"{place}/{test}", size=10, **given)


def assert_same(a: Shards, b: Shards) -> None:
    streams: list[Callable[[Shards], Any]] = [
        lambda data: islice(data.train(5, 3, 4), 14),
        lambda data: data.bank(7),
        lambda data: data.test(3),
    ]
    for stream in streams:
        for (images, labels), (others, their_labels) in zip(stream(a), stream(b), strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, their_labels)


# ---- HTTP


@pytest.mark.parametrize("cache_gb", [1.0, 0.0], ids=["copies", "ranges"])
def test_a_server_gives_the_same_images(server: Server, folder: Path, cache: Path, cache_gb: float) -> None:
    assert_same(opened(server.url, cache_gb=cache_gb), opened(folder))
    copies = list((cache / "copies").glob("*")) if (cache / "copies").is_dir() else []
    assert {copy.name.split("-")[1] for copy in copies} == (
        {"0.tar", "1.tar", "2.tar", "3.tar", "test.tar"} if cache_gb else set()
    )


def test_row_groups_on_a_server(server: Server, folder: Path, cache: Path) -> None:
    for name, numbers in (("train", range(20)), ("test", range(100, 103))):
        table = pa.table({"image": [encoded(i) for i in numbers], "cls": [i % 3 for i in numbers]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=4)
    names = {"path": "train.parquet", "test": "test.parquet"}
    data = opened(server.url, **names)
    assert_same(data, opened(folder, **names))
    assert len(list((cache / "copies").glob("*.parquet"))) == 6
    server.asked.clear()
    assert torch.equal(next(data.bank(4))[0][3], pixels(3))
    assert not server.asked  # the copies are read


def test_an_index_of_a_server_is_made_once(server: Server) -> None:
    first = opened(server.url)
    server.sent.clear()
    again = opened(server.url, cache_gb=0.0)
    assert again.fingerprint() == first.fingerprint()
    assert_is_small(server)


def test_an_index_beside_a_shard_on_a_server_is_used(server: Server, folder: Path) -> None:
    opened(folder)  # writes indexes beside the shards
    for index in folder.glob("*.shard-index"):
        assert index.with_name(index.name.split(".")[0] + ".tar").exists()
    opened(server.url)
    assert_is_small(server)


def assert_is_small(server: Server) -> None:
    """Of each shard its length was asked for, and some images to look at them."""
    images = sum(len(encoded(i)) for i in range(12))
    assert all(server.sent[f"{i}.tar"] <= images + 1 for i in range(4))


def test_cut_connections_and_busy_servers_are_asked_again(server: Server, folder: Path) -> None:
    server.faults = ["cut", "503", "429"]
    assert_same(opened(server.url), opened(folder))
    assert_same(opened(server.url, cache_gb=0.0), opened(folder))
    assert all(times >= 4 for asked, times in server.answers.items() if ".tar " in asked)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("503", r"/0\.tar: cannot be read, 4 times in a row \(HTTP 503\); the same command again goes on"),
        ("cut", r"/0\.tar: cannot be read, 4 times in a row \(the connection was cut\)"),
        ("403", r"/0\.tar: the server refuses it \(HTTP 403\)"),
        ("404", r"/0\.tar: unreadable shard \(there is no such file \(HTTP 404\)\)"),
    ],
)
def test_what_a_server_refuses_is_one_line(server: Server, fault: str, complaint: str) -> None:
    server.always = fault
    with pytest.raises(UserError, match=complaint) as caught:
        opened(server.url, "0.tar")
    assert "\n" not in str(caught.value)


def test_a_server_that_goes_away_ends_the_run_in_one_line(server: Server) -> None:
    data = opened(server.url, cache_gb=0.0)
    server.always = "503"
    with pytest.raises(UserError, match=r"cannot be read, 4 times in a row \(HTTP 503\)") as caught:
        next(data.train(5, 0, 0))
    assert "\n" not in str(caught.value)


def test_no_server(server: Server) -> None:
    url = server.url
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(UserError, match=r"0\.tar: cannot be read, 4 times in a row \(Connection refused\)"):
        opened(url, "0.tar")


def test_a_server_that_does_not_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shard_files, "PATIENCE", urllib3.Timeout(connect=0.2, read=0.2))
    server.always = "slow"
    with pytest.raises(UserError, match=r"0\.tar: cannot be read, 4 times in a row \(no answer in time\)"):
        opened(server.url, "0.tar")


def test_a_server_without_ranges(server: Server) -> None:
    server.ranges = False
    with pytest.raises(UserError, match=r"gives no parts of files \(HTTP ranges\).*download it"):
        opened(server.url, "0.tar")


@pytest.mark.parametrize("path", ["*.tar", ""])
def test_a_server_does_not_list_files(server: Server, path: str) -> None:
    with pytest.raises(UserError, match=r"data\.path: .*files cannot be listed over HTTP; name them"):
        opened(server.url, path)


# ---- copies


def put(cache: ShardCache, name: str, size: int = 100, needed: tuple[Path, ...] = ()) -> bool:
    return cache.fill(cache.path(name, ""), size, lambda into: into.write(b"x" * size) and None, needed)


def test_copies_are_bounded_and_the_one_used_longest_ago_goes(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 300)
    paths = {name: cache.path(name, "") for name in "abcde"}
    for age, name in enumerate("abc"):
        assert put(cache, name)
        os.utime(paths[name], (age, age))
    assert cache.use(paths["a"])
    assert put(cache, "d")
    assert {name for name, path in paths.items() if path.exists()} == {"a", "c", "d"}
    assert not put(cache, "e", needed=(paths["a"], paths["c"], paths["d"]))
    assert not put(cache, "e", size=301)
    assert {name for name, path in paths.items() if path.exists()} == {"a", "c", "d"}
    assert not list(tmp_path.rglob("*.part"))


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1000)
    path = cache.path("a", "")

    def fail(into: BinaryIO) -> None:
        into.write(b"x" * 10)
        raise UserError("gone")

    with pytest.raises(UserError):
        cache.fill(path, 100, fail)
    assert list(path.parent.iterdir()) == []
    (path.parent / "b.tar.part").write_bytes(b"x" * 900)  # of a process that was killed
    assert put(cache, "a", size=500)
    assert list(path.parent.iterdir()) == [path]


def test_several_at_once_make_one_copy(tmp_path: Path) -> None:
    cache, made = ShardCache(tmp_path, 1000), []
    path, both = cache.path("a", ""), threading.Barrier(2)

    def write(into: BinaryIO) -> None:
        made.append(1)
        both.wait(10)
        into.write(b"x" * 10)

    def second() -> bool:
        found = cache.fill(path, 10, write)
        both.wait(10)
        return found

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.fill, path, 10, write)
        while not made:
            pass
        assert not pool.submit(second).result(10)
        assert first.result(10)
    assert path.read_bytes() == b"x" * 10
    assert len(made) == 1


def test_a_cache_smaller_than_a_window_keeps_its_bound(server: Server, folder: Path, cache: Path) -> None:
    size = (folder / "0.tar").stat().st_size
    data = opened(server.url, cache_gb=1.5 * size / 1e9)
    for a, b in zip(islice(data.train(5, 3, 0), 12), opened(folder).train(5, 3, 0), strict=False):
        assert all(map(torch.equal, a, b))
        assert copied(cache) <= 1.5 * size


def test_a_process_that_is_forked_meanwhile_keeps_no_lock(cache: Path) -> None:
    """Decoders are forked while other threads make copies; whoever comes next would wait for their end."""
    its, children = ShardCache(cache, 100), []

    def fork() -> None:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        children.append(child)

    def write(file: BinaryIO) -> None:
        fork()
        file.write(b"content")

    its.folder.mkdir(parents=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            with its._locked():
                fork()
            assert its.fill(its.path("a", ""), 10, write)
        for name in ("copies.lock", "copies/" + its.path("a", "").name):
            with (cache / name).open("rb+") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for child in children:
            child.kill()
            child.join()


def copied(cache: Path) -> int:
    """Bytes of all copies, while no process makes room for another one."""
    sizes = {}
    with ShardCache(cache, 0)._locked():
        for file in (cache / "copies").iterdir():
            with suppress(
                FileNotFoundError
            ):  # renamed, as a copy that is whole is, which may then be seen twice
                found = file.stat()
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


# ---- other stores


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for file in folder.glob("*.tar"):
        system.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize("path", ["{0..3}.tar", "[0-3].tar"])
def test_what_fsspec_opens(memory: str, folder: Path, path: str) -> None:
    assert_same(opened(memory, path), opened(folder))


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("memory://bucket/9.tar", r"9\.tar: unreadable shard \(there is no such file\)"),
        ("memory://bucket/9*.tar", r"data\.path: no file matches memory://bucket/9\*\.tar"),
        ("memory://other/", r"data\.path: memory://other/: there is no such file"),
        ("nothing://bucket/0.tar", r"nothing:// cannot be read \(Protocol not known: nothing\)"),
    ],
)
def test_what_fsspec_does_not_open(memory: str, url: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Shards(CPU, path=url, size=10, test_fraction=0.5)


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def url_to_fs(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(UserError, match=r"s3:// needs s3fs, .*: pip install 'dino-lab\[remote\]'"):
        Shards(CPU, path="s3://bucket/0.tar", size=10, test_fraction=0.5)


def test_an_object_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    for key, value in {
        "ACCESS_KEY_ID": "any",
        "SECRET_ACCESS_KEY": "any",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    try:
        host, port = store.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        for file in folder.glob("*.tar"):
            system.put_file(str(file), f"bucket/{file.name}")
        assert_same(opened("s3://bucket"), opened(folder))
        assert_same(opened("s3://bucket", "[0-3].tar", cache_gb=0.0), opened(folder))
        with pytest.raises(UserError, match=r"9\.tar: unreadable shard \(there is no such file\)"):
            opened("s3://bucket", "9.tar")
    finally:
        store.stop()

"""Files of shards wherever they lie: local, over HTTP, and through fsspec (`s3://`, `gs://`, `hf://`)."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import fsspec
import urllib3

from dino_lab.components.data._paths import named_path
from dino_lab.errors import Misfit, UserError, first_line, printable
from dino_lab.imaging.files import shown

MOST_FILES = 1_000_000
SUFFIXES = (".tar", ".parquet")
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before a request is made again
PATIENCE = urllib3.Timeout(connect=10.0, read=60.0)  # seconds
CONNECTIONS = 16  # to a server that are kept
PASSING = {408, 425, 429, 500, 502, 503, 504}  # of HTTP: what may pass by itself
LISTED = ("ETag", "etag", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "created")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
MAGIC = "*?["
T = TypeVar("T")


class BadShard(Exception):
    """A shard that is damaged or not there; the text says how."""


class Info(NamedTuple):
    """Length in bytes, and a text that changes when the content does."""

    size: int
    stamp: str


class _Passing(Exception):
    """A fault of the connection, which may be gone when one tries again."""


def is_remote(address: str) -> bool:
    """Whether an address is a URL."""
    return "://" in address


def info(address: str) -> Info:
    """Length and stamp of a file; a BadShard where there is none, a UserError where one cannot tell."""
    if not is_remote(address):
        try:
            status = os.stat(address)
        except OSError as error:
            raise BadShard(error.strerror or "cannot be read") from error
        return Info(status.st_size, str(status.st_mtime_ns))
    return _patiently(address, _http_info if _is_http(address) else _fsspec_info)


def read(address: str, start: int, length: int) -> bytes:
    """Some bytes of a file; a BadShard where it ends before, a UserError where the connection stays cut."""
    if not is_remote(address):
        try:
            content = _local_part(address, start, length)
        except OSError as error:
            raise BadShard(error.strerror or "cannot be read") from error
    else:
        part = _http_part if _is_http(address) else _fsspec_part
        content = _patiently(address, lambda url: part(url, start, length))
    if len(content) != length:
        raise BadShard(f"ends before byte {start + length}")
    return content


def _local_part(address: str, start: int, length: int) -> bytes:
    file = os.open(address, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = os.pread(file, length, start)
        while len(content) < length and (more := os.pread(file, length - len(content), start + len(content))):
            content += more  # Linux gives at most 2 GiB at once
        return content
    finally:
        os.close(file)


def addresses(patterns: str | Sequence[str], key: str) -> list[str]:
    """Files that folders, patterns (`a/*.tar`), lists (`a/{000..099}.tar`) and URLs name, in their order.

    A Misfit of the key `data.<key>` where one names none or is named twice.
    """
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        choices = _braces(pattern)
        if not 0 < math.prod(map(len, choices)) <= MOST_FILES:
            raise Misfit(
                ("data", key),
                f"{printable(pattern, 200)}: braces count upwards, as in {{000..099}}, to at most "
                f"{MOST_FILES} files",
            )
        for written in map("".join, itertools.product(*choices)):
            its = _remote(written, key) if is_remote(written) else _local_files(written, key)
            for address in its:
                if address in found:
                    raise Misfit(("data", key), f"{shown(address)} is named twice")
                found[address] = None
    return list(found)


def _braces(text: str) -> list[Sequence[str]]:
    """The parts of a text that has `{a,b}` and `{00..12}` in it, and what each of them may be."""
    parts = re.split(r"\{([^{}]*)\}", text)
    return [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]


def _choices(text: str) -> Sequence[str]:
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if numbers is None:
        return text.split(",")
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") else 0
    count = min(int(last), int(first) + MOST_FILES) + 1
    return [f"{number:0{width}}" for number in range(int(first), count)]


def _local_files(text: str, key: str) -> list[str]:
    path = named_path(text)
    if path.is_dir():
        return _of_folder(text, sorted(str(file) for file in path.iterdir()), key)
    if path.exists() or not any(sign in text for sign in MAGIC):
        return [_checked(str(path), key)]
    found = sorted(file for file in glob.glob(str(path), recursive=True) if os.path.isfile(file))
    if not found:
        raise Misfit(("data", key), f"no file matches {printable(text, 200)}")
    return [_checked(file, key) for file in found]


def _remote(url: str, key: str) -> list[str]:
    several = any(sign in url for sign in MAGIC)
    if not several and url.endswith(SUFFIXES):
        return [url]
    if _is_http(url):
        if several or not Path(urlsplit(url).path).suffix:
            raise Misfit(
                ("data", key),
                f"{printable(url, 200)}: files cannot be listed over HTTP; name them, as in "
                "https://host/train-{000..099}.tar",
            )
        return [url]

    def listed(_: str) -> list[str]:
        system, path = _system(url)
        names = system.glob(path) if several else system.ls(path, detail=False)
        return sorted(str(system.unstrip_protocol(name)) for name in names)

    try:
        names = _patiently(url, _translated(listed))
    except BadShard as error:
        raise Misfit(("data", key), f"{printable(url, 200)}: {error}") from error
    if several and not names:
        raise Misfit(("data", key), f"no file matches {printable(url, 200)}")
    return [_checked(name, key) for name in names] if several else _of_folder(url, names, key)


def _of_folder(text: str, files: Sequence[str], key: str) -> list[str]:
    by_kind = {suffix: [file for file in files if file.lower().endswith(suffix)] for suffix in SUFFIXES}
    kinds = [suffix for suffix, its in by_kind.items() if its]
    if len(kinds) != 1:
        what = "holds both .tar and .parquet files; name those that are meant" if kinds else "holds no shards"
        more = "" if kinds else " (.tar or .parquet files)"
        raise Misfit(("data", key), f"{printable(text, 200)} {what}{more}")
    return by_kind[kinds[0]]


def _checked(file: str, key: str) -> str:
    if not file.lower().split("?")[0].endswith(SUFFIXES):
        hint = "; unpack it, because images inside are read where they lie" if ".tar" in file.lower() else ""
        raise Misfit(("data", key), f"{shown(file)} is neither a .tar nor a .parquet file{hint}")
    return file


def _patiently(address: str, call: Callable[[str], T]) -> T:
    """What a request gives, made again after a while where the connection fails."""
    for delay in (*DELAYS, None):
        try:
            return call(address)
        except _Passing as error:
            if delay is None:
                raise UserError(
                    f"{shown(address)}: cannot be read, {len(DELAYS) + 1} times in a row ({error}); the same "
                    "command again goes on from the last checkpoint"
                ) from error
            time.sleep(delay)
    raise AssertionError("the last time it raises")


# ---- HTTP


def _is_http(address: str) -> bool:
    return address.startswith(("http://", "https://"))


@lru_cache(64)
def _connections(origin: str, process: int) -> urllib3.PoolManager:
    """Connections to a server, through the proxy of the environment; a forked process has its own."""
    retries = urllib3.Retry(total=None, connect=0, read=0, redirect=5, status=0, other=0)
    its = urlsplit(origin)
    proxy = getproxies().get(its.scheme)
    if proxy is None or proxy_bypass(its.netloc):
        return urllib3.PoolManager(maxsize=CONNECTIONS, retries=retries, timeout=PATIENCE)
    return urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, retries=retries, timeout=PATIENCE)


def _http_get(url: str, start: int, length: int) -> tuple[Mapping[str, str], bytes]:
    """Headers of the answer to a request of some bytes, and what it holds; none where the file is shorter."""
    headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    its = urlsplit(url)
    try:
        connections = _connections(f"{its.scheme}://{its.netloc}", os.getpid())
        answer = connections.request("GET", url, headers=headers, preload_content=False)
        with closing(answer):
            _check_status(url, answer.status)
            content = answer.read() if answer.status == 206 else b""
            answer.release_conn()
            return answer.headers, content
    except (urllib3.exceptions.LocationValueError, urllib3.exceptions.URLSchemeUnknown) as error:
        raise UserError(f"{shown(url)}: is no address ({first_line(error)})") from error
    except urllib3.exceptions.HTTPError as error:
        raise _Passing(_cause(error)) from error


def _check_status(url: str, status: int) -> None:
    """Raise what an HTTP status means that is neither 206 nor 416, where the file is shorter."""
    if status in PASSING:
        raise _Passing(f"HTTP {status}")
    if status in (404, 410):
        raise BadShard(f"there is no such file (HTTP {status})")
    if status == 200:
        raise UserError(
            f"{shown(url)}: the server gives no parts of files (HTTP ranges), so images inside cannot be "
            "read from there; download it"
        )
    if status not in (206, 416):
        raise UserError(f"{shown(url)}: the server refuses it (HTTP {status})")


def _http_part(url: str, start: int, length: int) -> bytes:
    return _http_get(url, start, length)[1]


def _http_info(url: str) -> Info:
    headers, content = _http_get(url, 0, 1)
    if not content:
        return Info(0, "")
    total = headers.get("Content-Range", "").rpartition("/")[2]
    if not total.isdecimal():
        raise UserError(f"{shown(url)}: the server does not say how long the file is")
    return Info(int(total), headers.get("ETag") or headers.get("Last-Modified") or "")


def _cause(error: BaseException) -> str:
    """What the system said, which lies below several wrappers."""
    said, inner = "the connection was cut", error.__cause__ or error.__context__
    if isinstance(error, urllib3.exceptions.TimeoutError):
        said = "no answer in time"
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return printable(inner.strerror, 200)
        if isinstance(inner, TimeoutError):
            said = "no answer in time"
        inner = inner.__cause__ or inner.__context__
    return said


# ---- fsspec


def _system(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        how = "pip install 'dino-lab[remote]'" if package else first_line(error)
        raise UserError(
            f"{protocol}:// needs {package or 'a package'}, which is not installed: {how}"
        ) from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {protocol}:// cannot be read ({first_line(error)})") from error
    return system, path


def _translated(call: Callable[[str], T]) -> Callable[[str], T]:
    """The same with errors in our words; each file system of fsspec has its own."""

    def translated(url: str) -> T:
        try:
            return call(url)
        except (UserError, BadShard):
            raise
        except FileNotFoundError as error:
            raise BadShard("there is no such file") from error
        except PermissionError as error:
            raise UserError(
                f"{shown(url)}: access is refused ({printable(first_line(error), 200)})"
            ) from error
        except Exception as error:
            raise _Passing(printable(f"{type(error).__name__}: {first_line(error)}", 200)) from error

    return translated


@_translated
def _fsspec_info(url: str) -> Info:
    system, path = _system(url)
    its = system.info(path)
    stamp = next((its[key] for key in LISTED if its.get(key)), "")
    if its.get("type") == "directory" or its.get("size") is None:
        raise BadShard("is no file")
    return Info(int(its["size"]), str(stamp))


def _fsspec_part(url: str, start: int, length: int) -> bytes:
    def part(_: str) -> bytes:
        system, path = _system(url)
        content: bytes = system.cat_file(path, start=start, end=start + length)
        return content

    return _translated(part)(url)

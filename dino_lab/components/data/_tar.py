"""Members of a tar file, read from its headers: ustar and pax (POSIX.1-2001), and GNU's long names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from dino_lab.errors import printable

BLOCK = 512
LONGEST_NAME = 1 << 16  # bytes of a name that stands in a block of its own
REGULAR, LONG_NAME, PAX, EMPTY = (b"0", b"\0", b"7"), b"L", b"x", tuple(b"%d" % i for i in range(1, 7))
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class DamagedTar(Exception):
    """What is wrong with a tar file."""


class Reader(Protocol):
    """A file that is read forwards."""

    def read(self, length: int, /) -> bytes: ...
    def skip(self, length: int, /) -> None: ...


class Member(NamedTuple):
    """A file inside: its name, where its content begins, and how many bytes it has."""

    name: str
    start: int
    length: int


class Tar:
    """The regular files in a tar file of `size` bytes, in their order; a DamagedTar where it is not whole."""

    def __init__(self, file: Reader, size: int) -> None:
        self.file, self.size = file, size
        self.at = 0  # where the file is read

    def __iter__(self) -> Iterator[Member]:
        at, name, length = 0, None, None
        while (block := self._block(at)).strip(b"\0"):
            kind, its_length = block[156:157], _length(block, at)
            if kind in (LONG_NAME, PAX):
                if its_length > LONGEST_NAME:
                    raise DamagedTar(f"its header at byte {at} is damaged")
                content = self._exactly(its_length)
                if kind == LONG_NAME:
                    name = _text(content.rstrip(b"\0"))
                else:
                    records = _pax(content, at)
                    name = records.get("path", name)
                    length = int(records["size"]) if records.get("size", "").isdecimal() else None
                at += BLOCK + _padded(its_length)
                continue
            member = Member(name or _name(block), at + BLOCK, its_length if length is None else length)
            name, length = None, None
            at = member.start
            if kind in EMPTY:
                continue
            at += _padded(member.length)
            if member.start + member.length > self.size:
                raise DamagedTar(
                    f"cut short: {printable(member.name, 100)} should reach to byte "
                    f"{member.start + member.length}, and the file has {self.size}"
                )
            if kind in REGULAR and not member.name.endswith("/"):
                yield member
        self._check_end()

    def content(self, member: Member) -> bytes:
        """What the member that was given last holds."""
        self._go(member.start)
        return self._exactly(member.length)

    def _block(self, at: int) -> bytes:
        """The header at a place."""
        self._go(at)
        block = self.file.read(BLOCK)
        self.at += len(block)
        if len(block) < BLOCK:
            raise DamagedTar("cut short: it lacks the blocks that end a tar file" if at else "no tar file")
        return block

    def _check_end(self) -> None:
        while rest := self.file.read(BLOCK):
            if rest.strip(b"\0"):
                raise DamagedTar("two tar files, one after the other: write them into one, or apart")

    def _go(self, at: int) -> None:
        self.file.skip(at - self.at)
        self.at = at

    def _exactly(self, length: int) -> bytes:
        content = self.file.read(length)
        self.at += len(content)
        if len(content) < length:
            raise DamagedTar("cut short")
        return content


def _length(block: bytes, at: int) -> int:
    """The length that a header states, once its checksum is right."""
    stated = block[148:156].strip(b" \0")
    found = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if not stated or set(stated) - set(b"01234567") or int(stated, 8) != found:
        if at == 0:
            kind = next((name for magic, name in COMPRESSED.items() if block.startswith(magic)), None)
            raise DamagedTar(f"compressed ({kind}); unpack it to .tar" if kind else "no tar file")
        raise DamagedTar(f"its header at byte {at} is damaged")
    field = block[124:136]
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b" \0")
    if set(digits) - set(b"01234567"):
        raise DamagedTar(f"its header at byte {at} is damaged")
    return int(digits or b"0", 8)


def _name(block: bytes) -> str:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    ustar = block[257:263] == b"ustar\0"  # GNU has other fields in the place of the prefix
    return _text(prefix + b"/" + name if prefix and ustar else name)


def _pax(content: bytes, at: int) -> dict[str, str]:
    """Records `length key=value`, each with a line break."""
    found = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or not len(length) + 1 < int(length) <= len(content):
            raise DamagedTar(f"its header at byte {at} is damaged")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        found[_text(key)] = _text(value)
        content = content[int(length) :]
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK

"""One metric's share of an increment, to the byte.

    record   = size:u4          of what follows
               key size:u2  flags:u1  archives:u1  version:i8  read:i8
               key              as in the store: the metric's name and "/", in UTF-8
               header           the whisper file's first 16 + 12 x archives bytes as they are: big endian
               ring{archives}   finest first
               run{}            those of the first archive, then those of the second, ...
               value:f8{}       those of the first run, then those of the second, ...
    ring     = base:u4  runs:u4
    run      = first:u4  count:u4

All numbers but the header's are little endian.  `flags`: 1 says that the record has all the file's points, not only
those of a window.  `version` is the later of the file's mtime and ctime, `read` the moment of its reading, both in
whole seconds of Unix time.  `base` is the stamp of slot 0 if the record tells it, else 0.  A run's points are at
`first`, `first` + step, ...; they lie in neighbouring slots, slot 0 following the last.  A value is any 64 bits.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whisperbackup.whisper.format import ARCHIVE_INFO, MAX_ARCHIVES, METADATA, CorruptFile, Header, parse_header

SIZE = struct.Struct("<L")
START = struct.Struct("<LHBBqq")
PAIR = struct.Struct("<LL")
REST = START.size - SIZE.size
WHOLE = 1
KNOWN_FLAGS = WHOLE
VALUE_SIZE = 8
END_OF_TIME = 2**32
MAX_KEY = 2**16 - 1
MAX_RECORD = 128 * 1024 * 1024  # bytes: 16 million points

Run = tuple[int, int]
"""The first time of neighbouring points, and their number."""


class CorruptIncrement(Exception):
    """Bytes that are no increment, or not a whole one; the text says which part of it and why."""


class Ring(NamedTuple):
    """What a record has of one archive: `values` as little-endian doubles, those of the first run first."""

    base: int
    runs: tuple[Run, ...]
    values: bytes


class Record(NamedTuple):
    """One metric's share of an increment; times in whole seconds."""

    key: str
    header: bytes
    version: int
    read: int
    is_whole: bool
    rings: tuple[Ring, ...]

    @property
    def points(self) -> int:
        """How many points it has, in all archives."""
        return sum(len(ring.values) for ring in self.rings) // VALUE_SIZE


def encode(record: Record) -> bytes:
    """The record's bytes.  Raises ValueError for one that is too large to be read again."""
    rings = record.rings
    packed = pack_pairs([(ring.base, len(ring.runs)) for ring in rings])
    packed += pack_pairs([run for ring in rings for run in ring.runs])
    values = b"".join([ring.values for ring in rings])
    return assemble(
        record.key, len(rings), record.version, record.read, record.is_whole, record.header + packed, values
    )


def pack_pairs(pairs: Iterable[tuple[int, int]]) -> bytes:
    """Rings, or runs, as they are stored."""
    numbers = [number for pair in pairs for number in pair]
    return struct.pack(f"<{len(numbers)}L", *numbers)


def assemble(name: str, archives: int, version: int, read: int, is_whole: bool, packed: bytes, values: bytes) -> bytes:
    """A record's bytes from its pieces; `packed` are the header, rings and runs.

    Raises ValueError for one that is too large to be read again.
    """
    key = name.encode()
    size = len(key) + len(packed) + len(values)
    if len(key) > MAX_KEY or size > MAX_RECORD:
        raise ValueError(f"the record of '{name}' has {size} bytes")
    start = START.pack(REST + size, len(key), WHOLE if is_whole else 0, archives, version, read)
    return b"".join((start, key, packed, values))


def split(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each record in a frame's content: its key as bytes, where it begins, where it ends.  Raises CorruptIncrement.

    Nothing behind the key is looked at.
    """
    offset, end = 0, len(content)
    key_at = START.size
    unpack = START.unpack_from
    while offset < end:
        if offset + key_at > end:
            raise CorruptIncrement(f"{end - offset} bytes are left, too few for a record")
        size, key_size, _, _, _, _ = unpack(content, offset)
        after = offset + SIZE.size + size
        key_end = offset + key_at + key_size
        if after > end or key_end > after:
            raise CorruptIncrement(f"the record at byte {offset} declares {size} bytes")
        yield content[offset + key_at : key_end], offset, after
        offset = after


def moment_of(content: bytes) -> int:
    """When the record that `split` or `reader.read` found was read, without decoding it."""
    moment: int = START.unpack_from(content)[5]
    return moment


def decode(content: bytes) -> Record:
    """The record that is `content`, from its size to its last value, with every bound checked.

    Raises CorruptIncrement.
    """
    if len(content) < START.size:
        raise CorruptIncrement(f"a record of {len(content)} bytes")
    size, key_size, flags, count, version, read = START.unpack_from(content)
    if size + SIZE.size != len(content):
        raise CorruptIncrement(f"a record of {len(content)} bytes that declares {size + SIZE.size}")
    header_at = START.size + key_size
    rings_at = header_at + METADATA.size + count * ARCHIVE_INFO.size
    runs_at = rings_at + count * PAIR.size
    if not 1 <= count <= MAX_ARCHIVES or runs_at > len(content) or flags & ~KNOWN_FLAGS:
        raise CorruptIncrement(f"a record with {count} archives and flags {flags}")
    key = decode_key(content[START.size : header_at])
    header_bytes = content[header_at:rings_at]
    header = parse(header_bytes, key)
    if len(header.archives) != count:
        raise CorruptIncrement(f"'{key}': {count} archives, {len(header.archives)} in its header")
    pairs = struct.unpack_from(f"<{2 * count}L", content, rings_at)
    total = sum(pairs[1::2])
    offset = runs_at + total * PAIR.size
    if offset > len(content):
        raise CorruptIncrement(f"'{key}': {total} runs in {len(content)} bytes")
    runs = tuple(PAIR.iter_unpack(content[runs_at:offset]))
    rings = []
    begin = 0
    for (_, step, most), base, count in zip(header.archives, pairs[::2], pairs[1::2], strict=True):
        end = begin + count
        points = 0
        for first, number in runs[begin:end]:
            if not 0 < number <= most or not first or first % step or first + (number - 1) * step >= END_OF_TIME:
                raise CorruptIncrement(f"'{key}': a run of {number} points of {step} seconds from {first} on")
            points += number
        if points > most:
            raise CorruptIncrement(f"'{key}': {points} points in an archive of {most}")
        after = offset + points * VALUE_SIZE
        rings.append(Ring(base, runs[begin:end], content[offset:after]))
        begin, offset = end, after
    if offset != len(content):
        raise CorruptIncrement(f"'{key}': a record of {len(content)} bytes, {offset} by its runs")
    return Record(key, header_bytes, version, read, bool(flags & WHOLE), tuple(rings))


def decode_key(key: bytes) -> str:
    """A key as text.  Raises CorruptIncrement."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        raise CorruptIncrement(f"{key!r} is not UTF-8") from None
    if not text.endswith("/") or text.count("/") != 1 or "\0" in text or len(text) == 1:
        raise CorruptIncrement(f"{text!r} is no metric's key")
    return text


def parse(header: bytes, key: str) -> Header:
    """The header of a record.  Raises CorruptIncrement."""
    try:
        return _parse_header(header)
    except CorruptFile as error:
        raise CorruptIncrement(f"'{key}': {error}") from None


_parse_header = functools.lru_cache(maxsize=1000)(parse_header)  # most files of a tree have one of a few headers

"""One whisper file: its header, and how to read it whole beside a carbon daemon that writes to it.

The format (whisper.py), every integer and float big endian:

    file        = metadata archiveinfo{count} archive{count}
    metadata    = aggregation:u4  maxRetention:u4  xFilesFactor:f4  count:u4
    archiveinfo = offset:u4  step:u4  points:u4             step in seconds; finest archive first
    archive     = (timestamp:u4  value:f8){points}          a ring; slot 0's timestamp is its base

go-carbon's compressed files begin with a magic word instead; they are opaque to us.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

COMPRESSED_MAGIC = b"whisper_compressed"
METADATA = struct.Struct(">2LfL")
ARCHIVE_INFO = struct.Struct(">3L")
POINT_SIZE = 12
MAX_ARCHIVES = 1024  # far above any schema; keeps a hostile count from costing memory


class CorruptFile(Exception):
    """Bytes that are not a whisper file; the text says why."""


class Archive(NamedTuple):
    """One ring: `offset` in bytes from the file's start, `step` in seconds, `points` slots."""

    offset: int
    step: int
    points: int


class Header(NamedTuple):
    """What a whisper file says of itself; `x_files_factor` is the stored 32-bit float."""

    aggregation: int
    max_retention: int
    x_files_factor: float
    archives: tuple[Archive, ...]

    @property
    def file_size(self) -> int:
        """Bytes that a file with this header has."""
        last = self.archives[-1]
        return last.offset + last.points * POINT_SIZE


def is_compressed(content: bytes) -> bool:
    """Whether this is (the beginning of) a file in go-carbon's compressed format."""
    return content.startswith(COMPRESSED_MAGIC)


def header_size(beginning: bytes) -> int:
    """Bytes of metadata and archive infos, told from the first METADATA.size bytes.  Raises CorruptFile."""
    if len(beginning) < METADATA.size:
        raise CorruptFile(f"only {len(beginning)} bytes, a whisper header has at least {METADATA.size}")
    count: int = METADATA.unpack_from(beginning)[3]
    if not 1 <= count <= MAX_ARCHIVES:
        raise CorruptFile(f"its header counts {count} archives")
    return METADATA.size + count * ARCHIVE_INFO.size


def parse_header(beginning: bytes) -> Header:
    """The header at the start of `beginning`, which may hold more.  Raises CorruptFile.

    Archives must follow one another without a gap, from the finest to the coarsest, as whisper lays them out.
    """
    size = header_size(beginning)
    if len(beginning) < size:
        raise CorruptFile(f"only {len(beginning)} bytes, its header alone would have {size}")
    aggregation, max_retention, x_files_factor, count = METADATA.unpack_from(beginning)
    if not 0 <= x_files_factor <= 1:
        raise CorruptFile(f"its header has an xFilesFactor of {x_files_factor}")
    archives = []
    offset = size
    last_step = 0
    for number in range(count):
        archive = Archive._make(ARCHIVE_INFO.unpack_from(beginning, METADATA.size + number * ARCHIVE_INFO.size))
        if archive.offset != offset:
            raise CorruptFile(f"archive {number} starts at byte {archive.offset} instead of {offset}")
        if archive.step <= last_step or archive.points == 0:
            raise CorruptFile(f"archive {number} has {archive.points} points of {archive.step} seconds")
        archives.append(archive)
        offset += archive.points * POINT_SIZE
        last_step = archive.step
    return Header(aggregation, max_retention, x_files_factor, tuple(archives))


def check(content: bytes) -> None:
    """Raises CorruptFile unless `content` is a whole whisper file, or a compressed one."""
    if is_compressed(content):
        return
    expected = parse_header(content).file_size
    if len(content) != expected:
        raise CorruptFile(f"{len(content)} bytes, its header says {expected}")

"""The header of a whisper file: parsed, and checked against the file's length.

The format (whisper.py), every integer and float big endian:

    file        = metadata archiveinfo{count} archive{count}
    metadata    = aggregation:u4  maxRetention:u4  xFilesFactor:f4  count:u4
    archiveinfo = offset:u4  step:u4  points:u4             step in seconds; finest archive first
    archive     = (timestamp:u4  value:f8){points}          a ring; slot 0's timestamp is its base

go-carbon's compressed files begin with a magic word instead: cwhisper.py.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from whisperbackup.whisper import cwhisper

METADATA = struct.Struct(">2LfL")
ARCHIVE_INFO = struct.Struct(">3L")
POINT_SIZE = 12
MAX_ARCHIVES = 64  # far above any schema; keeps a hostile count from costing time


class CorruptFile(Exception):
    """Bytes that are not a whisper file; the text says why."""


class ShortFile(CorruptFile):
    """Fewer bytes than the header declares, or than a header has: cut off, or being created."""


class TooLarge(CorruptFile):
    """The file has, or declares, more bytes than are read: it may be good."""


class Archive(NamedTuple):
    """One ring: `offset` in bytes from the file's start, `step` in seconds, `points` slots."""

    offset: int
    step: int
    points: int


class Header(NamedTuple):
    """What a whisper file declares; `x_files_factor` is the stored 32-bit float."""

    aggregation: int
    max_retention: int
    x_files_factor: float
    archives: tuple[Archive, ...]

    @property
    def file_size(self) -> int:
        """Bytes that a file with this header has."""
        last = self.archives[-1]
        return last.offset + last.points * POINT_SIZE


def header_size(beginning: bytes | bytearray) -> int:
    """Bytes of metadata and archive infos, computed from the first METADATA.size bytes.  Raises CorruptFile."""
    if len(beginning) < METADATA.size:
        raise ShortFile(f"only {len(beginning)} bytes, a whisper header has at least {METADATA.size}")
    count: int = METADATA.unpack_from(beginning)[3]
    if not 1 <= count <= MAX_ARCHIVES:
        raise CorruptFile(f"its header counts {count} archives")
    return METADATA.size + count * ARCHIVE_INFO.size


def parse_header(beginning: bytes | bytearray) -> Header:
    """The header at the start of `beginning`, which may hold more.  Raises CorruptFile.

    Archives must follow one another without a gap, from the finest to the coarsest, as whisper lays them out.
    """
    size = header_size(beginning)
    if len(beginning) < size:
        raise ShortFile(f"only {len(beginning)} bytes, its header alone would have {size}")
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


def check(content: bytes | bytearray) -> None:
    """Raises CorruptFile unless `content` is a whole whisper file, or a compressed one without visible damage."""
    if cwhisper.is_compressed(content):
        if damage := cwhisper.damage(content):
            raise (ShortFile if damage.is_short else CorruptFile)(damage.text)
        return
    expected = parse_header(content).file_size
    if len(content) != expected:
        kind = ShortFile if len(content) < expected else CorruptFile
        raise kind(f"{len(content)} bytes, its header declares {expected}")


def is_cut_off(content: bytes | bytearray) -> bool:
    """Whether this is a short file that is not being created: whisper writes header and zeros before any point."""
    try:
        header = parse_header(content)
    except CorruptFile:
        return False
    return len(content) < header.file_size and bool(content[header.archives[0].offset :].strip(b"\0"))


def declared_size(beginning: bytes, ceiling: int) -> int | None:
    """Bytes that the file with this beginning has; None for a compressed one that does not declare it.

    Raises CorruptFile for a broken header, TooLarge for one that declares more than `ceiling`.
    """
    is_compressed = cwhisper.is_compressed(beginning)
    size = cwhisper.declared_size(beginning) if is_compressed else parse_header(beginning).file_size
    if size is not None and size > ceiling:
        raise TooLarge(f"its header declares {size} bytes, more than --max-file-size ({ceiling})")
    return size

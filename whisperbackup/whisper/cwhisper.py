"""go-carbon's compressed whisper files: how long one has to be, and whether its header is whole.

The format (go-whisper), every integer and float big endian:

    file        = magic version metadata archiveinfo{count} index{count} block{...}
    magic       = "whisper_compressed"                             18 bytes
    version     = u1                                               1 is the only one so far
    metadata    = aggregation:u4  maxRetention:u4  xFilesFactor:f4  pointsPerBlock:u4
                  count:u4  averagePointSize:f4  crc:u4  free:16 bytes
    archiveinfo = offset:u4  step:u4  points:u4  blockSize:u4  blockCount:u4
                  averagePointSize:f4  others:104 bytes            128 bytes; finest archive first
    index       = blockrange{blockCount} buffer                    16 bytes a block
    buffer      = 12 bytes x 2 x (next step / step)                none for the last archive, none if aggregation is 7
    block       = blockSize bytes, `blockCount` for each archive, from the archive's offset on

Everything before the first block is the header.  `crc` is its CRC-32 (zlib's) with the field itself zero.  The blocks
are not looked into: what is flipped in one of them is not noticed here.

**Older files** have a shorter header and no usable CRC under the same magic word and version, so a CRC that does not
match proves nothing by itself.  What tells the layouts apart is that archives follow one another without a gap: read by
the wrong layout, no archive begins where another thing ends.  A file is known to have the layout above if its CRC
matches, or if at least one archive begins where the header or the archive before it ends.  A damaged header keeps
others of these places intact; a file with none of them is treated as an older one: opaque, never refused.
"""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

MAGIC = b"whisper_compressed"
VERSION = 1
METADATA = struct.Struct(">2Lf2LfL16x")
ARCHIVE_INFO = struct.Struct(">5Lf104x")
TABLE = len(MAGIC) + 1 + METADATA.size  # where the archive infos begin
CRC = TABLE - 16 - 4  # where the CRC is
BLOCK_RANGE_SIZE = 16
POINT_SIZE = 12
MIX = 7  # this aggregation has no buffers
MAX_ARCHIVES = 64  # far above any schema; keeps a hostile count from costing time

Content = bytes | bytearray


class Archive(NamedTuple):
    """One archive: `block_count` blocks of `block_size` bytes, from `offset` on; `step` in seconds."""

    offset: int
    step: int
    points: int
    block_size: int
    block_count: int

    @property
    def end(self) -> int:
        """Where the last block ends."""
        return self.offset + self.block_size * self.block_count


class Damage(NamedTuple):
    """What is wrong with a file; `is_short`: it is cut off, or being created."""

    text: str
    is_short: bool


def is_compressed(content: Content) -> bool:
    """Whether this is (the beginning of) a file in go-carbon's compressed format."""
    return content.startswith(MAGIC)


def declared_size(beginning: Content) -> int | None:
    """Bytes that the file with this beginning has; None where the layout is not surely the known one."""
    if not _is_version_1(beginning) or len(beginning) < TABLE:
        return None
    count = _count(beginning)
    archives = _archives(beginning, count)
    if not archives or len(archives) != count or not all(_seams(beginning, archives)):
        return None
    return archives[-1].end


def damage(content: Content) -> Damage | None:
    """What is wrong with a whole compressed file; None if nothing is, or if its layout is not the known one."""
    if len(content) <= len(MAGIC):
        return Damage(f"only {len(content)} bytes, a compressed whisper file has more", True)
    if not _is_version_1(content):
        return None
    if len(content) < TABLE + ARCHIVE_INFO.size:
        return Damage(f"only {len(content)} bytes, the header of a compressed whisper file has more", True)
    count = _count(content)
    if len(content) < TABLE + count * ARCHIVE_INFO.size and count <= MAX_ARCHIVES:
        return Damage(f"only {len(content)} bytes, its header counts {count} archives", True)
    # Two at least: where the count is damaged, the place between these two tells the layout.
    archives = _archives(content, max(count, 2))
    if _has_its_crc(content, archives, count):
        return _wrong_size(content, max(archive.end for archive in archives[:count]))
    if (size := declared_size(content)) and len(content) < size:
        return _wrong_size(content, size)
    if any(_seams(content, archives)) or _ends_with_file(content, archives, count):
        return Damage("its compressed header does not have the CRC-32 that it declares", False)
    return None


def _wrong_size(content: Content, size: int) -> Damage | None:
    if len(content) == size:
        return None
    return Damage(f"{len(content)} bytes, its compressed header declares {size}", len(content) < size)


def _is_version_1(content: Content) -> bool:
    return is_compressed(content) and content[len(MAGIC) : len(MAGIC) + 1] == bytes([VERSION])


def _count(content: Content) -> int:
    count: int = METADATA.unpack_from(content, len(MAGIC) + 1)[4]
    return count


def _archives(content: Content, count: int) -> list[Archive]:
    """As many archive infos as are counted, make sense, and are there."""
    there = (len(content) - TABLE) // ARCHIVE_INFO.size
    infos = (
        ARCHIVE_INFO.unpack_from(content, TABLE + number * ARCHIVE_INFO.size)
        for number in range(min(count, there, MAX_ARCHIVES))
    )
    return [Archive(*info[:5]) for info in infos]


def _header_size(content: Content, archives: Sequence[Archive]) -> int:
    size = TABLE + sum(ARCHIVE_INFO.size + BLOCK_RANGE_SIZE * archive.block_count for archive in archives)
    if METADATA.unpack_from(content, len(MAGIC) + 1)[0] == MIX:
        return size
    pairs = itertools.pairwise(archives)
    return size + sum(2 * (coarser.step // max(finer.step, 1)) * POINT_SIZE for finer, coarser in pairs)


def _seams(content: Content, archives: Sequence[Archive]) -> list[bool]:
    """For each archive, whether it begins where the header (for the first) or the archive before it ends."""
    ends = [_header_size(content, archives[: _count(content)]), *(archive.end for archive in archives)]
    return [
        archive.offset == end and archive.end > archive.offset for archive, end in zip(archives, ends, strict=False)
    ]


def _ends_with_file(content: Content, archives: Sequence[Archive], count: int) -> bool:
    """Whether the last archive ends where the file does.

    Of a single archive that proves nothing: the older layouts have the first one in the same place.
    """
    return 1 < count == len(archives) and archives[-1].end == len(content)


def _has_its_crc(content: Content, archives: Sequence[Archive], count: int) -> bool:
    if not 1 <= count <= len(archives):
        return False
    size = _header_size(content, archives[:count])
    if size > len(content):
        return False
    view = memoryview(content)
    crc = zlib.crc32(view[CRC + 4 : size], zlib.crc32(bytes(4), zlib.crc32(view[:CRC])))
    return crc == int.from_bytes(view[CRC : CRC + 4], "big")

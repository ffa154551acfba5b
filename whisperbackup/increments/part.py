"""Frames and parts: how an increment's records are stored.

    part     = frame{}              at most PART_SIZE bytes where a frame allows; keys ascend over all parts
    frame    = a zstd frame         level 3, with its content's size and checksum; readable by itself
    content  = record{}             record.py; up to FRAME_RECORDS of them or some FRAME_SIZE bytes

`zstd -dc` reads a part as one stream of records.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import zstandard

from whisperbackup.increments.manifest import Frame, Part
from whisperbackup.increments.record import MAX_RECORD, CorruptIncrement

LEVEL = 3
FRAME_RECORDS = 256
FRAME_SIZE = 512 * 1024  # bytes of content
PART_SIZE = 12 * 1024 * 1024
PART_NUMBERS = 900_000  # the numbers that a first part may have
MAX_CONTENT = MAX_RECORD + FRAME_SIZE + 2**17  # no frame of ours has more: a record may be the last that fits


class PackedFrame(NamedTuple):
    """A frame to be stored: its compressed bytes, the first and the last key in it, what it holds."""

    first: str
    last: str
    records: int
    points: int
    content: bytes


class _Compressor(threading.local):
    """A thread's own: making one costs as much as a frame."""

    def __init__(self) -> None:
        self.each = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True, write_content_size=True)


_COMPRESSOR = _Compressor()


def frames_of(records: Iterable[tuple[str, int, bytes]]) -> Iterator[PackedFrame]:
    """Records as (key, number of points, encoded), ascending by key, packed."""
    compress = _COMPRESSOR.each.compress
    keys: list[str] = []
    contents: list[bytes] = []
    size = total = 0
    for key, points, content in records:
        keys.append(key)
        contents.append(content)
        size += len(content)
        total += points
        if len(keys) == FRAME_RECORDS or size >= FRAME_SIZE:
            yield PackedFrame(keys[0], keys[-1], len(keys), total, compress(b"".join(contents)))
            keys, contents, size, total = [], [], 0, 0
    if keys:
        yield PackedFrame(keys[0], keys[-1], len(keys), total, compress(b"".join(contents)))


def parts_of(frames: Iterable[PackedFrame], number: int = 1) -> Iterator[tuple[Part, bytes]]:
    """Frames, ascending, as parts to be stored, named by numbers from `number` on.  Holds one part in memory.

    Raises ValueError where frames do not ascend.
    """
    body = io.BytesIO()
    held: list[Frame] = []
    last = ""
    for frame in frames:
        if frame.first <= last:
            raise ValueError(f"the record of '{frame.first}' comes after that of '{last}'")
        last = frame.last
        if held and body.tell() + len(frame.content) > PART_SIZE:
            yield _close(body, held, number)
            body, held, number = io.BytesIO(), [], number + 1
        held.append(Frame(frame.first, body.tell(), len(frame.content), frame.records))
        body.write(frame.content)
    if held:
        yield _close(body, held, number)


def _close(body: io.BytesIO, frames: list[Frame], number: int) -> tuple[Part, bytes]:
    content = body.getvalue()
    return Part(f"{number:06}.wbi", len(content), hashlib.sha256(content).hexdigest(), tuple(frames)), content


def unpack(frame: bytes) -> bytes:
    """The content of one whole frame.  Raises CorruptIncrement, and never makes more than MAX_CONTENT bytes."""
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if not 0 < parameters.content_size <= MAX_CONTENT or not parameters.has_checksum:
            raise CorruptIncrement("a zstd frame that does not state its size and checksum, or too large a size")
        content = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptIncrement(f"it is no zstd frame, cut off or damaged: {error}") from None
    if len(content) != parameters.content_size:
        raise CorruptIncrement("a zstd frame that is cut off")
    return content

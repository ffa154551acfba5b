"""Records out of the store again: all of them in constant memory, or those of some keys with a few range requests."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from whisperbackup.increments.manifest import Frame, Manifest, Part
from whisperbackup.increments.part import unpack
from whisperbackup.increments.record import CorruptIncrement, decode, decode_key, split

REQUEST = 1024 * 1024  # bytes asked for at a time, where a frame is not larger

Fetch = Callable[[str, int, int], bytes]
"""`fetch(part name, offset, length)`: these bytes of a part.  Raises what the store raises."""

OnDamage = Callable[[CorruptIncrement], None]
"""Hears of each frame that cannot be read; reading goes on with the next one."""


class Stored(NamedTuple):
    """A record as it is stored, not looked into yet; `key` in UTF-8."""

    key: bytes
    content: bytes


def stop(error: CorruptIncrement) -> None:
    """The `OnDamage` that ends the reading."""
    raise error


def read(
    manifest: Manifest,
    fetch: Fetch,
    heads: Sequence[str] = ("",),
    on_damage: OnDamage = stop,
    request: int = REQUEST,
) -> Iterator[Stored]:
    """The records, ascending by key, of the frames that can hold a key that begins with one of `heads`.

    Frames hold other keys besides: the caller chooses.  Holds `request` bytes and one frame's records in memory.
    """
    last = b""
    for part, frames in wanted_frames(manifest, heads):
        for group in _requests(frames, request):
            try:
                begin, end = group[0].offset, group[-1].offset + group[-1].length
                content = fetch(part.name, begin, end - begin)
            except CorruptIncrement as error:
                on_damage(error)
                continue
            if len(content) < end - begin:
                lacks = f"{len(content)} bytes at {begin} instead of {end - begin}"
                on_damage(CorruptIncrement(f"part {part.name}: {lacks}"))
            for frame in group:
                if frame.offset + frame.length > begin + len(content):
                    break
                try:
                    packed = content[frame.offset - begin : frame.offset - begin + frame.length]
                    records = read_frame(frame, packed, last)
                except CorruptIncrement as error:
                    on_damage(CorruptIncrement(f"part {part.name}, frame at byte {frame.offset}: {error}"))
                    continue
                last = records[-1].key
                yield from records


def read_frame(frame: Frame, packed: bytes, last: bytes) -> list[Stored]:
    """A frame's records, which all come after the key `last`.  Raises CorruptIncrement."""
    content = unpack(packed)
    records = [Stored(key, content[begin:end]) for key, begin, end in split(content)]
    if len(records) != frame.records or records[0].key != frame.first.encode("utf-8", "surrogatepass"):
        raise CorruptIncrement(f"it has {len(records)} records from {records[0].key!r} on, not those of the manifest")
    for record in records:
        if record.key <= last:
            raise CorruptIncrement(f"{record.key!r} comes after {last!r}")
        last = record.key
    return records


def wanted_frames(manifest: Manifest, heads: Sequence[str]) -> Iterator[tuple[Part, list[Frame]]]:
    """The parts, and of each the frames, that can hold a key that begins with one of `heads`."""
    firsts = [frame.first for part in manifest.parts for frame in part.frames]
    wanted: set[int] = set()
    for head in heads:
        # A frame's keys end before the next frame's first one, which nothing but order tells of.
        begin = max(bisect.bisect_right(firsts, head) - 1, 0)
        end = bisect.bisect_right(firsts, head, key=lambda first: first[: len(head)])
        wanted.update(range(begin, end))
    number = 0
    for part in manifest.parts:
        frames = [frame for index, frame in enumerate(part.frames, number) if index in wanted]
        number += len(part.frames)
        if frames:
            yield part, frames


def _requests(frames: Iterable[Frame], request: int) -> Iterator[list[Frame]]:
    """Frames that are asked for together: neighbours, up to `request` bytes."""
    group: list[Frame] = []
    for frame in frames:
        end = frame.offset + frame.length
        if group and (frame.offset != group[-1].offset + group[-1].length or end - group[0].offset > request):
            yield group
            group = []
        group.append(frame)
    if group:
        yield group


def check_part(part: Part, pieces: Iterable[bytes], last: str = "") -> tuple[str, int]:
    """Check a whole part, given in pieces in order: size, SHA-256, every frame, every record, the order of keys.

    `last` is the last key of the part before.  Returns this one's, and how many points it has; raises CorruptIncrement.
    """
    digest = hashlib.sha256()
    rest = bytearray()
    frames = iter(part.frames)
    frame = next(frames, None)
    size = points = 0
    last_key = last.encode()
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
        if size > part.size:
            break
        rest += piece
        while frame is not None and len(rest) >= frame.length:
            try:
                for record in read_frame(frame, bytes(rest[: frame.length]), last_key):
                    points += decode(record.content).points
                    last_key = record.key
            except CorruptIncrement as error:
                raise CorruptIncrement(f"part {part.name}, frame at byte {frame.offset}: {error}") from None
            del rest[: frame.length]
            frame = next(frames, None)
    if size != part.size or digest.hexdigest() != part.sha256:
        raise CorruptIncrement(f"part {part.name}: its size or SHA-256 differs from the manifest")
    return decode_key(last_key) if last_key else "", points

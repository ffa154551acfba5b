"""Many increments, joined by metric: each metric's records in the order of the increments.

Each stream holds what it asked for last and one frame's records.  What is asked for shrinks with the number of
streams, down to a frame, so MEMORY bytes are asked for in all, and 0.4 MB come on top for each stream.
(Joining some into temporary files first would write a week of hourly increments, as large as many backups, to disk.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from whisperbackup.increments.reader import REQUEST, Stored
from whisperbackup.increments.record import CorruptIncrement, decode_key

MEMORY = 24 * REQUEST


class Share(NamedTuple):
    """A record as it is stored, and the place of its increment among those that were joined."""

    number: int
    content: bytes


class Metric(NamedTuple):
    """A metric's key and its records, in the order of the increments."""

    key: str
    shares: list[Share]


def request_size(streams: int) -> int:
    """How many bytes each of so many streams should ask for at a time."""
    return min(REQUEST, MEMORY // max(streams, 1))


def join(streams: Sequence[Iterator[Stored]], on_damage: Callable[[CorruptIncrement], None]) -> Iterator[Metric]:
    """The metrics of increments, given in their order, ascending by key.

    What is no metric's key is handed to `on_damage` and left out.
    """
    heads: list[tuple[int, Iterator[Stored], bytes, bytes]] = []
    keys: list[bytes] = []
    for number, stream in enumerate(streams):
        record = next(stream, None)
        if record is not None:
            heads.append((number, stream, *record))
            keys.append(record.key)
    while keys:
        least = min(keys)
        shares = []
        ended = False
        for index, key in enumerate(keys):
            if key == least:
                number, stream, _, content = heads[index]
                shares.append(Share(number, content))
                record = next(stream, None)
                if record is None:
                    ended = True
                    keys[index] = b""
                else:
                    heads[index] = (number, stream, *record)
                    keys[index] = record.key
        if ended:
            heads = [head for head, key in zip(heads, keys, strict=True) if key]
            keys = [key for key in keys if key]
        try:
            text = decode_key(least)
        except CorruptIncrement as error:
            on_damage(error)
            continue
        yield Metric(text, shares)

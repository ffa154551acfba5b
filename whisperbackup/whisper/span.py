"""The points of a whisper file that lie in a span of time, as a file of the same layout that holds no others."""

from __future__ import annotations

import numpy as np

from whisperbackup.whisper.format import parse_header
from whisperbackup.whisper.healing import RECORD, heal


def only(content: bytes, since: int | None, until: int | None, now: int) -> bytes | None:
    """`content` with the points of [since, until] alone (None: no bound); None if it has none there.

    A coarser archive's point belongs to the span if its own time does.  Raises CorruptFile.
    """
    header = parse_header(content)
    kept = bytearray(content)
    for archive in header.archives:
        ring = np.frombuffer(kept, RECORD, archive.points, archive.offset)
        base, laps = int(ring["t"][0]), 2 * archive.step * archive.points
        outside = np.zeros(archive.points, np.bool_)
        if since is not None:
            outside |= ring["t"] < since
        if until is not None:
            outside |= ring["t"] > until
        ring[outside] = (0, 0.0)
        if outside[0]:  # the base: it tells where all others are, and so long ago that no reader returns it
            ring[0] = (base - laps if base > laps else base, np.nan)
    empty = content[: header.archives[0].offset].ljust(len(content), b"\0")
    healing = heal(empty, bytes(kept), now)
    return bytes(kept) if healing.writes or healing.ahead else None

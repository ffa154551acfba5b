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
        outside = np.zeros(archive.points, np.bool_)
        if since is not None:
            outside |= ring["t"] < since
        if until is not None:
            outside |= ring["t"] > until
        ring["v"][outside] = np.nan  # its stamp stays: slot 0's tells where all others are
    empty = bytearray(len(content))
    end = header.archives[0].offset
    empty[:end] = content[:end]
    writes = heal(bytes(empty), bytes(kept), now).writes
    for offset, piece in writes:
        empty[offset : offset + len(piece)] = piece
    return bytes(empty) if writes else None

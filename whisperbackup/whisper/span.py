"""Which points of a whisper file lie in a span of time."""

from __future__ import annotations

import numpy as np

from whisperbackup.whisper.format import parse_header
from whisperbackup.whisper.healing import RECORD, Span, are_within, count_ahead, read_sources, until_now


def has_points(content: bytes, span: Span, now: int) -> bool:
    """Whether the file has any point in the span.  Raises CorruptFile."""
    header, span = parse_header(content), until_now(span, now)
    if any(source.times.size for source in read_sources(content, header, False, now, span)):
        return True
    return count_ahead(b"", header._replace(archives=()), content, header, now, span) > 0


def is_all_after(content: bytes | bytearray, moment: int, now: int, late: int = 0) -> bool:
    """Whether a file has no points of the time up to `moment`, though its layout reaches back to that.

    That is none whose slot ended `late` seconds before it.  An archive that reaches back must have points, if any has:
    if a sender brings too few for xFilesFactor, the finest archive has all, and those of its own span alone.  The
    coarsest comes first: most files have old points there.  Raises CorruptFile.
    """
    archives = parse_header(content).archives
    begin = now - max(archive.step * archive.points for archive in archives)
    if begin >= moment:
        return False
    has_any = is_told = False
    for archive in reversed(archives):
        ring = np.frombuffer(content, RECORD, archive.points, archive.offset)
        there = ring["t"] > max(begin, 0)  # what was written by a clock years behind is no history
        old = there & (ring["t"] <= moment - late - archive.step)
        if old.any() and not np.isnan(ring["v"][old]).all():  # one without a value tells where the others are
            return False
        if there.any() and not np.isnan(ring["v"][there]).all():
            has_any = True
            is_told = is_told or now - archive.step * archive.points < moment
    return is_told or not has_any


def cut(content: bytes, span: Span, now: int) -> bytes:
    """`content` without the points that are not in the span.  Raises CorruptFile.

    A coarser archive's point is in it if all of its slot is.
    """
    header, span = parse_header(content), until_now(span, now)
    kept = bytearray(content)
    for archive in header.archives:
        ring = np.frombuffer(kept, RECORD, archive.points, archive.offset)
        base, laps = int(ring["t"][0]), 2 * archive.step * archive.points
        outside = ~are_within(span, ring["t"].astype(np.int64), archive.step, header.archives[0].step)
        ring[outside] = (0, 0.0)
        if outside[0]:  # the base: it tells where all others are, and so long ago that no reader returns it
            ring[0] = (base - laps if base > laps else base, np.nan)
    return bytes(kept)

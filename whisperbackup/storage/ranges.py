"""Requests for a part of an object, and checks of the answers: a service may send the whole, or another part."""

from __future__ import annotations

import re

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)
PARTIAL, NOT_SATISFIABLE = 206, 416


class WrongRange(ValueError):
    """An answer with other bytes than the ones that were requested; it says which."""

    def __init__(self, which: str = "another part of it than the requested one") -> None:
        super().__init__(which)


def header(offset: int, length: int) -> str:
    """The value of the header `Range`."""
    return f"bytes={offset}-{offset + length - 1}"


def check_whole(status: int) -> None:
    """Raises WrongRange for the status of an answer that is a part, where the whole object was requested."""
    if status == PARTIAL:
        raise WrongRange("a part of it instead of the whole")


def cut(body: bytes, status: int, content_range: str | None, offset: int, length: int) -> bytes:
    """The requested bytes of the answer's body, which is the whole object if the service ignored the request.

    Raises WrongRange.
    """
    if content_range is None and status != PARTIAL:
        return body[offset : offset + length]
    if len(body) != size_of(content_range, offset, length):
        raise WrongRange
    return body


def size_of(content_range: str | None, offset: int, length: int) -> int:
    """How many bytes an answer with this header `Content-Range` has.  Raises WrongRange if they are not the right ones.

    Only at the end of the object may they be fewer than `length`.
    """
    match = _CONTENT_RANGE.fullmatch((content_range or "").strip())
    if not match:
        raise WrongRange
    first, last = int(match[1]), int(match[2])
    end = offset + length if match[3] == "*" else min(offset + length, int(match[3]))
    if first != offset or last + 1 != end or end <= offset:
        raise WrongRange
    return end - offset

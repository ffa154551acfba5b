"""The codecs: gz (RFC 1952), sz (Snappy framing format), zst (Zstandard); each readable by the format's own tools."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Literal, Protocol, cast

CODECS = ("gz", "sz", "zst")
"""Every codec that a store may hold."""

PIECE = 256 * 1024  # bytes handed out at a time: a bomb costs no more than that


class CorruptPayload(Exception):
    """Bytes that their codec cannot read; the text says why."""


Compress = Callable[[bytes | bytearray], bytes]


class Reader(Protocol):
    """A payload being decompressed."""

    def read(self, size: int) -> bytes:
        """At most `size` more bytes of content, empty at its end.  May raise what its library raises."""


@functools.cache
def installed() -> tuple[str, ...]:
    """The codecs that can be written on this machine, gz first."""
    modules = {"gz": "zlib", "sz": "snappy", "zst": "zstandard"}
    return tuple(codec for codec in CODECS if importlib.util.find_spec(modules[codec]))


def compressor(codec: str) -> Compress:
    """The function that compresses one file; equal content gives equal bytes, on any day, in any place."""
    if codec == "gz":
        try:
            from isal import igzip
        except ImportError:  # no wheel for this machine
            return lambda content: gzip.compress(content, 1, mtime=0)
        # Level 2 of igzip: on whisper files 92 % of the ratio of gzip -9, over 100 times as fast.
        # mtime=0 keeps the time out of the header; no name is put there either.
        return lambda content: bytes(igzip.compress(content, 2, mtime=0))
    if codec == "sz":
        import snappy

        # bytes(): some releases of cramjam, which does the work, take nothing else
        return lambda content: bytes(snappy.StreamCompressor().add_chunk(bytes(content)))
    import zstandard

    # Level 1 that looks for matches of four bytes, as long as a time stamp is: on whisper files within 3 % of the
    # ratio of level 3 in 60 % of its time.  The content's size goes into the frame, as `zstd` itself does; the checksum
    # lets `zstd -t` prove it.
    parameters = zstandard.ZstdCompressionParameters.from_level(1, min_match=4, write_checksum=True)
    return lambda content: zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def open_gzip(file: IO[bytes], mode: Literal["rb", "wb"]) -> io.RawIOBase:
    """A stream of gzip over the open `file`, for what this tool keeps for itself: fast before small."""
    try:
        from isal import igzip
    except ImportError:
        return cast(io.RawIOBase, gzip.open(file, mode, 1))
    return cast(io.RawIOBase, igzip.open(file, mode, 1))  # type: ignore[no-untyped-call]


def reader(codec: str, payload: bytes) -> Reader:
    """Read `payload` piece by piece, with memory that does not depend on what it expands to."""
    if codec == "gz":
        try:
            from isal import igzip
        except ImportError:
            return gzip.GzipFile(fileobj=io.BytesIO(payload))
        return cast(Reader, igzip.IGzipFile(fileobj=io.BytesIO(payload)))  # type: ignore[no-untyped-call]
    if codec == "sz":
        return _SnappyReader(payload)
    import zstandard

    # `zstd -d` refuses windows above 128 MiB too
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(payload, read_across_frames=True)


class _SnappyReader:
    def __init__(self, payload: bytes) -> None:
        import snappy

        self._payload = memoryview(payload)
        self._decompressor = snappy.StreamDecompressor()
        self._content = b""

    def read(self, size: int) -> bytes:
        while not self._content and self._payload:
            self._content = self._decompressor.decompress(bytes(self._payload[:65536]))
            self._payload = self._payload[65536:]
            if not self._payload and self._decompressor.remains:  # it keeps half a chunk to itself
                raise CorruptPayload("not sz, or cut off: its last chunk is not whole")
        piece, self._content = self._content[:size], self._content[size:]
        return piece


class Expansion:
    """A payload being decompressed: its `beginning` (PIECE bytes, or all there is) at once, the rest on demand.

    Raises CorruptPayload for what the codec cannot read.
    """

    def __init__(self, codec: str, payload: bytes) -> None:
        self._codec = codec
        self._source = reader(codec, payload)
        self.beginning = b""
        while len(self.beginning) < PIECE and (piece := self._read(PIECE - len(self.beginning))):
            self.beginning += piece

    def pieces(self, limit: int) -> Iterator[bytes]:
        """All of it; may be asked for once.  Raises CorruptPayload for more than `limit` bytes, and expands no more."""
        piece, length = self.beginning, 0
        while piece:
            length += len(piece)
            if length > limit:
                raise CorruptPayload(f"its content is longer than the {limit} bytes that it may have")
            yield piece
            piece = self._read(min(PIECE, limit - length + 1))

    def content(self, limit: int) -> bytes:
        """The same in one piece."""
        return b"".join(self.pieces(limit))

    def _read(self, size: int) -> bytes:
        try:
            return self._source.read(size)
        except BaseException as error:
            # What a library raises for bytes that it cannot read is its own choice: igzip has OverflowError among it,
            # and where one in Rust panics that is not even an Exception.
            is_theirs = isinstance(error, Exception) or type(error).__name__ == "PanicException"
            if not is_theirs or isinstance(error, MemoryError):
                raise
            raise CorruptPayload(f"not {self._codec}, or cut off: {str(error) or type(error).__name__}") from error


def gzip_errors() -> tuple[type[Exception], ...]:
    """What reading from `open_gzip` raises for rubbish."""
    try:
        from isal import isal_zlib
    except ImportError:
        return (OSError, EOFError, zlib.error)
    # OverflowError: a header that is longer than igzip's buffer
    return (OSError, EOFError, OverflowError, zlib.error, cast(type[Exception], isal_zlib.error))

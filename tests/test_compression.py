"""Codecs: reproducible, readable by the formats' own tools, and never expanding beyond what was declared."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
import snappy
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.repository.compression import CODECS, CorruptPayload, Expansion, compressor

CONTENT = bytes(range(256)) * 5000
TOOLS = {"gz": ["gunzip", "-c"], "sz": [sys.executable, "-m", "snappy", "-d"], "zst": ["zstd", "-dc"]}


def decompress(codec: str, payload: bytes, limit: int = 1 << 40) -> bytes:
    return Expansion(codec, payload).content(limit)


def bomb(codec: str, size: int) -> bytes:
    zeros = bytes(size)
    return {
        "gz": lambda: gzip.compress(zeros, 9),
        "sz": lambda: snappy.StreamCompressor().add_chunk(zeros),
        "zst": lambda: zstandard.compress(zeros),
    }[codec]()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("content", [b"", b"x", CONTENT])
def test_there_and_back(codec: str, content: bytes) -> None:
    payload = compressor(codec)(content)
    assert decompress(codec, payload) == content
    assert compressor(codec)(bytearray(content)) == payload


@pytest.mark.parametrize("codec", CODECS)
def test_the_formats_own_tool_reads_it(codec: str, tmp_path: Path) -> None:
    payload = compressor(codec)(CONTENT)
    if codec == "sz":
        (tmp_path / "in").write_bytes(payload)
        subprocess.run([*TOOLS[codec], tmp_path / "in", tmp_path / "out"], check=True)
        assert (tmp_path / "out").read_bytes() == CONTENT
    elif shutil.which(TOOLS[codec][0]):
        assert subprocess.run(TOOLS[codec], input=payload, capture_output=True, check=True).stdout == CONTENT
    else:  # a machine without the zstd program: another binding of another build of the format
        import cramjam

        assert bytes(cramjam.zstd.decompress(payload)) == CONTENT


def test_gzip_header_has_neither_time_nor_name() -> None:
    payload = compressor("gz")(CONTENT)
    assert payload[3] == 0
    assert payload[4:8] == bytes(4)


def test_gzip_of_several_members_is_read_whole() -> None:
    assert decompress("gz", gzip.compress(b"a" * 10) + gzip.compress(b"b" * 10)) == b"a" * 10 + b"b" * 10


@pytest.mark.parametrize("codec", CODECS)
def test_a_bomb_costs_no_more_than_it_may_expand_to(codec: str) -> None:
    payload = bomb(codec, 200_000_000)
    tracemalloc.start()
    with pytest.raises(CorruptPayload, match="longer than the 1000000 bytes"):
        decompress(codec, payload, 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("codec", CODECS)
@given(cut=st.integers(0, 2000), junk=st.binary(max_size=40))
@pytest.mark.slow
def test_rubbish_raises_one_kind_of_error(codec: str, cut: int, junk: bytes) -> None:
    payload = compressor(codec)(zlib.compress(CONTENT))
    for bad in (payload[:cut], payload[:cut] + junk + payload[cut + len(junk) :], junk):
        try:
            decompress(codec, bad)
        except CorruptPayload:
            pass


@pytest.mark.parametrize("field", [0x08, 0x10], ids=["name", "comment"])
def test_a_gzip_header_without_end_is_a_corrupt_payload(field: int) -> None:
    header = bytes([0x1F, 0x8B, 8, field, 0, 0, 0, 0, 0, 3])
    with pytest.raises(CorruptPayload, match="not gz"):
        decompress("gz", header + b"x" * 1_000_000)


def test_a_panic_in_a_library_is_a_corrupt_payload_and_a_stop_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):  # as pyo3 names what a panic in Rust becomes
        pass

    def fail(error: BaseException) -> None:
        def decompress(self: object, piece: bytes) -> bytes:
            raise error

        monkeypatch.setattr(snappy.StreamDecompressor, "decompress", decompress)

    fail(PanicException("called `Option::unwrap()` on a `None` value"))
    with pytest.raises(CorruptPayload, match="unwrap"):
        decompress("sz", b"x")
    for other in (MemoryError(), KeyboardInterrupt()):
        fail(other)
        with pytest.raises(type(other)):
            decompress("sz", b"x")

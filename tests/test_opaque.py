"""go-carbon's compressed whisper files: backed up and brought back as bytes, never looked into, never healed."""

from __future__ import annotations

import hashlib
import os
import random
import struct
from pathlib import Path

import pytest
from conftest import Program, contents

from whisperbackup import wsp
from whisperbackup.backups import sha1_of
from whisperbackup.compression import CODECS, Expansion, compressor

STAMP = "2026-11-22T02:12:25+00:00"


def opaque(seed: int, length: int = 3000) -> bytes:
    """As go-whisper begins such a file: magic, version, metadata; then blocks."""
    head = wsp.COMPRESSED_MAGIC + struct.pack(">BLLfL", 1, 1, 86400, 0.5, 2)
    return head + random.Random(seed).randbytes(length)


@pytest.fixture
def path(program: Program) -> Path:
    path = program.prefix / "a/b.wsp"
    path.parent.mkdir()
    path.write_bytes(opaque(1))
    return path


def put(program: Program, content: bytes, codec: str = "gz", metric: str = "a.b") -> None:
    """A complete backup of `content`, whatever it is."""
    folder = program.store / metric
    folder.mkdir(parents=True)
    (folder / f"{STAMP}.wsp.{codec}").write_bytes(compressor(codec)(content))
    (folder / f"{STAMP}.sha1").write_text(sha1_of(content))


@pytest.mark.parametrize("codec", CODECS)
def test_it_goes_to_the_store_and_comes_back_byte_for_byte(program: Program, path: Path, codec: str) -> None:
    content = path.read_bytes()
    assert "1 backed up" in program("backup", "disk", "-a", codec)
    (stamp,) = program.stamps("a.b")
    objects = program.objects()
    assert objects[f"a.b/{stamp}.sha1"] == hashlib.sha1(content).hexdigest().encode()
    assert Expansion(codec, objects[f"a.b/{stamp}.wsp.{codec}"]).content(len(content)) == content
    assert "1 good" in program("verify")
    path.unlink()
    assert "1 created" in program("restore")
    assert path.read_bytes() == content


def test_an_unchanged_one_is_skipped_and_a_changed_one_of_another_size_stored(program: Program, path: Path) -> None:
    program("backup")
    assert "1 unchanged, 0 backed up" in program("backup")
    path.write_bytes(opaque(2, 5000))
    assert "0 unchanged, 1 backed up" in program("backup")
    assert len(program.stamps("a.b")) == 2


@pytest.mark.parametrize("live_is_opaque", [True, False])
def test_one_beside_a_plain_file_is_left_and_said(program: Program, path: Path, live_is_opaque: bool) -> None:
    plain = program.write("plain").read_bytes()
    (program.prefix / "plain.wsp").unlink()
    live, backup = (opaque(1), plain) if live_is_opaque else (plain, opaque(1))
    path.write_bytes(live)
    put(program, backup)
    before = contents(program.prefix)
    for options in (["disk", "-n"], ["disk"]):
        said = program("restore", *options)
        assert "1 skipped" in said
        assert "a.b: a compressed whisper file cannot be healed; --overwrite replaces it" in said
        assert contents(program.prefix) == before
    assert "1 replaced" in program("restore", "disk", "--overwrite")
    assert path.read_bytes() == backup


def test_one_that_expands_beyond_the_ceiling_is_refused(program: Program, path: Path) -> None:
    path.unlink()
    put(program, opaque(1, 0) + bytes(50_000_000))
    for command in ("verify", "restore"):
        said = program(command, "disk", "--max-file-size", "10M", status=3)
        assert "a.b" in said and "longer than the 10485760 bytes" in said
    assert not path.exists()
    assert "1 good" in program("verify")


def test_one_above_the_ceiling_in_the_tree_is_not_stored(program: Program, path: Path) -> None:
    path.write_bytes(opaque(1, 2_000_000))
    said = program("backup", "disk", "--max-file-size", "1M", status=3)
    assert "a.b" in said and "more than --max-file-size" in said
    assert not program.stamps("a.b")


@pytest.mark.parametrize("length", [0, 1, 17])
def test_half_a_magic_word_is_no_whisper_file(program: Program, path: Path, length: int) -> None:
    path.write_bytes(wsp.COMPRESSED_MAGIC[:length])
    os.utime(path, (1, 1))
    program("backup", status=3)
    assert not program.stamps("a.b")

"""go-carbon's compressed whisper files: backed up and brought back as bytes, checked by their header, never healed."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Program, contents
from hypothesis import given, strategies

from whisperbackup.repository.backups import sha1_of
from whisperbackup.repository.compression import CODECS, Expansion, compressor
from whisperbackup.whisper import cwhisper

pytestmark = pytest.mark.slow

STAMP = "2026-11-22T02:12:25+00:00"


def opaque(seed: int, length: int = 3000) -> bytes:
    """As go-whisper begins such a file: magic, version, metadata; then blocks."""
    head = cwhisper.MAGIC + struct.pack(">BLLfL", 1, 1, 86400, 0.5, 2)
    return head + random.Random(seed).randbytes(length)


class Schema(NamedTuple):
    """An archive as go-whisper lays it out: step in seconds, points, bytes of a block, blocks."""

    step: int
    points: int
    block_size: int
    block_count: int


SCHEMAS = (
    (Schema(60, 1440, 700, 4), Schema(300, 2016, 500, 5), Schema(3600, 720, 300, 3)),
    (Schema(60, 1440, 700, 4), Schema(3600, 720, 300, 3)),
    (Schema(60, 1440, 700, 4),),
)


def compressed(schemas: Sequence[Schema] = SCHEMAS[0], seed: int = 1, aggregation: int = 1, free: int = 16) -> bytes:
    """A whole file as go-whisper's newer releases write it: header with its CRC-32, blocks of rubbish.

    With less than 16 bytes `free` it is the shorter header of an older release, which has no CRC.
    """
    rubbish = random.Random(seed)
    others = 104 if free == 16 else 68
    index = []
    for schema, coarser in zip(schemas, [*schemas[1:], None], strict=True):
        index.append(b"".join(rubbish.randbytes(16) for _ in range(schema.block_count)))
        if coarser and aggregation != 7:
            index.append(rubbish.randbytes(2 * (coarser.step // schema.step) * 12))
    offset = 18 + 1 + 28 + free + len(schemas) * (24 + others) + len(b"".join(index))
    table, blocks = b"", b""
    for schema in schemas:
        table += struct.pack(">5Lf", offset, *schema, 2.1) + rubbish.randbytes(others)
        blocks += rubbish.randbytes(schema.block_size * schema.block_count)
        offset += schema.block_size * schema.block_count
    metadata = struct.pack(">LLfLLf", aggregation, 86400, 0.5, 7200, len(schemas), 2.1)
    before = cwhisper.MAGIC + b"\x01" + metadata
    after = bytes(free) + table + b"".join(index)
    crc = zlib.crc32(before + bytes(4) + after) if free == 16 else rubbish.randrange(1 << 32)
    return before + crc.to_bytes(4, "big") + after + blocks


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
def test_one_beside_a_plain_file_is_left_and_is_no_success(program: Program, path: Path, live_is_opaque: bool) -> None:
    plain = program.write("plain").read_bytes()
    (program.prefix / "plain.wsp").unlink()
    live, backup = (opaque(1), plain) if live_is_opaque else (plain, opaque(1))
    path.write_bytes(live)
    put(program, backup)
    before = contents(program.prefix)
    for options in (["disk", "-n"], ["disk"]):
        said = program("restore", *options, status=3)
        assert "1 skipped" in said and "1 compressed, differing, 1 failed" in said
        assert "a.b: the file there differs from the backup, and compressed whisper files cannot be healed" in said
        assert "--overwrite replaces it" in said
        assert not program.stamp.exists()
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
    path.write_bytes(cwhisper.MAGIC[:length])
    os.utime(path, (1, 1))
    program("backup", status=3)
    assert not program.stamps("a.b")


# -- the layout with a CRC ------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", [1, 7])
@pytest.mark.parametrize("schemas", SCHEMAS, ids=len)
def test_a_whole_one_is_good_and_declares_its_size(schemas: Sequence[Schema], aggregation: int) -> None:
    content = compressed(schemas, aggregation=aggregation)
    assert cwhisper.damage(content) is None
    assert cwhisper.declared_size(content) == cwhisper.declared_size(content[:1000]) == len(content)


@pytest.mark.parametrize("schemas", SCHEMAS, ids=len)
def test_every_cut_is_seen_and_is_a_file_that_may_be_being_created(schemas: Sequence[Schema]) -> None:
    content = compressed(schemas)
    for length in range(len(cwhisper.MAGIC), len(content), 7):
        damage = cwhisper.damage(content[:length])
        assert damage and damage.is_short, length
    damage = cwhisper.damage(content + b"x")
    assert damage and not damage.is_short


def test_every_bit_of_a_header_of_several_archives_is_checked_but_for_magic_word_and_version() -> None:
    content = compressed(SCHEMAS[0])
    header = struct.unpack_from(">L", content, cwhisper.TABLE)[0]
    for bit in range(8 * (len(cwhisper.MAGIC) + 1), 8 * header):
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        assert cwhisper.damage(spoilt), bit


def test_most_of_the_header_of_a_single_archive_is_checked() -> None:
    """Where the only archive's place in the file or the count is damaged, nothing tells it from an older file."""
    content = compressed(SCHEMAS[2])
    header = struct.unpack_from(">L", content, cwhisper.TABLE)[0]
    unseen = set()
    for bit in range(8 * (len(cwhisper.MAGIC) + 1), 8 * header):
        spoilt = bytearray(content)
        spoilt[bit // 8] ^= 1 << bit % 8
        if not cwhisper.damage(spoilt):
            unseen.add(bit // 32 * 4 if bit < 8 * cwhisper.TABLE else bit // 8)
    count, offset, blocks = 35, cwhisper.TABLE, cwhisper.TABLE + 16
    assert unseen <= {*range(count - 3, count + 4), *range(offset, offset + 4), *range(blocks, blocks + 4)}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("free", [0, 12])
@pytest.mark.parametrize("schemas", SCHEMAS, ids=len)
def test_an_older_layout_is_never_refused(schemas: Sequence[Schema], free: int, seed: int) -> None:
    content = compressed(schemas, seed, free=free)
    assert cwhisper.damage(content) is None
    assert cwhisper.declared_size(content) is None


def test_the_layout_of_a_later_version_is_never_refused() -> None:
    content = bytearray(compressed())
    content[len(cwhisper.MAGIC)] = 2
    assert cwhisper.damage(content) is None
    assert cwhisper.declared_size(content) is None


@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_damaged_one_is_not_backed_up_and_its_earlier_backup_stays(program: Program, path: Path, fault: str) -> None:
    good = compressed()
    path.write_bytes(good)
    program("backup")
    stamps = program.stamps("a.b")
    spoil(path, good, fault)
    said = program("backup", status=3)
    assert "a.b: not a whisper file, not backed up:" in said
    assert program.stamps("a.b") == stamps
    assert "1 good" in program("verify")


@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_backup_of_a_damaged_one_is_bad(program: Program, path: Path, fault: str) -> None:
    spoil(path, compressed(), fault)
    put(program, path.read_bytes())
    path.unlink()
    assert "0 good" in program("verify", status=3)
    assert "no good backup is left" in program("restore", status=3)
    assert not path.exists()


@pytest.mark.parametrize("fault", ["cut", "flipped"])
def test_a_damaged_live_one_is_moved_aside_and_restored_whole(program: Program, path: Path, fault: str) -> None:
    good = compressed()
    path.write_bytes(good)
    program("backup")
    spoil(path, good, fault)
    spoilt = path.read_bytes()
    said = program("restore")
    assert "1 created" in said and "WARNING: a.b: the file there was no whisper file" in said
    assert path.read_bytes() == good
    (aside,) = path.parent.glob("b.wsp.broken-*")
    assert aside.read_bytes() == spoilt


@pytest.mark.parametrize("content", [compressed(), opaque(1)], ids=["crc", "older"])
def test_an_identical_live_one_is_already_whole(program: Program, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    program("backup")
    assert "1 already whole, 0 skipped" in program("restore")
    assert program.stamp.exists()


@pytest.mark.parametrize("noop", [[], ["-n"]], ids=["", "noop"])
def test_a_live_one_that_differs_is_left_named_and_no_success(program: Program, path: Path, noop: list[str]) -> None:
    path.write_bytes(compressed(seed=1))
    put(program, compressed(seed=2))
    said = program("restore", "disk", *noop, status=3)
    assert "1 skipped" in said and "1 compressed, differing, 1 failed" in said
    assert "a.b: the file there differs from the backup, and compressed whisper files cannot be healed" in said
    assert STAMP in said and not program.stamp.exists()
    assert path.read_bytes() == compressed(seed=1)
    assert not list(path.parent.glob("*.broken-*"))
    if not noop:
        assert "1 replaced" in program("restore", "disk", "--overwrite")
        assert path.read_bytes() == compressed(seed=2)


def spoil(path: Path, content: bytes, fault: str) -> None:
    """Write `content` cut to a tenth, or with a bit of its header flipped, long ago."""
    flipped = bytearray(content)
    flipped[cwhisper.TABLE + 300] ^= 4
    path.write_bytes(content[: len(content) // 10] if fault == "cut" else flipped)
    os.utime(path, (1, 1))


def test_one_that_expands_beyond_what_it_declares_is_refused_and_reading_it_ends_there(program: Program) -> None:
    content = compressed()
    put(program, content + bytes(50_000_000))
    for command in ("verify", "restore"):
        said = program(command, status=3)
        assert f"its content is longer than the {len(content)} bytes that it may have" in said


@given(strategies.binary(max_size=600), strategies.booleans())
def test_no_rubbish_behind_the_magic_word_raises_anything(rubbish: bytes, has_version: bool) -> None:
    content = cwhisper.MAGIC + (b"\x01" if has_version else b"") + rubbish
    cwhisper.damage(content)
    cwhisper.declared_size(content)

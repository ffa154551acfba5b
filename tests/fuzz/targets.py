"""What hostile bytes must not do: each target takes any bytes and raises only where the program is wrong."""

from __future__ import annotations

import contextlib
import fnmatch
import gzip
import hashlib
import io
import os
import re
import struct
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import cramjam
import fill_oracle
import numpy as np
from pieces import Pieces
from test_fill import apply, check_against_oracle, check_interrupted, interrupted, make_file

from whisperbackup import options
from whisperbackup.repository.catalog import Catalog, UnsortedListing, newest_at, parse_suffix
from whisperbackup.repository.compression import CODECS, CorruptPayload, Expansion, compressor
from whisperbackup.repository.dates import parse_date
from whisperbackup.repository.stamps import next_stamp
from whisperbackup.repository.state import Record, State
from whisperbackup.storage.base import StoredObject
from whisperbackup.storage.noop import Noop
from whisperbackup.tree.names import ForeignName, encode, is_canonical, metric_name, metric_path
from whisperbackup.tree.selection import BadGlob, expand_braces, select
from whisperbackup.whisper import cwhisper, format, healing
from whisperbackup.whisper.format import CorruptFile

SECONDS = 5.0
CEILING = 1 << 30
NOW = 1_700_000_000 - 1_700_000_000 % 3600 + 1234

# -- whisper files -----------------------------------------------------------------------------------


def header(content: bytes) -> None:
    """A header is refused or consistent; what passes the check has the size that it declares."""
    try:
        found = format.parse_header(content)
    except CorruptFile:
        found = None
    if found is not None:
        assert 1 <= len(found.archives) <= format.MAX_ARCHIVES
        assert found.file_size == format.header_size(content) + 12 * sum(a.points for a in found.archives)
        assert all(archive.points > 0 for archive in found.archives)
        steps = [archive.step for archive in found.archives]
        assert steps == sorted(set(steps)) and steps[0] > 0
        assert 0 <= found.x_files_factor <= 1
    try:
        size = format.declared_size(content, CEILING)
    except CorruptFile:
        assert found is None or found.file_size > CEILING
    else:
        assert size is None or size <= CEILING
        assert cwhisper.is_compressed(content) or (found is not None and size == found.file_size)
    try:
        format.check(content)
    except CorruptFile:
        assert not cwhisper.is_compressed(content) or cwhisper.damage(content)
    else:
        assert cwhisper.is_compressed(content) or (found is not None and found.file_size == len(content))


VALUES = [1.0, 0.0, 2.0, 3.0, 5.0, -0.0, -1.0, 0.5, 1 / 3, float("nan"), float("inf"), -float("inf"), 1e300, 5e-324]
STEPS = [1, 2, 3, 5, 7, 10, 60, 300, 3600, 2**31 - 1, 2**31, 2**32 - 1]


def layout(pieces: Pieces) -> list[tuple[int, int]]:
    step, archives = pieces.choose(STEPS), []
    for _ in range(pieces.between(1, 4)):
        archives.append((min(step, 2**32 - 1), pieces.between(1, 16)))
        how = pieces.number(1)
        step = step * (how % 6 + 2) if how < 200 else step + how - 199
    return archives


def ring(pieces: Pieces, step: int, points: int, now: int, pattern: bytes) -> list[tuple[int, float]]:
    """Mostly what whisper would have left, with all that may have gone wrong; a byte of `pattern` for each slot."""
    newest = now // step * step
    base = newest - step * pieces.between(0, 3 * points) + (pieces.number(1) % step if pieces.number(1) > 250 else 0)
    slots = [(0, 0.0)] * points
    for k in range(points):
        t = newest - step * (points - 1 - k)
        how = pattern[k % len(pattern)] if pattern else 0
        value = VALUES[how % len(VALUES)] if how < 224 else float(k)
        kind = how >> 4
        lap = step * points
        stamp = {8: 0, 9: 0, 10: t - lap, 11: t - 2 * lap, 12: t + lap, 13: t + 2 * lap, 14: t + 1}.get(kind, t)
        if how == 255:
            stamp = pieces.number(4)
        if 0 <= stamp < 2**32:
            slots[(t - base) // step % points] = (stamp, value)
    if not slots[0][0] and 0 < base < 2**32 and pieces.number(1) < 200:
        slots[0] = (base, 0.0)
    return slots


def whisper_file(pieces: Pieces, archives: list[tuple[int, int]], now: int, method: int, factor: float) -> bytes:
    rings = [ring(pieces, step, points, now, pieces.take(points)) for step, points in archives]
    return make_file(archives, rings, method, factor)


def damaged(pieces: Pieces, content: bytes) -> bytes:
    """With some bytes changed, or cut."""
    changed = bytearray(content)
    for _ in range(pieces.number(1) % 4):
        position = pieces.between(0, len(changed) - 1) if pieces.number(1) % 4 else pieces.number(1) % 64
        changed[position % len(changed)] = pieces.number(1)
    return bytes(changed[: pieces.between(0, len(changed))] if pieces.number(1) > 240 else changed)


def heal(content: bytes) -> None:
    """Healing any live file from any backup does what the slow oracle says, or says that one is no whisper file."""
    pieces = Pieces(content)
    how = pieces.number(1)
    now = [NOW, NOW + pieces.number(2), max(pieces.number(4), 1), pieces.number(2) + 1, 2**32 - 1, 2**32 + 99][how % 6]
    method = pieces.choose([1, 2, 3, 4, 5, 6, 7, 8, 1, 9, 2**32 - 1])
    factor = pieces.choose([0, 0.5, 1, 1 / 3, 0.9])
    archives = layout(pieces)
    live = whisper_file(pieces, archives, now, method, factor)
    others = layout(pieces) if how & 0x40 else archives
    backup = whisper_file(pieces, others, now - pieces.choose([0, 0, 7, 60, 300]), method, factor)
    if how & 0x80:
        live, backup = damaged(pieces, live), damaged(pieces, backup)
    with page_size(64 if how & 0x20 else 4096):
        check_heal(live, backup, now, pieces)


@contextlib.contextmanager
def page_size(size: int) -> Iterator[None]:
    usual, healing.PAGE = healing.PAGE, size
    try:
        yield
    finally:
        healing.PAGE = usual


def check_heal(live: bytes, backup: bytes, now: int, pieces: Pieces) -> None:
    try:
        result = healing.heal(live, backup, now)
    except CorruptFile:
        for one in (live, backup):
            try:
                format.parse_header(one)
                format.check(one)
            except CorruptFile:
                return
        raise
    assert all(offset in range(len(live) - len(piece) + 1) for offset, piece in result.writes)
    healed = apply(live, result)
    format.check(healed)
    oracle = fill_oracle.Oracle(live, backup, now)
    expected = oracle.run()
    check_against_oracle(live, now, result, healed, expected)
    assert healing.heal(healed, backup, now)[:2] == ([], 0)
    states = interrupted(live, result, healing.PAGE)
    if states:
        state = states[pieces.between(0, len(states) - 1)]
        check_interrupted(live, backup, now, healed, state, oracle, expected)


def heal_many_archives(content: bytes) -> None:
    """Layouts that no schema has, as many archives as the header may count, keep to time and to the file."""
    pieces = Pieces(content)
    now = pieces.choose([NOW, 1, 2**31, 2**32 - 1, 2**33])
    files = []
    for _ in range(2):
        step, archives = 0, []
        for _ in range(pieces.between(1, format.MAX_ARCHIVES) if pieces.number(1) > 240 else pieces.between(1, 8)):
            step = min(step + 1 + pieces.number(pieces.number(1) % 4), 2**32 - format.MAX_ARCHIVES + len(archives))
            archives.append((step, 1 + (pieces.number(2) % 4096 if pieces.number(1) > 250 else pieces.number(1) % 32)))
        pattern = pieces.short()
        files.append(make_file(archives, [ring(pieces, s, n, now, pattern) for s, n in archives]))
    live, backup = files
    result = healing.heal(live, backup, now)
    healed = apply(live, result)
    format.check(healed)
    assert healed[: 16 + 12] == live[: 16 + 12]
    finest = format.parse_header(live).archives[0]
    before, after = (np.frombuffer(f, healing.RECORD, finest.points, finest.offset) for f in (live, healed))
    stamps = before["t"].astype(np.int64)
    base = healing.base_of(stamps, finest, now)
    if base is not None:
        span = finest.step * finest.points
        held = (stamps > now - span) & (stamps <= now + span) & ~np.isnan(before["v"]) & (stamps % finest.step == 0)
        held &= (stamps > 0) & ((stamps - base) // finest.step % finest.points == np.arange(finest.points))
        assert before[held].tobytes() == after[held].tobytes()
    assert healing.heal(healed, backup, now)[:2] == ([], 0)


# -- payloads ----------------------------------------------------------------------------------------

ROOM = 48 << 20  # bytes that reading a payload may take beside its content
WHOLE = make_file([(60, 20), (300, 40)], [[(NOW - NOW % 60 - 60 * k, k / 7) for k in range(n)] for n in (20, 40)])


def snappy_chunk(kind: int, body: bytes, length: int | None = None, checksum: int | None = None) -> bytes:
    if kind in (0, 1):
        try:
            plain = body if kind else bytes(cramjam.snappy.decompress_raw(body))
        except cramjam.DecompressionError:
            plain = b""
        body = struct.pack("<L", crc32c_masked(plain) if checksum is None else checksum) + body
    return bytes([kind]) + (len(body) if length is None else length).to_bytes(3, "little") + body


def crc32c_masked(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content[:300]:  # longer ones stay wrong: that is tried, too
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def zstd_frame(pieces: Pieces) -> bytes:
    """A frame of blocks as told, run-length ones that expand without end among them, under a header that may lie."""
    blocks, length = b"", 0
    count = pieces.number(1) % 64
    for number in range(count):
        kind = pieces.choose([1, 0, 1, 0, 2, 3]) if pieces.number(1) > 240 else pieces.number(1) & 1
        size = pieces.choose([1 << 17, 1000, 1, 0]) if pieces.number(1) < 240 else pieces.number(3) >> 3
        body = pieces.take(1 if kind == 1 else min(size, 9))
        size = size if kind == 1 or pieces.number(1) > 240 else len(body)
        blocks += (size << 3 | kind << 1 | (number == count - 1)).to_bytes(3, "little") + body
        length += size
    how = pieces.number(1)
    if how > 240:  # anything
        head = pieces.take(pieces.number(1) % 15)
    elif how > 160:  # one segment: the window is the content
        head = b"\xa0" + (length if how > 170 else pieces.number(4)).to_bytes(4, "little")
    elif how > 80:  # a window; 0x88: 128 MiB, the largest that is read
        head = b"\0" + pieces.choose([b"\x38", b"\x88", b"\0", b"\x89", b"\xff"])
    else:  # both
        head = b"\xc0\x88" + (length if how > 20 else pieces.number(8)).to_bytes(8, "little")
    return struct.pack("<L", 0xFD2FB528) + head + blocks


def deflated(pieces: Pieces) -> bytes:
    """A gzip member, its content or its deflated bytes as told, under a header and before a trailer that may lie."""
    plain = pieces.short() + bytes(pieces.choose([0, 1, 1 << 16, 1 << 22]))
    body = zlib.compress(plain, pieces.number(1) % 10, wbits=-15)
    if pieces.number(1) > 128:
        body = pieces.short()
        with contextlib.suppress(zlib.error):
            plain = zlib.decompressobj(-15).decompress(body, 1 << 23)
    trailer = struct.pack("<LL", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)
    flags = pieces.number(1) if pieces.number(1) > 128 else 0
    head = b"\x1f\x8b\x08" + bytes([flags]) + pieces.take(6) + (pieces.short() if flags else b"")
    return head + body + (trailer if pieces.number(1) < 224 else pieces.take(8))


def segment(pieces: Pieces, codec: str) -> bytes:
    kind = pieces.number(1) % 8
    if kind == 0:
        return pieces.short()
    if kind in (1, 2):
        zeros = bytes(pieces.choose([0, 1000, 1 << 20, 1 << 23]))
        return compressor(codec)(zeros if kind == 2 else WHOLE[: pieces.between(0, len(WHOLE))])
    if kind == 3:
        return pieces.short() * pieces.choose([1, 10, 1000, 5000])
    if codec == "sz":
        if kind == 4:
            return b"\xff\x06\x00\x00sNaPpY"
        lies = pieces.number(3) if pieces.number(1) > 240 else None
        checksum = pieces.number(4) if pieces.number(1) > 240 else None
        body = bytes(cramjam.snappy.compress_raw(pieces.short())) if kind == 5 else pieces.short()
        return snappy_chunk(pieces.choose([0, 1, 0xFE, 0x80, 2, 0xFF]), body, lies, checksum)
    if codec == "zst":
        if kind == 4:
            return struct.pack("<LL", 0x184D2A50 | pieces.number(1) & 15, pieces.number(1)) + pieces.short()
        return zstd_frame(pieces)
    return deflated(pieces)


def payload(pieces: Pieces, codec: str) -> bytes:
    """Parts of what the codec writes, and of what it never would, one after the other; then some bytes changed."""
    if pieces.number(1) < 32:
        return pieces.rest()
    count = pieces.number(1)
    whole = b"".join(segment(pieces, codec) for _ in range(count % 5 + 1))
    changed = bytearray(whole)
    for _ in range(pieces.number(1) % 4 if whole else 0):
        changed[pieces.number(3) % len(changed)] = pieces.number(1)
    return bytes(changed[: len(changed) - (pieces.number(2) if pieces.number(1) > 192 else 0)])


def expansion(content: bytes) -> None:
    """A payload is read up to its limit, with memory to match, or is a CorruptPayload; others who can read it agree."""
    pieces = Pieces(content)
    codec = pieces.choose(CODECS)
    limit = pieces.choose([4096, 0, 1 << 18, 1 << 20, 1 << 22])
    stored = payload(pieces, codec)
    with little_memory(ROOM + 3 * max(limit, 1 << 18) + 2 * len(stored)):
        try:
            expanded = Expansion(codec, stored)
            assert len(expanded.beginning) <= 1 << 18
            plain = expanded.content(limit)
        except CorruptPayload:
            return
    assert len(plain) <= limit
    assert plain.startswith(expanded.beginning)
    other = read_by_another(codec, stored, limit)
    assert other is None or other == plain


def read_by_another(codec: str, stored: bytes, limit: int) -> bytes | None:
    """What another library makes of a payload; None where it cannot read it."""
    try:
        if codec == "gz":
            return gzip.GzipFile(fileobj=io.BytesIO(stored)).read(limit + 1)
        return bytes((cramjam.snappy if codec == "sz" else cramjam.zstd).decompress(stored))
    except (OSError, EOFError, zlib.error, cramjam.DecompressionError):
        return None


@contextlib.contextmanager
def little_memory(room: int) -> Iterator[None]:
    """Fails where the block made the process larger by more than `room` bytes; Linux tells the peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        yield
        return
    before = resident("VmRSS")
    yield
    grown = resident("VmHWM") - before
    assert grown <= room, f"{grown} bytes, {room} expected"


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


# -- names, keys, dates, globs -------------------------------------------------------------------------


def is_safe(path: bytes) -> bool:
    return not any(folder in (b"", b".", b"..") for folder in path.split(b"/")) and b"\0" not in path


def names(content: bytes) -> None:
    """Every path has one name and comes back from it; no name leads out of the tree."""
    pieces = Pieces(content)
    way = pieces.number(1)
    body = pieces.rest()
    if way % 2:
        path = body.replace(b"\0", b"") + b".wsp"
        if is_safe(path) and path != b".wsp":
            name = metric_name(path)
            name.encode()
            assert not re.search(r"[\x00-\x1f\x7f/]", name)
            assert metric_path(name) == path
            assert is_canonical(name)
            assert name == ".".join(encode(part) for part in path.removesuffix(b".wsp").split(b"/"))
        return
    try:
        name = body.decode("utf-8", "surrogatepass" if way & 2 else "surrogateescape")
    except UnicodeDecodeError:
        return
    canonical = is_canonical(name)
    try:
        path = metric_path(name)
    except ForeignName as error:
        str(error).encode("utf-8", "backslashreplace")
        return
    assert is_safe(path) and path.endswith(b".wsp") and not path.startswith(b"/")
    if canonical:
        assert metric_name(path) == name


STAMPS = ["2026-11-23T00:51:25+00:00", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00",
          "2026-02-30T00:00:00+00:00", "2026-11-23T24:00:00+00:00", "0000-00-00T00:00:00+00:00"]  # fmt: skip
ENDS = [".sha1", ".missing", ".wsp.gz", ".wsp.sz", ".wsp.zst", ".wsp.xz", ".sha1x", ""]


class Listing(Noop):
    """A store that lists whatever it was told."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return (StoredObject(key, 7, None) for key in self.keys if key.startswith(prefix))


def key_of(pieces: Pieces, known: list[str]) -> str:
    if known and pieces.number(1) % 4:
        name = pieces.choose(known)
    else:
        name = pieces.text()
        known.append(name)
    how = pieces.number(1)
    if how < 16:
        return name + pieces.text()
    if how < 32:
        return f"{name}/.whisper-backup-{pieces.choose(STAMPS)}-{pieces.text()}"
    stamp = pieces.choose(STAMPS) if how < 224 else pieces.text()
    return f"{name}/{stamp}{pieces.choose(ENDS)}"


def listing(content: bytes) -> None:
    """Any listing is read to its end, or is out of order: every key is part of one metric, foreign, or not meant."""
    pieces = Pieces(content)
    path = pieces.choose(["", "", "/", "p/"])
    head = pieces.choose(["*", "*", "a*", "a.b"])
    known: list[str] = []
    keys = [path + key_of(pieces, known) for _ in range(pieces.number(1) % 32)]
    keys = [key for key in keys if key]
    if pieces.number(1) < 240:
        keys = sorted(set(keys))
    selection = select([head])
    meant = [key for key in keys if key.startswith(path + selection.prefixes[0])]
    catalog = Catalog(Listing(keys), path, selection)
    try:
        metrics = list(catalog)
    except UnsortedListing:
        assert meant != sorted(set(meant))
        return
    assert meant == sorted(set(meant))
    catalog.report_foreign()
    assert [metric.key for metric in metrics] == sorted({metric.key for metric in metrics})
    told = 0
    for metric in metrics:
        assert is_safe(metric_path(metric.name))
        objects = [metric.key + suffix for backup in metric.backups for suffix in backup.suffixes()]
        objects += [metric.key + suffix for orphan in metric.orphans for suffix in orphan.suffixes]
        objects += [f"{metric.key}{stamp}.missing" for stamp in metric.tombstones]
        assert len(set(objects)) == len(objects)
        assert {path + key for key in objects} <= set(keys)
        told += len(objects)
        assert all(backup.stamp <= metric.last_stamp for backup in metric.backups)
        assert newest_at(metric, None) == list(reversed(metric.backups))
        if metric.last_stamp:
            check_next(metric.last_stamp)
    if head == "*":
        assert told + catalog.foreign == sum(key.startswith(path) for key in keys)


def check_next(stamp: str) -> None:
    try:
        following = next_stamp(datetime(2026, 11, 23, tzinfo=UTC), stamp)
    except ValueError:
        assert stamp >= STAMPS[2]
    else:
        assert following > stamp
        assert parse_suffix(following + ".missing")


def dates(content: bytes) -> None:
    """A date is a stamp, which is a date again, or a ValueError or OverflowError."""
    text = os.fsdecode(content.replace(b"\0", b""))
    parse_suffix(text)
    try:
        stamp = parse_date(text, datetime(2026, 11, 23, tzinfo=UTC))
    except (ValueError, OverflowError):
        return
    assert parse_suffix(stamp + ".sha1") == (stamp, "sha1", None)
    assert parse_date(stamp, datetime(2026, 11, 23, tzinfo=UTC)) == stamp
    check_next(stamp)


IDENTITY = ("prefix", "store")
STATE_HEADER = f"whisper-backup state 1\t{hashlib.sha1(repr(IDENTITY).encode()).hexdigest()}\n".encode()


def state(content: bytes) -> None:
    """Whatever a state file holds, a run reads it or does without, and leaves a good one."""
    pieces = Pieces(content)
    how = pieces.number(1)
    head = pieces.choose(["*", "b*"])
    stored = payload(pieces, "gz") if how < 64 else STATE_HEADER * (how < 240) + pieces.rest()
    known = select([head])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        path.write_bytes(stored if how < 64 else gzip.compress(stored, 1)[: how - 255 or None if how > 224 else None])
        with little_memory(ROOM):
            old = State(str(path), IDENTITY, known)
            for key in ("a/", "a.b/", "b/"):
                record = old.recall(key)
                assert record is None or record.key == key
                old.note(record or Record(key, "1 2 3 4", "0" * 40, STAMPS[0], ""))
            old.write()
        new = State(str(path), IDENTITY, known)
        assert all(new.recall(key) for key in ("a.b/", "a/", "b/"))


WORDS = ["backup", "restore", "list", "disk", "s3", "-m", "--exclude", "-c", "--max-file-size", "-p", "-b", "-f", "-r",
         "-x", "--splay", "--storage-path", "-a", "--threads", "--keep-daily", "--", "region=x", "-n"]  # fmt: skip


def command_line(content: bytes) -> None:
    """Any command line is understood, or refused with status 2."""
    pieces = Pieces(content)
    words = []
    for _ in range(pieces.number(1) % 12):
        how = pieces.number(1)
        words.append(WORDS[how % len(WORDS)] if how < 160 else pieces.text())
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            meant = options.parse(words)
        except SystemExit as exit:
            assert exit.code in (0, 2)
            return
    assert meant.command in options.COMMANDS
    assert meant.prefix.startswith(b"/") and b"\0" not in meant.prefix
    assert meant.max_file_size > 0 and meant.processes > 0
    assert meant.storage_path == "" or meant.storage_path.endswith("/")


def globs(content: bytes) -> None:
    """A glob is refused, or matches what fnmatch says of its alternatives; the prefixes lead to all that matches."""
    pieces = Pieces(content)
    wanted = [pieces.text() + pieces.text() * (pieces.number(1) % 20) + pieces.text()]
    wanted += [pieces.text() for _ in range(pieces.number(1) % 3)]
    excluded = [pieces.text() for _ in range(pieces.number(1) % 3)]
    names = [name for name in (pieces.text() for _ in range(3)) if "/" not in name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            selection = select(wanted, excluded)
        except BadGlob:
            return
        includes, excludes = ([one for glob in some for one in expand_braces(glob)] for some in (wanted, excluded))
        for name in names:
            is_meant = any(fnmatch.fnmatchcase(name, glob) for glob in includes)
            is_meant &= not any(fnmatch.fnmatchcase(name, glob) for glob in excludes)
            assert (name in selection) == is_meant
            if is_meant:
                assert any((name + "/").startswith(prefix) for prefix in selection.prefixes)
                folders = name.split(".")[:-1]
                assert all(selection.may_hold(".".join(folders[:n]) + "." * (n > 0)) for n in range(len(folders) + 1))


def in_time(target: Callable[[bytes], None], content: bytes) -> None:
    """Fails where `target` needs more than SECONDS of processor time for what should take milliseconds."""
    began = time.process_time()
    target(content)
    assert time.process_time() - began < SECONDS


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (header, heal, heal_many_archives, expansion, names, listing, state, dates, command_line, globs)
}

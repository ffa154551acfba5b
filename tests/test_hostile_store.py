"""A store that lies: spoilt objects, bombs, marks, stamps and names that nobody wrote in good faith.

Whatever it holds, nothing is written but what checks, and only below the prefix; memory stays near what it is for
a good store; each metric is named with what is wrong; and all that is good comes back.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import random
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import servers
from conftest import Program, contents
from test_storage import open_store
from test_stores import connect

from whisperbackup.repository.catalog import MARK_SIZE
from whisperbackup.repository.compression import CODECS, CorruptPayload, Expansion, compressor
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.whisper import cwhisper

pytestmark = pytest.mark.slow

OLD, NEW = "2026-11-20T00:00:00+00:00", "2026-11-21T00:00:00+00:00"
POINTS = 600


def header(size: int) -> bytes:
    """The header of a whisper file that has this many bytes, or one point less."""
    return struct.pack(">2LfL3L", 1, 86400, 0.5, 1, 28, 60, (size - 28) // 12)


def whisper_file(seed: object, points: int = POINTS) -> bytes:
    return header(28 + 12 * points) + random.Random(str(seed)).randbytes(12 * points)


def sha1(content: bytes) -> bytes:
    return hashlib.sha1(content).hexdigest().encode()


class Spoilt(NamedTuple):
    """What a backup became, and what is to be said of it; nothing, if it can be told to be good all the same."""

    payload: bytes
    mark: bytes
    says: str


def flip(payload: bytes, bit: int) -> bytes:
    spoilt = bytearray(payload)
    spoilt[bit // 8] ^= 1 << bit % 8
    return bytes(spoilt)


def spoil(codec: str, content: bytes) -> dict[str, Spoilt]:
    """Everything that may have become of one backup of `content`."""
    compress = compressor(codec)
    payload, mark = compress(content), sha1(content)
    other, rubbish = whisper_file("another metric"), random.Random(codec).randbytes(5000)
    damaged = f"its {codec} payload is damaged: "
    cut = damaged + f"not {codec}, or cut off"
    changed = damaged + "its content does not have the SHA-1 of its mark"
    bad_mark = "its mark holds '[^']*' instead of a SHA-1"

    def of(spoilt: bytes, says: str) -> Spoilt:
        """A payload that has its own SHA-1 in the mark, as a clever liar would do it."""
        return Spoilt(compress(spoilt), sha1(spoilt), damaged + says)

    return {
        "payload-truncated": Spoilt(payload[: len(payload) // 2], mark, damaged),
        "payload-one-byte-short": Spoilt(payload[:-1], mark, "" if codec == "zst" else cut),  # of its checksum
        "payload-bit-flipped": Spoilt(flip(payload, len(payload) * 4), mark, damaged),
        "payload-of-another": Spoilt(compress(other), mark, changed),
        "payload-empty": Spoilt(b"", mark, damaged),
        "payload-enlarged": Spoilt(payload + b"garbage" * 100, mark, cut),
        "payload-rubbish": Spoilt(rubbish, mark, cut),
        "payload-twice": Spoilt(payload + payload, mark, damaged + "its content is longer than the 7228 bytes"),
        "payload-of-another-codec": Spoilt(compressor(CODECS[CODECS.index(codec) - 1])(content), mark, cut),
        "content-rubbish": of(rubbish, "its header counts"),
        "content-empty": of(b"", "only 0 bytes"),
        "content-short": of(content[:-12], "7216 bytes, its header declares 7228"),
        "content-long": of(content + b"\0", "its content is longer than the 7228 bytes"),
        "content-declares-4-gb": Spoilt(
            *of(header(1 << 32) + content[28:], "")[:2],
            f"its {codec} payload may be good, but its header declares 42949\\d+ bytes, more than",
        ),
        "content-not-that-of-the-mark": Spoilt(compress(flip(content, 999)), mark, changed),
        "mark-truncated": Spoilt(payload, mark[:20], bad_mark),
        "mark-bit-flipped": Spoilt(payload, flip(mark, 0), f"({bad_mark}|{changed})"),
        "mark-of-another": Spoilt(payload, sha1(other), changed),
        "mark-empty": Spoilt(payload, b"", bad_mark),
        "mark-enlarged": Spoilt(payload, mark + b"garbage", bad_mark),
        "mark-rubbish": Spoilt(payload, rubbish[:40], bad_mark),
        "mark-forges-a-line": Spoilt(payload, b"\n\x1b[2JERROR: all is lost\n", bad_mark),
        "mark-1-mb": Spoilt(payload, mark * 25_000, "its mark has 1000000 bytes instead of 40"),
        "mark-upper-case": Spoilt(payload, mark.upper(), ""),
        "mark-with-spaces": Spoilt(payload, b"  " + mark + b" ", ""),
        "mark-with-newline": Spoilt(payload, mark + b"\r\n", ""),
    }


def put(driver: Driver, metric: str, stamp: str, codec: str, payload: bytes, mark: bytes) -> None:
    driver.put(f"{metric}/{stamp}.wsp.{codec}", payload)
    driver.put(f"{metric}/{stamp}.sha1", mark)


@pytest.fixture(params=["disk", "s3-rclone"])
def liar(request: pytest.FixtureRequest, program: Program) -> Iterator[tuple[Driver, Callable[..., str]]]:
    """A store open to be written to, and what runs the program on it."""
    store = servers.store(request.param)
    run = connect(program, store)
    driver = open_store(store, program.bucket or str(program.store), create=True)
    yield driver, run
    driver.close()


def test_every_spoilt_object_is_named_and_everything_good_comes_back(
    program: Program, liar: tuple[Driver, Callable[..., str]]
) -> None:
    driver, run = liar
    expected: dict[str, bytes] = {}
    errors: dict[str, str] = {}
    good_older = 0  # much larger than the spoilt newest backup, so that restore, and verify, read them too
    codecs, processes = (CODECS[:1], 1) if program.bucket else (CODECS, 2)  # a client costs more than its work here
    for codec in codecs:
        for number, name in enumerate(spoil(codec, whisper_file(0))):
            older, content = whisper_file((codec, name, "older")), whisper_file((codec, name))
            spoilt = spoil(codec, content)[name]
            for metric in (f"{codec}.n{number}.{name}", f"{codec}.alone.{name}"):
                put(driver, metric, NEW, codec, spoilt.payload, spoilt.mark)
                path = metric.replace(".", "/") + ".wsp"
                if not spoilt.says:
                    expected[path] = content
                    continue
                how = "cannot be read" if name == "content-declares-4-gb" else "is bad"
                errors[metric] = rf"the backup of {re.escape(NEW)} {how}: {spoilt.says}"
                if "alone" not in metric:
                    put(driver, metric, OLD, codec, compressor(codec)(older), sha1(older))
                    seen = len(spoilt.payload) if len(spoilt.mark) >= MARK_SIZE else 0  # a cut mark counts as nothing
                    good_older += len(compressor(codec)(older)) > 2 * seen
                    expected[path] = older
    for number in range(3):
        good = whisper_file(number)
        put(driver, f"good.m{number}", NEW, "gz", compressor("gz")(good), sha1(good))
        expected[f"good/m{number}.wsp"] = good
    before = outside(program)

    said = run("verify", "-f", processes, status=3)
    assert failures(said).keys() == errors.keys()
    for metric, says in errors.items():
        assert re.match(says, failures(said)[metric][0]), failures(said)[metric]
    good_newest = len(expected) - sum("alone" not in metric for metric in errors)
    assert f" {good_newest + good_older} good" in said

    target = program.home / "target"
    target.mkdir()
    said = run("restore", "-p", target, "-f", processes, status=3)
    assert failures(said).keys() == errors.keys()
    for metric, says in errors.items():
        first, then = failures(said)[metric]
        assert re.match(says, first), first
        assert then == (
            "no good backup is left" if "alone" in metric else f"created from the older backup of {OLD} instead"
        )
    assert files(target) == expected
    run("restore", "-p", target, "-f", processes, status=3)  # into what is there now
    assert files(target) == expected
    assert outside(program) == before


def failures(said: str) -> dict[str, list[str]]:
    """The errors that a run named, by metric; what is said has no line that is not the program's own."""
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        assert line.isprintable()
        assert re.match(
            r"whisper-backup 1|(ERROR|WARNING): |(backup|verify|restore) |skipped \d+ unrecognized objects|m\d+: ", line
        ), line
        if (match := re.match(r"ERROR: (.*?): (.*)", line)) and "incomplete" not in match[1]:
            found.setdefault(match[1], []).append(match[2])
    return found


def outside(program: Program, *besides: str) -> dict[str, str]:
    """What the scratch folder holds beside the target, log and lock of a restore, and the notes of verify."""
    return {
        path: digest
        for path, digest in contents(program.home).items()
        if not path.startswith(("target/", "log", "lock", "state.bad", *besides))
    }


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- bombs -------------------------------------------------------------------------------------------

ZEROS = bytes(16 << 20)


def bomb(codec: str, beginning: bytes, size: int) -> bytes:
    """A payload that begins so and goes on with `size` zeros, made without expanding it anywhere."""
    repeats = size // len(ZEROS)
    if codec == "gz":
        start = zlib.compressobj(wbits=-15)
        first = start.compress(beginning) + start.flush(zlib.Z_FULL_FLUSH)
        return gzip.compress(b"")[:10] + first + zeros("gz") * repeats + gzip.compress(b"")[10:]
    return compressor(codec)(beginning) + zeros(codec) * repeats


@functools.cache
def zeros(codec: str) -> bytes:
    """ZEROS as a piece that can be said again and again in a payload."""
    if codec == "gz":
        deflate = zlib.compressobj(9, wbits=-15)
        return deflate.compress(ZEROS) + deflate.flush(zlib.Z_FULL_FLUSH)
    return compressor(codec)(ZEROS)


BOMBS = {
    "declares-little": (header(1 << 16), "its content is longer than the 65536 bytes"),
    "declares-240-mb": (header(240 << 20), "its content "),  # is longer; snappy's is shorter
    "declares-4-gb": (header((1 << 32) - 8), r"its header declares 42949\d+ bytes, more than --max-file-size"),
    "is-compressed-whisper": (cwhisper.MAGIC, "its content "),
    "is-no-whisper": (b"", "its header counts 0 archives"),
}
MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:], stderr=open(sys.argv[1], "w")).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, status)
"""


def peak(program: Program, command: str, target: Path) -> tuple[int, int, str]:
    """The most memory in bytes that one of a run's processes had, with all jobs in one; its status; what it said."""
    said = program.home / "said"
    options = ["-p", target, "-f", "1", "--threads", "4", "--max-file-size", "250M"]
    words = program.words(command, "disk", *options)
    # by way of a small process: what a child of this big one has at its birth would count
    ran = subprocess.run([sys.executable, "-c", MEASURED, said, *words], capture_output=True, text=True, check=True)
    used, status = ran.stdout.split()
    return int(used) * 1024, int(status), said.read_text()


def test_a_bomb_is_refused_without_its_memory(program: Program) -> None:
    driver = open_store(servers.store("disk"), str(program.store), create=True)
    good, target = whisper_file("good"), program.home / "target"
    target.mkdir()
    put(driver, "good", NEW, "gz", compressor("gz")(good), sha1(good))
    usual = {command: peak(program, command, target)[0] for command in ("verify", "restore")}
    errors = {}
    for codec in CODECS:
        size = (200 << 20) if codec == "sz" else (2 << 30)  # Snappy makes one of twenty at best
        for name, (beginning, says) in BOMBS.items():
            put(driver, f"{codec}.{name}", NEW, codec, bomb(codec, beginning, size), sha1(b"whatever"))
            how = f"is bad: its {codec} payload is damaged: {says}"
            if name == "declares-4-gb":
                how = f"cannot be read: its {codec} payload may be good, but {says}"
            errors[f"{codec}.{name}"] = f"the backup of {re.escape(NEW)} {how}"
    for command, before in usual.items():
        used, status, said = peak(program, command, target)
        assert status == 3
        assert used < before + 150_000_000
        assert failures(said).keys() == errors.keys()
        for metric, says in errors.items():
            assert re.match(says, failures(said)[metric][0]), failures(said)[metric]
    assert files(target) == {"good.wsp": good}


def test_a_compressed_whisper_file_and_a_large_one_are_proved_before_they_are_held(program: Program) -> None:
    """Both good: the way that a bomb fails on lets them through."""
    opaque = {f"opaque.{codec}": cwhisper.MAGIC + bytes(3_000_000) for codec in CODECS}
    large = {"large.gz": header(28 + 12 * 6_000_000) + bytes(12 * 6_000_000)}
    driver = open_store(servers.store("disk"), str(program.store), create=True)
    target = program.home / "target"
    target.mkdir()
    for name, content in (opaque | large).items():
        codec = name.partition(".")[2]
        put(driver, name, NEW, codec, compressor(codec)(content), sha1(content))
    assert "4 created" in program("restore", "disk", "-p", target)
    assert files(target) == {name.replace(".", "/") + ".wsp": content for name, content in (opaque | large).items()}


# -- payloads, bit by bit ----------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_no_bit_and_no_cut_raises_anything_but_corrupt_payload(codec: str) -> None:
    """What a codec's library raises else would cost its metric the older good backups, or the run a worker."""
    content = whisper_file("bits", 20)
    payload = compressor(codec)(content)
    spoilt = [flip(payload, bit) for bit in range(8 * len(payload))]
    spoilt += [payload[:length] for length in range(len(payload))]
    spoilt += [payload + more for more in (b"x", bytes(10), payload[:-1], os.urandom(1000), b"\x1f\x8b")]
    for bad in spoilt:
        try:
            Expansion(codec, bad).content(1 << 20)
        except CorruptPayload:
            pass


# -- stamps ------------------------------------------------------------------------------------------

STAMPS = {
    "9999-12-31T23:59:59+00:00": True,
    "9999-01-01T00:00:00+00:00": True,
    "0001-01-01T00:00:00+00:00": True,
    "0000-01-01T00:00:00+00:00": False,
    "2026-02-30T00:00:00+00:00": False,
    "2026-13-01T00:00:00+00:00": False,
    "2026-11-21T24:00:00+00:00": False,
    "9999-12-31T24:00:00+00:00": False,
    "2026-11-21T23:59:60+00:00": False,
    "2026-11-21T00:00:00+01:00": False,
    "2026-11-21T00:00:00Z": False,
    "-001-11-21T00:00:00+00:00": False,
}


def test_stamps_that_no_clock_shows(program: Program) -> None:
    """A date is a date, however far; what is none is none of ours, and left alone by everything."""
    tomorrow = stamp_of(datetime.now(UTC) + timedelta(days=1))
    driver = open_store(servers.store("disk"), str(program.store), create=True)
    first, second = whisper_file(1), whisper_file(2)
    expected, foreign = {}, set()
    for number, (stamp, is_date) in enumerate({**STAMPS, tomorrow: True}.items()):
        put(driver, f"m{number}", OLD, "gz", compressor("gz")(first), sha1(first))
        put(driver, f"m{number}", stamp, "gz", compressor("gz")(second), sha1(second))
        expected[f"m{number}.wsp"] = second if is_date and stamp > OLD else first
        foreign |= set() if is_date else {f"m{number}/{stamp}.sha1", f"m{number}/{stamp}.wsp.gz"}
    target = program.home / "target"
    target.mkdir()
    assert f"skipped {len(foreign)} unrecognized objects under this path" in program("verify")
    program("restore", "disk", "-p", target)
    assert files(target) == expected
    for path in target.iterdir():
        path.unlink()
    program("restore", "disk", "-p", target, "-c", OLD)
    assert set(files(target).values()) == {first}
    point = struct.pack(">Ld", int(time.time()) // 60 * 60 - 3600, 1.0)  # so that it is no recreated file
    for path in target.iterdir():
        path.write_bytes(header(28 + 12 * POINTS) + point + random.Random(3).randbytes(12 * POINTS - 12))
    program("backup", "disk", "-p", target, "-r", "1")
    for number, stamp in enumerate([*list(STAMPS)[1:], tomorrow], 1):
        (kept,) = set(program.stamps(f"m{number}")) - ({stamp} if not STAMPS.get(stamp, True) else set())
        assert kept > stamp or not STAMPS.get(stamp, True) or stamp > tomorrow  # whose clock was wrong
    target.joinpath("m0.wsp").rename(target / "m99.wsp")
    program("backup", "disk", "-p", target, "-x", "0")
    assert foreign <= set(program.objects())
    assert {key.split("/")[0] for key in set(program.objects()) - foreign} == {
        f"m{n}" for n in range(1, len(expected))
    } | {"m99"}


# -- names -------------------------------------------------------------------------------------------

NAMES = {
    "": None,
    "/": None,
    ".": None,
    "..": None,
    ".x": None,
    "a..b": None,
    "a//b": None,
    "../../x": None,
    "a/../../x": None,
    "/etc/cron.d/x": None,
    "%2E%2E.x": None,
    "a%00b": None,
    "a.%2E%2E.%2E%2E.x": None,
    "%2Fetc%2Fcron%2Ed%2Fx": b"%2Fetc%2Fcron%2Ed%2Fx.wsp",
    "a%2Fb": b"a%2Fb.wsp",
    "%2E%2E": b"...wsp",
    "%2E": b"..wsp",
    "a%0Ab": b"a\nb.wsp",
    "a%FFb": b"a\xffb.wsp",
    "line\nERROR: all is lost": b"line\nERROR: all is lost.wsp",
    "\x1b[2Jcursor": b"\x1b[2Jcursor.wsp",
    "rtl\u202egnp": "rtl\u202egnp.wsp".encode(),
    "~root.x": b"~root/x.wsp",
    "c:\\windows": b"c:\\windows.wsp",
    "%2Ewhisper-restore-0123456789abcdef": b".whisper-restore-0123456789abcdef.wsp",
    "x" * 251: b"x" * 251 + b".wsp",
    ".".join(["folder"] * 140): b"/".join([b"folder"] * 140) + b".wsp",
}
"""What the file of each is called; None: it has none."""

LONG = "y" * 2000  # bytes in one component: no file is called so


@pytest.mark.parametrize("kind", ["disk", "gcs"])
def test_no_name_leads_out_of_the_tree_and_what_has_a_file_round_trips(program: Program, kind: str) -> None:
    store = servers.store(kind)
    run = connect(program, store)
    driver = open_store(store, program.bucket or str(program.store), create=True)
    expected: dict[str, bytes] = {}
    foreign = 0
    for name, path in [*NAMES.items(), (LONG, b"")]:
        content = whisper_file(name, 10)
        try:
            put(driver, name, NEW, "gz", compressor("gz")(content), sha1(content))
        except StorageError:
            assert (kind, path) == ("disk", None)  # a directory cannot hold it
            continue
        foreign += 2 * (path is None)
        if path:
            expected[os.fsdecode(path)] = content
    driver.close()
    target, again = program.home / "target", program.home / "again"
    target.mkdir()
    again.mkdir()
    around = outside(program)

    assert f"{len(expected) + 1} metrics" in run("list")
    assert f"{len(expected) + 1} good" in run("verify")
    said = run("restore", "-p", target, status=3)
    (failed,) = failures(said).items()
    assert failed[0] == LONG
    assert failed[1][0].endswith("File name too long")
    assert f"skipped {foreign} unrecognized objects under this path" in said
    assert files(target) == expected
    for path in ("line\nERROR: all is lost.wsp", "\x1b[2Jcursor.wsp"):
        (target / path).write_bytes(b"broken")
        os.utime(target / path, (1, 1))
    said = run("restore", "-p", target, "-m", "line*", "-m", "?[[]2J*")
    assert not failures(said)
    assert said.count("moved aside") == 2
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in program.log.read_text().splitlines())
    for aside in target.glob("*.broken-*"):
        aside.unlink()
    program("backup", "disk", "-b", program.home / "second", "-p", target)
    program("restore", "disk", "-b", program.home / "second", "-p", again)
    assert files(again) == expected
    assert outside(program, "again/", "second/", "stamp", "state") == around

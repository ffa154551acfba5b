"""restore with increments: backup, increments, a lost tree, and every fault of what the store has of them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import whisper
from conftest import SCHEMAS, Program, add_point, contents, install_driver, wait_for
from test_opaque import compressed

from whisperbackup import main
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.whisper import span
from whisperbackup.whisper.healing import EVER

METRICS = ("a.one", "a.two", "b.three")


@pytest.fixture
def node(program: Program) -> Program:
    """Three metrics: a backup, an increment after it, and one with a new metric."""
    for number, metric in enumerate(METRICS):
        program.write(metric, number)
    settle()
    program("backup", "disk")
    for number in range(2):
        settle()
        for metric in METRICS:
            add_point(path_of(program, metric), 100.0 + number)
        if number:
            program.write("c.new")
        program("increment", "disk")
    return program


def settle() -> None:
    """Wait for the next second."""
    second = int(time.time()) + 1
    wait_for(lambda: time.time() >= second)


def path_of(program: Program, metric: str) -> Path:
    return program.prefix / (metric.replace(".", "/") + ".wsp")


def lose(program: Program) -> dict[str, str]:
    """What the tree held, which is empty then."""
    held = contents(program.prefix)
    shutil.rmtree(program.prefix)
    program.prefix.mkdir()
    return held


def parts(program: Program) -> list[Path]:
    return sorted(program.store.glob(".increments/*/*.wbi"))


def test_a_lost_tree_comes_back_as_it_was_at_the_last_increment(node: Program) -> None:
    held = lose(node)
    assert "4 created" in node("restore", "disk")
    assert contents(node.prefix) == held


def test_one_metric_and_a_glob_come_back_alone(node: Program) -> None:
    held = lose(node)
    node("restore", "disk", "-m", "a.two")
    assert contents(node.prefix) == {"a/two.wsp": held["a/two.wsp"]}
    node("restore", "disk", "-m", "c.*")
    assert contents(node.prefix) == {name: held[name] for name in ("a/two.wsp", "c/new.wsp")}


def test_a_live_file_is_healed_from_increments(node: Program) -> None:
    path, since = path_of(node, "a.two"), int(time.time()) - 100
    held = whisper.fetch(str(path), since)[1]
    lose(node)
    node("restore", "disk", "--no-increments")
    assert set(held) - set(whisper.fetch(str(path), since)[1]) >= {100.0, 101.0}
    assert "healed" in node("restore", "disk")
    assert {100.0, 101.0} <= set(whisper.fetch(str(path), since)[1])
    assert "3 already whole" in node("restore", "disk", "-m", "[ab].*")


def test_without_increments_only_backups_are_used(node: Program) -> None:
    held = lose(node)
    assert "3 created" in node("restore", "disk", "--no-increments")
    assert not path_of(node, "c.new").exists()
    assert contents(node.prefix) != held


def test_nothing_that_was_read_after_the_date_is_used(program: Program) -> None:
    path = program.write("a.one")
    settle()
    program("backup", "disk")
    states = []
    for number in range(2):
        settle()
        add_point(path, 7.0 + number)
        program("increment", "disk")
        settle()
        states.append((stamp_of(datetime.now(UTC)), path.read_bytes()))
        settle()
    for date, content in states:
        lose(program)
        program("restore", "disk", "-c", date)
        assert path.read_bytes() == content


def test_a_metric_without_a_whole_file_is_restored_from_what_there_is_and_named(node: Program) -> None:
    lose(node)
    shutil.rmtree(node.store / "a.one")
    said = node("restore", "disk", status=3)
    assert "a.one" in said
    assert "restored from what there is" in said
    assert path_of(node, "a.one").exists()


@pytest.mark.parametrize("cause", ["renamed", "its backup is damaged"])
def test_overwrite_replaces_no_file_by_what_is_not_the_whole_of_one(program: Program, cause: str) -> None:
    """The store has the last points of a file alone: with --overwrite, too, they are filled in."""
    path = program.write("a.one")
    settle()
    program("backup", "disk")
    time.sleep(2.1)  # born before the window
    if cause == "renamed":
        path = path.rename(path.with_name("two.wsp"))
    add_point(path, 7.0)
    settle()
    program("increment", "disk", "--lag", 0)
    if cause != "renamed":
        (backup,) = program.store.glob("a.one/*.gz")
        backup.write_bytes(b"damaged")
    held = path.read_bytes()
    add_point(path, 8.0)  # it may be in another slot
    live = path.read_bytes()
    for options, changed in ((["-n"], "would be replaced"), ([], "replaced,")):
        said = program("restore", "disk", "--overwrite", "-m", f"a.{path.stem}", *options, status=3)
        assert "restored from what there is, which replaces no file" in said
        assert f"1 {changed}" not in said
        assert path.read_bytes() == live
    path.unlink()
    assert "1 created" in program("restore", "disk", "--overwrite", "-m", f"a.{path.stem}", status=3)
    assert len(path.read_bytes()) == len(held)


@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty"])
def test_a_damaged_part_is_named_and_the_rest_is_used(node: Program, damage: str) -> None:
    held = lose(node)
    part = parts(node)[0]
    content = part.read_bytes()
    if damage == "gone":
        part.unlink()
    else:
        flipped = content[:30] + bytes([content[30] ^ 1]) + content[31:]
        part.write_bytes({"cut": content[:-9], "flipped": flipped, "empty": b""}[damage])
    for command in ("restore", "verify"):
        said = node(command, "disk", status=3)
        assert f"the increment of {part.parent.name}" in said
        assert part.name in said
    assert contents(node.prefix).keys() == held.keys()
    assert contents(node.prefix)["c/new.wsp"] == held["c/new.wsp"]


@pytest.mark.parametrize("missing", [1, "half"])
def test_of_a_part_that_was_cut_all_whole_frames_are_used(program: Program, missing: int | str) -> None:
    program.write("a.one")
    program("backup", "disk")
    for number in range(600):
        program.write(f"b.m{number:03}")
    settle()
    program("increment", "disk")
    (part,) = parts(program)
    (_, size, _, frames), *_ = json.loads((part.parent / "manifest.json").read_bytes())["parts"]
    assert len(frames) > 2
    end = size - missing if isinstance(missing, int) else size // 2
    os.truncate(part, end)
    whole = sum(records for _, offset, length, records in frames if offset + length <= end)
    held = lose(program)
    said = program("restore", "disk", status=3)
    assert "1 failed" in said
    assert f"part {part.name}: {end} bytes at 0 instead of {size}; the rest of it is used" in said
    restored = contents(program.prefix)
    assert len(restored) == whole + (frames[0][0] != "a.one/")
    assert restored.items() <= held.items()


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b'{"format": 2}'])
def test_a_damaged_manifest_is_named_and_the_rest_is_used(node: Program, content: bytes) -> None:
    lose(node)
    manifest = parts(node)[0].parent / "manifest.json"
    manifest.write_bytes(content)
    for command in ("restore", "verify"):
        assert manifest.parent.name in node(command, "disk", status=3)
    assert len(contents(node.prefix)) == 4


def test_a_metric_that_was_made_anew_before_its_first_backup_has_what_increments_have_of_it(node: Program) -> None:
    path, since = path_of(node, "c.new"), int(time.time()) - 3600
    held = set(whisper.fetch(str(path), since)[1]) - {None, 0.0}  # the newest gets another value
    path.unlink()
    whisper.create(str(path), SCHEMAS[0], xFilesFactor=0.0)
    add_point(path, 55.0)
    settle()
    node("backup", "disk")
    for increments in ("before", "before and after"):
        lose(node)
        node("restore", "disk")
        values = whisper.fetch(str(path), since)[1]
        assert held | {55.0} <= set(values), increments
        node("restore", "disk", "--overwrite", "-m", "c.new")
        assert set(whisper.fetch(str(path), since)[1]) == {55.0, None}, "as the newest backup is"
        add_point(path_of(node, "a.one"))
        settle()
        assert "another is in its place" in node("increment", "disk", status=3), "no backup has the new tree yet"


def test_what_a_date_removed_from_live_files_stays_away_once_backup_has_run_as_restore_says(program: Program) -> None:
    path = program.write("a.one")
    settle()
    program("backup", "disk")
    date = ["-c", program.stamps("a.one")[0]]
    said = program("restore", "disk", *date, "--overwrite")
    assert "run backup now" not in said, "there is no increment"
    held = path.read_bytes()
    settle()
    add_point(path, 666.0)
    program("increment", "disk")
    settle()
    assert "run backup now" not in program("restore", "disk", *date, "--overwrite", "-n")
    assert "run backup now" not in program("restore", "disk", *date)
    assert "WARNING: 1 files were set back: where increments have the points" in program(
        "restore", "disk", *date, "--overwrite"
    )
    assert path.read_bytes() == held
    settle()
    program("backup", "disk")
    settle()
    (program.store / f"a.one/{stamp_of(datetime.now(UTC))}.wsp.gz").write_bytes(b"of a run that was killed")
    lose(program)
    program("restore", "disk")
    assert path.read_bytes() == held


def test_a_date_within_a_backup_run(program: Program) -> None:
    """What the runs before found in a file is no proof for the backup that the date chooses."""
    path = program.write("a.one")
    settle()
    program("backup", "disk", "-r", 5)
    states = []
    for value in (7.0, 8.0, 9.0):
        settle()
        add_point(path, value)
        program("increment", "disk")
        add_point(path, 100 + value)  # in the same slot, nearly always
        settle()
        program("backup", "disk", "-r", 5)
        states.append((program.stamps("a.one")[-1], path.read_bytes()))
    for stamp, content in states:
        lose(program)
        program("restore", "disk", "-c", stamp)  # its run had not ended then
        assert path.read_bytes() == content


def test_a_date_before_which_the_newest_backup_was_thinned_out(program: Program) -> None:
    """The run that made that backup confirmed the metric, but not with the older backup that is left."""
    path, now = program.write("a.one"), int(time.time())
    settle()
    program("backup", "disk", "-r", 5)
    settle()
    whisper.update(str(path), 77.0, now - 300)  # another value in its slot
    program("increment", "disk")
    settle()
    program("backup", "disk", "-r", 5)
    thinned = program.stamps("a.one")[-1]
    settle()
    add_point(path, 88.0)
    program("increment", "disk", "--lag", 0)
    settle()
    date, content = stamp_of(datetime.now(UTC)), path.read_bytes()
    settle()
    add_point(path, 99.0)
    program("backup", "disk", "-r", 5)
    for suffix in ("sha1", "wsp.gz"):
        (program.store / "a.one" / f"{thinned}.{suffix}").unlink()
    lose(program)
    program("restore", "disk", "-c", date)
    assert path.read_bytes() == content


def test_an_increment_that_was_deleted_is_named_until_a_backup_has_its_points(node: Program) -> None:
    settle()
    node("increment", "disk")
    _, second, _ = sorted((node.store / ".increments").iterdir())
    shutil.rmtree(second)
    for command in ("restore", "verify"):
        assert f"the increment of {second.name}: it is not in the store" in node(command, "disk", status=3)
    settle()
    node("backup", "disk")
    for command in ("restore", "verify"):
        assert "not in the store" not in node(command, "disk")


def test_an_increment_that_was_deleted_is_named_until_backups_have_all_its_metrics(node: Program) -> None:
    settle()
    node("increment", "disk")
    _, second, _ = sorted((node.store / ".increments").iterdir())
    shutil.rmtree(second)
    settle()
    node("backup", "disk", "--exclude", "a.one")
    for command in ("restore", "verify"):
        assert "its points are lost\n" in node(command, "disk", status=3), "what was excluded is in no backup"
    settle()
    content = path_of(node, "a.one").read_bytes()
    path_of(node, "a.one").write_bytes(b"broken by a disk" * 99)
    path_of(node, "c.new").unlink()  # what is missing has not been stored either
    node("backup", "disk", status=3)
    path_of(node, "a.one").write_bytes(content)
    for command in ("restore", "verify"):
        said = node(command, "disk", status=3)
        assert "its points are lost, of what no backup run has stored since (a.one and 1 more)" in said
    settle()
    path_of(node, "c.new").unlink()  # again: restore has brought it back
    node("backup", "disk")
    for command in ("verify", "restore"):
        said = node(command, "disk", status=3)
        assert "its points are lost, of what no backup run has stored since (c.*)" in said, "nor what is missing"
        assert "not in the store" not in node(command, "disk", "-m", "a.*")
    settle()
    node("backup", "disk")
    for command in ("restore", "verify"):
        assert "not in the store" not in node(command, "disk")


def test_what_retention_deleted_is_not_called_lost(node: Program) -> None:
    """Not even where a backup never had one of the metrics, as one broken file is enough for."""
    settle()
    node("increment", "disk")
    broken = node.prefix / "z.wsp"
    broken.write_bytes(b"broken by a disk" * 99)
    settle()
    node("backup", "disk", status=3)
    broken.unlink()
    *_, manifest = sorted((node.store / ".increments").glob("*/manifest.json"))

    def verify(age: timedelta, days: int, ran: timedelta, status: int) -> str:
        """With an increment of this age gone, and a backup run since, with --keep-increments `days`."""
        now = datetime.now(UTC)
        change(manifest, reference=stamp_of(now - age), since=int((now - age).timestamp()), lag=0)
        for record in (node.store / ".runs").iterdir():
            change(record, keep_increments=days, begin=int((now - ran).timestamp()))
        return node("verify", "disk", status=status)

    day, hour = timedelta(days=1), timedelta(hours=1)
    assert "its points are lost, of what no backup run has stored since (z)" in verify(6 * day, 7, hour, 3)
    verify(6 * day, 5, hour, 0)
    verify(7 * day + hour, 7, 2 * hour, 0)  # a prune can delete it before the next backup
    verify(10 * day, 7, 5 * day, 3)  # whatever the time of the restore
    verify(6 * day, 7, hour, 3)
    change(min((node.store / ".runs").iterdir()), node="other", keep_increments=1, after_increment="3")
    node("verify", "disk", status=3)


def change(path: Path, **values: object) -> None:
    """Set these fields of a manifest, or of a run's record."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_half_a_backup_that_is_later_makes_no_date_pass_over_increments(program: Program) -> None:
    paths = [program.write(metric) for metric in ("a.one", "b.two")]
    settle()
    program("backup", "disk")
    settle()
    add_point(paths[1])
    program("increment", "disk")
    settle()
    program("backup", "disk")
    settle()
    add_point(paths[0])
    program("increment", "disk", "--lag", 0)
    first, _ = sorted((program.store / ".increments").iterdir())
    shutil.rmtree(first)  # backups have its points
    settle()
    date = stamp_of(datetime.now(UTC))
    settle()
    (program.store / "a.one" / f"{stamp_of(datetime.now(UTC))}.wsp.gz").write_bytes(b"of a run that was killed")
    held = contents(program.prefix)
    lose(program)
    assert "as their backup saw them" not in program("restore", "disk", "-c", date)
    assert contents(program.prefix) == held


def test_a_date_before_all_increments_is_told(program: Program) -> None:
    path = program.write("a.one")
    settle()
    program("backup", "disk", "-r", 5)
    settle()
    date = stamp_of(datetime.now(UTC))
    settle()
    add_point(path)
    program("backup", "disk", "-r", 5)
    assert "as their backup saw them" not in program("restore", "disk", "-c", date, "-n")
    settle()
    add_point(path)
    program("increment", "disk")
    said = program("restore", "disk", "-c", date, "-n")
    assert f"1 metrics are as their backup saw them: not all increments between that and {date} are kept" in said


def test_the_record_of_a_run_that_is_gone_is_no_lost_increment(node: Program) -> None:
    held = lose(node)
    (record,) = (node.store / ".runs").iterdir()
    record.unlink()
    for command in ("restore", "verify"):
        assert "0 failed" in node(command, "disk")
    assert contents(node.prefix) == held


@pytest.mark.parametrize("is_backed_up", [False, True])
@pytest.mark.parametrize("place", ["in the middle", "the last"])
def test_an_increment_that_was_deleted_is_named_also_where_a_date_needs_it(
    program: Program, place: str, is_backed_up: bool
) -> None:
    """What began or ended after the date makes nothing good."""
    path = program.write("a.one")
    settle()
    program("backup", "disk")
    for number in range(3 if place == "the last" else 4):
        if number == 3 - (place == "the last"):
            settle()
            date = stamp_of(datetime.now(UTC))
        settle()
        add_point(path, 7.0 + number)
        program("increment", "disk")
    _, lost, *_ = sorted((program.store / ".increments").iterdir())
    shutil.rmtree(lost)
    if is_backed_up:
        settle()
        program("backup", "disk")
    for command in ("restore", "verify"):
        assert f"the increment of {lost.name}: it is not in the store" in program(command, "disk", "-c", date, status=3)
    if is_backed_up and place == "in the middle":
        first, second = sorted((program.store / ".runs").iterdir())
        change(first, node="other", keep_increments=0, after_increment="3")
        program("restore", "disk", "-c", date, status=3)  # whatever another node's retention deletes
        change(second, keep_increments=0)  # retention deleted it, though not the older one: that has more metrics
        lose(program)
        assert "1 metrics are as their backup saw them" in program("restore", "disk", "-c", date)


@pytest.mark.parametrize("has_older", [False, True])
def test_a_date_for_which_not_all_increments_are_kept_gives_what_the_backup_saw(
    program: Program, has_older: bool
) -> None:
    """The backup between two increments is thinned out, and the first of these was deleted since it had its points."""
    paths = [program.write("a.one"), program.write("b.two")]
    states = []
    for number, command in enumerate(("backup", "increment", "backup", "increment", "backup", "increment")):
        settle()
        for path in paths:
            add_point(path, 7.0 + number)
        program(command, "disk", *(["-r", 5] if command == "backup" else ["--lag", 0]))
        states.append([path.read_bytes() for path in paths])
    settle()
    date = stamp_of(datetime.now(UTC))
    settle()
    for path in paths:
        add_point(path, 70.0)
    program("backup", "disk", "-r", 5)
    older, gone, _ = sorted((program.store / ".increments").iterdir())
    for increment in [gone] if has_older else [older, gone]:
        shutil.rmtree(increment)
    thinned = program.stamps("a.one")[2]
    for suffix in ("sha1", "wsp.gz"):
        (program.store / "a.one" / f"{thinned}.{suffix}").unlink()
    for options in (["-n"], []):
        lose(program)
        said = program("restore", "disk", "-c", date, *options)
        assert "1 metrics are as their backup saw them" in said
    assert paths[0].read_bytes() == states[2][0]
    assert paths[1].read_bytes() == states[5][1]


@pytest.mark.parametrize("command", ["restore", "verify"])
def test_workers_are_forked_when_no_thread_that_ended_can_hold_a_lock(
    node: Program, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """What reads manifests has ended for Python, but not yet for the C libraries: OpenSSL's end of a thread locks."""
    counts = node.home / "counts"
    install_driver(
        node,
        monkeypatch,
        f"""
import ctypes, os, threading
from whisperbackup.storage import disk
libc, at_the_end = ctypes.CDLL(None), ctypes.c_uint()
libc.pthread_key_create(ctypes.byref(at_the_end), ctypes.cast(libc.usleep, ctypes.c_void_p))

def note():
    with open_file("{counts}", "a") as file:
        file.write(f"{{len(os.listdir('/proc/self/task'))}} ")

open_file = open
os.register_at_fork(before=note)

def open(bucket, create, arguments):
    driver = disk.open(bucket, create, [])
    real = driver.get
    def get(key):
        if threading.current_thread() is not threading.main_thread():
            libc.pthread_setspecific(at_the_end, ctypes.c_void_p(200_000))
        return real(key)
    driver.get = get
    return driver
""",
    )
    node.environment["OPENBLAS_NUM_THREADS"] = "1"  # numpy's, which stays, and does no more than wait
    node(command, "shelf")
    assert {*counts.read_text().split()} == {"1"}


def test_a_backup_that_is_deleted_meanwhile_leaves_no_hole_before_later_increments(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one that replaces it is before increments that are not kept."""
    path = program.write("a.one")
    states = []
    for number, command in enumerate(("backup", "increment", "backup", "increment")):
        settle()
        add_point(path, 7.0 + number)
        program(command, "disk", *(["-r", 5] if command == "backup" else ["--lag", 0]))
        states.append(path.read_bytes())
    settle()
    date = stamp_of(datetime.now(UTC))
    settle()
    add_point(path, 70.0)
    program("backup", "disk", "-r", 5)
    gone, _ = sorted((program.store / ".increments").iterdir())
    shutil.rmtree(gone)
    chosen = program.store / "a.one" / program.stamps("a.one")[1]
    install_driver(
        program,
        monkeypatch,
        f"""
import pathlib
from whisperbackup.storage import disk
def open(bucket, create, arguments):
    driver = disk.open(bucket, create, [])
    real = driver.get
    def get(key):
        if key.startswith("a.one/"):
            for suffix in (".sha1", ".wsp.gz"):
                pathlib.Path("{chosen}" + suffix).unlink(missing_ok=True)
        return real(key)
    driver.get = get
    return driver
""",
    )
    lose(program)
    said = program("restore", "shelf", "-c", date, status=3)
    assert "was deleted during this run, and not all increments since" in said
    assert path.read_bytes() == states[0]
    lose(program)
    assert "1 metrics are as their backup saw them" in program("restore", "disk", "-c", date)
    assert path.read_bytes() == states[0]


@pytest.mark.parametrize("what", ["gone", "rewritten", "whole"])
@pytest.mark.parametrize("is_before_the_next", [True, False])
def test_increments_that_are_gone_or_rewritten_make_no_hole_before_a_date_and_are_told(
    program: Program, what: str, is_before_the_next: bool
) -> None:
    """Neither in a metric that has later records, nor one that has none, nor where the date is just after them."""
    paths = [program.write("a.one"), program.write("b.quiet")]
    program.write("c.later")
    dates = []
    for number, command in enumerate(("backup", "backup", "increment", "backup", "increment")):
        for path in paths if number != 4 else paths[:1]:
            add_point(path, 7.0 + number)
        if number >= 3:
            add_point(program.prefix / "c/later.wsp", 7.0 + number)
        settle()
        program(command, "disk", *(["-r", 9] if command == "backup" else []))
        dates.append(stamp_of(datetime.now(UTC)))
        if number == 1:
            states = [path.read_bytes() for path in paths]
        settle()
    later = (program.prefix / "c/later.wsp").read_bytes()
    for path in (*paths, program.prefix / "c/later.wsp"):
        add_point(path, 70.0)
    program("backup", "disk", "-r", 9)
    middle, _ = sorted((program.store / ".increments").iterdir())
    for metric in ("a.one", "b.quiet"):
        thinned = program.stamps(metric)[2]
        for suffix in ("sha1", "wsp.gz"):
            (program.store / metric / f"{thinned}.{suffix}").unlink()
    if what == "gone":
        shutil.rmtree(middle)
    if what == "rewritten":
        change(middle / "manifest.json", all_records=9)
    lose(program)
    said = program("restore", "disk", "-c", dates[4], "-m", "c.later")
    assert "as their backup saw them" not in said, "its backup is later than what is gone"
    assert (program.prefix / "c/later.wsp").read_bytes() == later
    shutil.rmtree(program.prefix / "c")
    said = program("restore", "disk", "-c", dates[3 if is_before_the_next else 4], "-m", "[ab].*")
    if what == "whole":
        assert "metrics are as their backup saw them" not in said
        assert not {path.read_bytes() for path in paths} & {*states}
    else:
        assert "2 metrics are as their backup saw them" in said
        assert [path.read_bytes() for path in paths] == states


def test_increments_that_begin_after_a_date_say_nothing_of_it(program: Program) -> None:
    """Such as those with another --exclude, or of another host."""
    path = program.write("a.one")
    for number, command in enumerate(("backup", "increment", "backup", "increment", "backup")):
        settle()
        add_point(path, 70.0 + number)
        program(command, "disk", *(["-r", 9] if command == "backup" else []))
        if number == 1:
            shutil.copy(path, program.home / "held")
            date = stamp_of(datetime.now(UTC))
    later = max((program.store / ".increments").iterdir()) / "manifest.json"
    run = sorted((program.store / ".runs").iterdir())[1].name.removesuffix(".json")
    change(later, exclude=["tmp.*"], reference=run)
    lose(program)
    assert "as their backup saw them" not in program("restore", "disk", "-c", date)
    assert path.read_bytes() == (program.home / "held").read_bytes()


def test_that_retention_deleted_the_last_increment_before_a_date_is_told(program: Program) -> None:
    path = program.write("a.one")
    for number, command in enumerate(("backup", "increment", "increment", "backup", "increment", "backup")):
        settle()
        add_point(path, 70.0 + number)
        program(command, "disk", *(["-r", 9] if command == "backup" else []))
        if number == 0:
            held = path.read_bytes()
        if number == 2:
            date = stamp_of(datetime.now(UTC))
    _, gone, _ = sorted((program.store / ".increments").iterdir())
    shutil.rmtree(gone)
    for record in (program.store / ".runs").iterdir():
        change(record, keep_increments=0)
    lose(program)
    assert "1 metrics are as their backup saw them" in program("restore", "disk", "-c", date)
    assert path.read_bytes() == held


def test_a_manifest_that_is_not_listed_yet_is_read_all_the_same(node: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swift's listings lag behind."""
    held = lose(node)
    install_driver(
        node,
        monkeypatch,
        """
import os
from whisperbackup.storage import disk

class Late(disk.Disk):
    def list(self, prefix):
        return (found for found in super().list(prefix) if not found.key.endswith("manifest.json"))

def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Late(os.fsencode(bucket))
""",
    )
    node("restore", "shelf")
    assert contents(node.prefix) == held


def test_parts_without_a_manifest_are_no_increment(node: Program) -> None:
    lose(node)
    (parts(node)[1].parent / "manifest.json").unlink()
    node("restore", "disk")
    assert contents(node.prefix).keys() == {"a/one.wsp", "a/two.wsp", "b/three.wsp"}
    node("verify", "disk")


def test_verify_reads_every_part(node: Program) -> None:
    assert "5 good" in node("verify", "disk")
    assert "3 good" in node("verify", "disk", "--no-increments")
    assert "4 good" in node("verify", "disk", "-c", parts(node)[0].parent.name)


def test_older_backups_are_healed_in_beside_increments(program: Program) -> None:
    path = program.write("a.one", 1)
    full = {t: v for t, v in points_of(path) if v is not None}
    settle()
    program("backup", "disk")
    settle()
    path.unlink()
    whisper.create(str(path), [(1, 120), (60, 120)], xFilesFactor=0.0)
    add_point(path, 5.0)
    settle()
    program("backup", "disk")
    settle()
    add_point(path, 6.0)
    program("increment", "disk")
    newest = {t: v for t, v in points_of(path) if v is not None}
    lose(program)
    program("restore", "disk")
    restored = dict(points_of(path))
    coarse = [t for t in full if t < time.time() - 300 and t not in newest]
    assert coarse
    assert all(restored.get(t) == full[t] for t in coarse)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("layout", [[(1, 1000), (60, 2000)], [(60, 300)]])
def test_increments_of_the_day_on_which_a_disk_died_are_used(
    program: Program, layout: list[tuple[int, int]], is_there: bool
) -> None:
    """The newest backup is that of the new file; the increments of the old one are later than its last backup."""
    path, now = program.prefix / "m.wsp", int(time.time())
    whisper.create(str(path), [(1, 1000), (60, 2000)], xFilesFactor=0.0)
    whisper.update_many(str(path), [(now - 60 * age, math.sqrt(age)) for age in range(5, 1900)])
    settle()
    program("backup", "disk")
    settle()
    day = {now - 60 * age: 4000.0 + age for age in (1, 2, 3)}
    whisper.update_many(str(path), list(day.items()))
    program("increment", "disk")
    settle()
    path.unlink()
    whisper.create(str(path), layout, xFilesFactor=0.0)
    add_point(path, 7777.0)
    program("backup", "disk")
    settle()
    add_point(path, 8888.0)
    program("increment", "disk")
    if not is_there:
        path.unlink()
    is_small = layout[0][0] == 60
    for options in (["-n"], []):
        said = program("restore", "disk", *options, status=3 if is_small else 0)  # points of a second do not fit
    assert "1 needed an older backup" in said
    step = layout[0][0]
    (begin, _, _), values = whisper.fetch(str(path), now - 300)
    assert {values[(t // step * step - begin) // step] for t in day} == set(day.values())
    assert {8888.0} <= set(newest_points(path))


@pytest.mark.parametrize("resized", [["10:360"]], indirect=True)
def test_a_span_that_only_an_earlier_layout_has_is_not_skipped(
    resized: tuple[Program, Path, dict[int, float]],
) -> None:
    program, path, held = resized
    small = path.read_bytes()
    lose(program)
    span = ["--until", stamp_of(datetime.fromtimestamp(max(held) + 599, UTC))]
    for options in (["-n"], []):
        assert "1 " + ("would be " if options else "") + "created" in program("restore", "disk", *span, *options)
    assert held.items() <= coarse_points(path).items()
    path.write_bytes(small)
    for options in (["-n"], []):
        said = program("restore", "disk", *span, *options, status=3)
        assert re.search(r"m: \d+ points of another layout do not fit into the file there", said)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_point_that_was_ahead_of_the_clock_when_the_layout_changed_comes_back(
    program: Program, is_there: bool
) -> None:
    """A sender's clock was seconds ahead at the backup and at the increment; at the restore the time has come."""
    path, ahead = program.prefix / "m.wsp", int(time.time()) + 5
    whisper.create(str(path), [(1, 3600)])
    whisper.update_many(str(path), [(ahead, 7777.0)])
    settle()
    program("backup", "disk")
    path.unlink()
    whisper.create(str(path), [(1, 1800), (60, 120)])
    settle()
    add_point(path, 1.0)
    program("increment", "disk")
    if not is_there:
        path.unlink()
    wait_for(lambda: time.time() >= ahead + 1)
    for options in (["-n"], []):
        assert "0 failed" in program("restore", "disk", *options)
    assert {1.0, 7777.0} <= set(newest_points(path))


def test_history_that_has_become_too_old_for_the_layout_in_which_a_file_comes_back_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The earlier layout has room for all points at the increment; the later one keeps coarser points for longer."""
    program, now = Program(tmp_path), int(time.time())
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(60, 240)], xFilesFactor=0.0)
    whisper.update_many(str(path), [(now - 60 * age, float(age)) for age in range(5, 235)])
    settle()
    program("backup", "disk")
    resize(path, "60:120", "300:200")
    settle()
    add_point(path, 7777.0)
    program("increment", "disk")
    path.unlink()
    assert "0 failed" in program("restore", "disk", "-n")
    monkeypatch.setattr(time, "time", lambda: now + 20000.0)
    for options in (["-n"], []):
        capfd.readouterr()
        assert main.main([*program.words("restore", "disk", "--nolock", "-f", "1")[3:], *options]) == 3
        said = capfd.readouterr().err
        assert re.search(r"m: \d+ points of another layout do not fit into the file there", said)
        assert "so that it has 60:120 300:200 too" in said


@pytest.fixture
def resized(program: Program, request: pytest.FixtureRequest) -> tuple[Program, Path, dict[int, float]]:
    """A metric with two days of history in its backup; then its layout changed, and an increment has one point more."""
    path, now = program.prefix / "m.wsp", int(time.time())
    whisper.create(str(path), [(60, 120), (600, 500)], xFilesFactor=0.0)
    whisper.update_many(str(path), [(now - 600 * age, float(age)) for age in range(300)])
    settle()
    program("backup", "disk")
    held = coarse_points(path)
    assert len(held) > 200
    resize(path, *request.param)
    settle()
    add_point(path, 7777.0)
    program("increment", "disk")
    return program, path, held


def resize(path: Path, *archives: str) -> None:
    command = [sys.executable, Path(sys.executable).parent / "whisper-resize.py", "--nobackup", path, *archives]
    subprocess.run(command, check=True, capture_output=True)


def coarse_points(path: Path) -> dict[int, float]:
    """The points before the finest archive."""
    now = int(time.time())
    (begin, end, step), values = whisper.fetch(str(path), now - 2 * 86400, now - 8000)
    return {t: v for t, v in zip(range(begin, end, step), values, strict=True) if v is not None}


def newest_points(path: Path) -> list[float]:
    return [v for v in whisper.fetch(str(path), int(time.time()) - 300)[1] if v is not None]


@pytest.mark.parametrize("resized", [["60:120"]], indirect=True)
def test_history_that_the_later_layout_has_no_room_for_comes_back_in_the_earlier_one(
    resized: tuple[Program, Path, dict[int, float]],
) -> None:
    program, path, held = resized
    small = path.read_bytes()
    lose(program)
    for options in (["-n"], []):
        assert "0 failed" in program("restore", "disk", *options)
    assert held.items() <= coarse_points(path).items()
    assert 7777.0 in newest_points(path)
    path.write_bytes(small)
    for options in (["-n"], []):
        said = program("restore", "disk", *options, status=3)
        assert re.search(r"m: \d+ points .* do not fit into the file there", said)
        assert said.count("do not fit into the file there") == 1, "named once"
    assert path.stat().st_size == len(small)
    program("restore", "disk", "--overwrite")
    assert held.items() <= coarse_points(path).items()
    assert 7777.0 in newest_points(path)


@pytest.mark.parametrize("resized", [["10:360"]], indirect=True)
def test_history_that_neither_layout_has_room_for_is_named_until_the_file_is_enlarged(
    resized: tuple[Program, Path, dict[int, float]],
) -> None:
    program, path, held = resized
    lose(program)
    for options in (["-n"], [], [], ["-n"], ["--overwrite", "-n"], ["--overwrite"]):
        said = program("restore", "disk", *options, status=3)
        assert re.search(r"m: \d+ points .* do not fit into the file there", said)
        assert "so that it has 60:120 600:500 too" in said
    assert 7777.0 in newest_points(path)
    resize(path, "10:360", "60:120", "600:500")
    assert "0 failed" in program("restore", "disk")
    assert held.items() <= coarse_points(path).items()
    assert 7777.0 in newest_points(path)


def test_increments_that_a_compressed_backup_cannot_take_are_named_and_the_backup_is_restored(program: Program) -> None:
    """go-carbon was told to write ordinary files again, and made this one anew."""
    path = program.prefix / "m.wsp"
    backup = compressed()
    path.write_bytes(backup)
    settle()
    program("backup", "disk")
    path.unlink()
    whisper.create(str(path), [(1, 3600), (60, 120)], xFilesFactor=0.0)
    settle()
    add_point(path, 7777.0)
    program("increment", "disk")
    empty = program.home / "empty"
    whisper.create(str(empty), [(1, 3600), (60, 120)], xFilesFactor=0.0)
    lose(program)
    for options in (["-n"], []):
        said = program("restore", "disk", *options, status=3)
        assert re.search(
            "m: increments have later points of it, but its backup of .* is a compressed whisper file", said
        )
    assert path.read_bytes() == backup
    path.write_bytes(empty.read_bytes())
    said = program("restore", "disk", status=3)
    assert re.search("m: its backup of .* is a compressed whisper file, .* only the points of increments", said)
    assert 7777.0 in newest_points(path)
    program("restore", "disk", "--overwrite", status=3)
    assert path.read_bytes() == backup
    path.write_bytes(compressed(seed=2))
    assert "1 skipped" in program("restore", "disk", status=3)
    assert path.read_bytes() == compressed(seed=2)
    assert "0 failed" in program("restore", "disk", "--overwrite", "--no-increments")
    assert path.read_bytes() == backup


def test_records_of_a_file_that_is_too_large_are_left_out_and_named_and_the_others_are_used(program: Program) -> None:
    path = program.write("m")
    settle()
    program("backup", "disk")
    settle()
    add_point(path, 7777.0)
    program("increment", "disk")
    held = path.read_bytes()
    path.unlink()
    whisper.create(str(path), [(1, 100_000)])
    for value in (8888.0, 9999.0):
        settle()
        add_point(path, value)
        program("increment", "disk")
    path.unlink()
    for options in (["-n"], []):
        said = program("restore", "disk", "--max-file-size", "1M", *options, status=3)
        assert re.search(
            r"ERROR: .*m: 2 records of increments are left out, the first is in that of .*: .* 1200028 bytes", said
        )
        assert "more than --max-file-size" in said
    assert path.read_bytes() == held
    path.unlink()
    program("restore", "disk")
    assert {8888.0, 9999.0} <= set(newest_points(path))


def points_of(path: Path) -> list[tuple[int, float | None]]:
    """The points of the last archive that reaches back two hours."""
    (begin, end, step), values = whisper.fetch(str(path), int(time.time()) - 6900)
    return list(zip(range(begin, end, step), values, strict=True))


def window(program: Program) -> tuple[str, str, int, int]:
    """A span of ten minutes some time ago, as options and in Unix time."""
    begin = int(time.time()) // 60 * 60 - 1800
    return stamp_of(datetime.fromtimestamp(begin, UTC)), stamp_of(datetime.fromtimestamp(begin + 600, UTC)), begin, 600


@pytest.mark.parametrize("increments", [[], ["--no-increments"]])
def test_only_the_points_of_a_span_are_healed(program: Program, increments: list[str]) -> None:
    path = program.write("a.one")
    settle()
    program("backup", "disk")
    program("increment", "disk")
    full = dict(points_of(path))
    path.unlink()
    whisper.create(str(path), [(60, 60)], xFilesFactor=0.0)
    since, until, begin, length = window(program)
    program("restore", "disk", "--from", since, "--until", until, *increments)
    for t, value in points_of(path):
        assert value == (full[t] if begin <= t <= begin + length else None)
    assert "0 points filled" in program("restore", "disk", "--from", since, "--until", until, *increments)


def test_a_span_mends_no_file_that_was_cut_off_and_says_that_more_may_be_missing(program: Program) -> None:
    path = program.write("a.one")
    content = path.read_bytes()
    program("backup", "disk")
    since, until, *_ = window(program)
    path.unlink()
    whisper.create(str(path), SCHEMAS[0])
    for part, status in ((path.read_bytes(), 0), (content[: len(content) // 2], 3)):
        path.write_bytes(part)
        os.utime(path, (1, 1))
        said = program("restore", "disk", "--from", since, "--until", until, status=status)
        if status:
            assert "a.one: it was cut off, and has lost more than that time" in said
            assert path.read_bytes() == part
        else:
            assert "WARNING: 1 files were created or healed with the points of --from and --until alone" in said
    program("restore", "disk")
    assert path.read_bytes() == content


def test_a_missing_file_is_created_only_if_it_has_points_in_the_span(program: Program) -> None:
    path = program.write("a.one")
    full = dict(points_of(path))
    program("backup", "disk")
    path.unlink()
    assert "1 skipped" in program("restore", "disk", "--until", "2001-01-01")
    assert not path.exists()
    since, until, begin, length = window(program)
    said = program("restore", "disk", "--from", since, "--until", until)
    assert "1 created" in said
    assert "WARNING: 1 files were created or healed with the points of --from and --until alone" in said
    assert re.search(rf"using only points from {re.escape(since)} \(.* here\) until {re.escape(until)} \(", said)
    held = {t: v for t, v in points_of(path) if v is not None}
    assert held == {t: v for t, v in full.items() if begin <= t <= begin + length and v is not None}
    assert held
    program("restore", "disk")
    assert {t: v for t, v in points_of(path) if v is not None} == {t: v for t, v in full.items() if v is not None}


@pytest.mark.parametrize("options", [[], ["--no-increments"]])
def test_a_slot_that_a_span_cuts_is_not_filled_from_a_part_of_its_points(program: Program, options: list[str]) -> None:
    """The file was made anew with five minutes for one; then a restore of any span, and of all."""
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(60, 240)], xFilesFactor=0.5, aggregationMethod="sum")
    hour = int(time.time()) // 300 * 300 - 3600
    whisper.update_many(str(path), [(hour + 60 * number, 2.0**number) for number in range(40)])
    program("backup", "disk")
    whole = {hour + 300 * slot: sum(2.0 ** (slot * 5 + number) for number in range(5)) for slot in range(8)}
    for since, until in ((120, 1500), (300, 1199), (240, 1140), (0, 90), (0, 1050)):
        path.unlink()
        whisper.create(str(path), [(300, 288)], xFilesFactor=0.5, aggregationMethod="sum")
        begin, end = (stamp_of(datetime.fromtimestamp(hour + each, UTC)) for each in (since, until))
        program("restore", "disk", "--from", begin, "--until", end, *options, status=3)
        held = {t: value for t, value in points_of(path) if value is not None}
        assert held == {t: v for t, v in whole.items() if hour + since <= t and t + 240 <= hour + until}
        program("restore", "disk", *options, status=3)  # single minutes have no room
        assert {t: value for t, value in points_of(path) if value is not None} == whole


def test_a_slot_that_a_span_cuts_is_not_aggregated_from_a_part_of_its_points(program: Program) -> None:
    """The backup has all single points, and the file none."""
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(60, 240), (300, 288)], xFilesFactor=0.0, aggregationMethod="sum")
    hour = int(time.time()) // 300 * 300 - 3600
    whisper.update_many(str(path), [(hour + 60 * number, 1.0) for number in range(40)])
    program("backup", "disk")
    path.unlink()
    whisper.create(str(path), [(60, 240), (300, 288)], xFilesFactor=0.0, aggregationMethod="sum")
    begin, end = (stamp_of(datetime.fromtimestamp(hour + each, UTC)) for each in (120, 1320))

    def sums() -> dict[int, float]:
        ring = path.read_bytes()[16 + 2 * 12 + 240 * 12 :]
        return {t - hour: value for t, value in struct.iter_unpack(">Ld", ring) if t}

    program("restore", "disk", "--from", begin, "--until", end)
    assert sums() == dict.fromkeys((300, 600, 900), 5.0)
    program("restore", "disk")
    assert sums() == dict.fromkeys(range(0, 2400, 300), 5.0)


def test_a_file_that_was_taken_whole_before_a_gap_in_increments_is_named_and_replaces_none(program: Program) -> None:
    """No backup is as old as the date."""
    program.write("a.one")
    settle()
    program("backup", "disk")
    settle()
    path = program.write("c.new")
    for number in range(3):
        settle()
        add_point(path, 7.0 + number)
        program("increment", "disk")
    settle()
    date = stamp_of(datetime.now(UTC))
    settle()
    program("backup", "disk")
    _, gone, _ = sorted((program.store / ".increments").iterdir())
    shutil.rmtree(gone)
    for record in (program.store / ".runs").iterdir():
        change(record, keep_increments=0)
    live = path.read_bytes()
    said = program("restore", "disk", "-m", "c.new", "-c", date, "--overwrite", status=3)
    assert "c.new: increments have all of it as it was once, but some of those that followed are not kept" in said
    assert path.read_bytes() == live
    path.unlink()
    assert "1 created" in program("restore", "disk", "-m", "c.new", "-c", date, status=3)
    assert 9.0 in newest_points(path)


@pytest.mark.parametrize("method", ["sum", "average", "last"])
def test_a_slot_that_a_span_cuts_is_right_after_a_restore_of_the_rest(program: Program, method: str) -> None:
    """carbon was back on a new disk in the hour in which the span ends, and the backup was made in that hour, too."""
    path = program.prefix / "m.wsp"
    layout = [(60, 600), (3600, 24)]
    hour = int(time.time()) // 3600 * 3600 - 4 * 3600
    values = [(hour + 60 * number, float(number)) for number in range(60)]

    def make(some: list[tuple[int, float]]) -> None:
        path.unlink(missing_ok=True)
        whisper.create(str(path), layout, xFilesFactor=0.0, aggregationMethod=method)
        whisper.update_many(str(path), some)

    def coarse() -> list[float]:
        ring = path.read_bytes()[16 + 2 * 12 + 600 * 12 :]
        return [value for t, value in struct.iter_unpack(">Ld", ring) if t]

    make(values[:30])
    program("backup", "disk")
    whole = {}
    for spans in ([], [0], [1200]):
        make(values[40:])
        for until in spans:
            program("restore", "disk", "--until", stamp_of(datetime.fromtimestamp(hour + until, UTC)))
        program("restore", "disk")
        whole[str(spans)] = coarse()
    (expected,) = whole.pop("[]")
    assert whole == {"[0]": [expected], "[1200]": [expected]}


@pytest.mark.parametrize("until", range(450, 690, 60))
def test_a_slot_that_a_span_cuts_is_not_aggregated_from_slots_that_it_cuts_too(program: Program, until: int) -> None:
    """Of three archives: the span ends in a minute, of which it has some of ten seconds; ten minutes need all."""
    path = program.prefix / "m.wsp"
    layout = [(10, 1000), (60, 1000), (600, 200)]
    hour = int(time.time()) // 3600 * 3600 - 3600
    whisper.create(str(path), layout, aggregationMethod="sum")
    whisper.update_many(str(path), [(hour + 10 * number, 1.0) for number in range(360)])
    program("backup", "disk")
    path.unlink()
    whisper.create(str(path), layout, aggregationMethod="sum")
    program("restore", "disk", "--until", stamp_of(datetime.fromtimestamp(hour + until, UTC)))
    tens, minutes, coarse = all_rings(path)
    assert len(tens) == until // 10 + 1
    assert minutes == dict.fromkeys(range(hour, hour + until // 60 * 60, 60), 6.0)
    assert coarse == dict.fromkeys(range(hour, hour + until // 600 * 600, 600), 60.0)


def layers(program: Program, fine: tuple[int, int], method: str = "sum") -> tuple[Path, int]:
    """Backups of the last four hours, each with one hour in minutes and all in five minutes; 1.0 a minute."""
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(60, 60), (300, 288)], xFilesFactor=0.5, aggregationMethod=method)
    end = int(time.time()) // 3600 * 3600
    for hour in range(4, 0, -1):
        now = end - 3600 * (hour - 1)
        whisper.update_many(str(path), [(now - 60 * age, 1.0) for age in range(60, 0, -1)], now=now)
        program("backup", "disk", "-r", 9)
        settle()
    path.unlink()
    whisper.create(str(path), [fine, (300, 2000)], xFilesFactor=0.5, aggregationMethod=method)
    return path, end


def rings_of(path: Path, fine: int) -> list[dict[int, float]]:
    content = path.read_bytes()[40:]
    return [
        {t: v for t, v in struct.iter_unpack(">Ld", ring) if t} for ring in (content[: fine * 12], content[fine * 12 :])
    ]


def test_a_longer_layout_gets_the_single_points_of_all_backups_and_right_aggregates(program: Program) -> None:
    """Of a coarser point no finer slot is made of which an older backup has the points."""
    path, end = layers(program, (60, 600))
    for options in (["-n"], []):
        assert " 288 points" in program("restore", "disk", "--from", "5h", *options)
    minutes, fives = rings_of(path, 600)
    assert minutes == dict.fromkeys(range(end - 4 * 3600, end, 60), 1.0)
    assert fives == dict.fromkeys(range(end - 4 * 3600, end, 300), 5.0)


def test_of_coarser_points_the_finest_of_all_backups_come_first(program: Program) -> None:
    """Not those of ten minutes of a newer backup, where an older one has minutes."""
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(10, 360), (60, 120), (600, 1000)], xFilesFactor=0.5, aggregationMethod="sum")
    end = int(time.time()) // 3600 * 3600
    for hour in range(4, 0, -1):
        now = end - 3600 * (hour - 1)
        whisper.update_many(str(path), [(now - 10 * age, 1.0) for age in range(360, 0, -1)], now=now)
        if hour % 2:
            program("backup", "disk", "-r", 9)
            settle()
    path.unlink()
    whisper.create(str(path), [(10, 4000), (60, 4000), (600, 4000)], xFilesFactor=0.5, aggregationMethod="sum")
    for options in (["-n"], [], []):
        said = program("restore", "disk", "--from", "5h", *options)
    assert " 0 points" in said
    tens, minutes, coarse = (dict(ring) for ring in all_rings(path))
    assert len(tens) == 840
    begin = end - 4 * 3600
    expected = {}
    for hour in range(4):
        step, value = (10, 1.0) if hour % 2 else (60, 6.0)
        expected |= dict.fromkeys(range(begin + 3600 * hour, begin + 3600 * (hour + 1), step), value)
    assert tens == expected
    assert minutes == dict.fromkeys(range(begin, end, 60), 6.0)
    assert coarse == dict.fromkeys(range(begin, end, 600), 60.0)


def all_rings(path: Path) -> list[dict[int, float]]:
    """The points of all archives."""
    content = path.read_bytes()
    rings = []
    for archive in whisper.info(str(path))["archives"]:
        ring = content[archive["offset"] :][: archive["size"]]
        rings.append({t: v for t, v in struct.iter_unpack(">Ld", ring) if t})
    return rings


def test_a_longer_layout_gets_the_single_points_of_all_backups_also_if_an_increment_has_it(program: Program) -> None:
    path, end = layers(program, (60, 600))
    add_point(path, 1.0)
    program("increment", "disk")
    assert "1 needed an older backup" in program("restore", "disk", "--from", "5h")
    minutes, fives = rings_of(path, 600)
    hours = range(end - 4 * 3600, end, 60)
    assert {t: v for t, v in minutes.items() if t < end} == dict.fromkeys(hours, 1.0)
    assert {t: v for t, v in fives.items() if t < end} == dict.fromkeys(hours[::5], 5.0)


@pytest.mark.parametrize("options", [[], ["--no-increments"]])
def test_increments_push_nothing_of_a_backup_out_of_a_longer_layout(program: Program, options: list[str]) -> None:
    """The next hour's minutes are in the slots of those that the backup has."""
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(60, 60), (300, 288)], xFilesFactor=0.5, aggregationMethod="sum")
    end = int(time.time()) // 3600 * 3600
    for command, now in (("backup", end - 3600), ("increment", end)):
        whisper.update_many(str(path), [(now - 60 * age, 1.0) for age in range(60, 0, -1)], now=now)
        settle()
        program(command, "disk", *(["--lag", 3 * 3600] if command == "increment" else []))
    path.unlink()
    whisper.create(str(path), [(60, 600), (300, 2000)], xFilesFactor=0.5, aggregationMethod="sum")
    program("restore", "disk", *options)
    minutes, fives = rings_of(path, 600)
    until = end - 3600 if options else end
    assert minutes == dict.fromkeys(range(end - 2 * 3600, until, 60), 1.0)
    assert fives == dict.fromkeys(range(end - 2 * 3600, until, 300), 5.0)


def test_a_layout_that_became_shorter_after_the_backup_displaces_none_of_its_points(program: Program) -> None:
    """What comes back in the earlier layout has its minutes, not the later one's five minutes."""
    path = program.prefix / "m.wsp"
    end = int(time.time()) // 3600 * 3600
    points = [(end - 60 * age, 1.0) for age in range(240, 0, -1)]
    for command, layout in (("backup", [(60, 600)]), ("increment", [(60, 30), (300, 100)])):
        path.unlink(missing_ok=True)
        whisper.create(str(path), layout, xFilesFactor=0.5, aggregationMethod="sum")
        for _ in layout:  # the minutes of which there is no room are summed up
            whisper.update_many(str(path), [(t, 1.0 if len(layout) == 1 else 5.0) for t, _ in points[::5]], now=end)
        whisper.update_many(str(path), points[-30:] if len(layout) > 1 else points, now=end)
        settle()
        program(command, "disk")
    lose(program)
    program("restore", "disk")
    assert all_rings(path) == [dict(points)]


@pytest.mark.parametrize("method", ["sum", "last"])
def test_single_points_beside_a_coarser_one_leave_their_aggregate_as_it_is(program: Program, method: str) -> None:
    """A restore from the newest backup, which has five minutes for one, and then one from those that have minutes."""
    path, end = layers(program, (60, 600), method)
    value = 5.0 if method == "sum" else 1.0
    for options in ([], ["-c", stamp_of(datetime.now(UTC))], ["--from", "5h"]):
        program("restore", "disk", *options)
        minutes, fives = rings_of(path, 600)
        assert fives == dict.fromkeys(range(end - 4 * 3600, end, 300), value)
    assert len(minutes) == 240


def test_a_span_may_be_longer_ago_than_the_backup_s_own_layout_reaches(program: Program) -> None:
    path, end = layers(program, (60, 600))
    for number in range(3):
        path.unlink()
        whisper.create(str(path), [(60, 600)])
        begin, until = end - 4 * 3600 + 600, end - 4 * 3600 + 1200 + 60 * number
        span = [stamp_of(datetime.fromtimestamp(each, UTC)) for each in (begin, until)]
        program("restore", "disk", "--from", span[0], "--until", span[1])
        held = {t for t, _ in struct.iter_unpack(">Ld", path.read_bytes()[28:]) if t}
        assert held == set(range(begin, until + 1, 60))


def test_a_gap_that_a_newer_backup_has_is_filled_from_those_of_its_time(program: Program) -> None:
    """A disk lost a part of a file, which was backed up so; nothing shows that the older one has more."""
    path = program.prefix / "m.wsp"
    now = int(time.time()) // 60 * 60
    points = [(now - 60 * age, float(age)) for age in range(1, 1400)]
    whisper.create(str(path), [(60, 1440)])
    whisper.update_many(str(path), points)

    def held() -> list[float | None]:
        return whisper.fetch(str(path), now - 7200, now - 60, now)[1]  # type: ignore[no-any-return]

    before = held()
    program("backup", "disk")
    settle()
    other = path.with_suffix(".new")
    whisper.create(str(other), [(60, 1440)])
    whisper.update_many(str(other), points[:40] + points[90:])
    path.write_bytes(other.read_bytes())  # so that it is no younger
    program("backup", "disk")
    assert "0 points filled" in program("restore", "disk")
    said = program("restore", "disk", "--from", "3h")
    assert "50 points filled" in said
    assert "1 needed an older backup" in said
    assert held() == before


def test_a_span_that_ends_now_cuts_no_slot(program: Program) -> None:
    path = program.prefix / "m.wsp"
    whisper.create(str(path), [(60, 240)], xFilesFactor=0.0, aggregationMethod="sum")
    now = int(time.time())
    whisper.update(str(path), 5.0, now)
    program("backup", "disk")
    path.unlink()
    whisper.create(str(path), [(3600, 24)], xFilesFactor=0.0, aggregationMethod="sum")
    until = stamp_of(datetime.fromtimestamp(now + 60, UTC))
    program("restore", "disk", "--until", until, status=3)
    assert [value for _, value in points_of(path) if value is not None] == [5.0]


def test_a_span_is_neither_empty_nor_for_overwriting(program: Program) -> None:
    assert "--overwrite" in program("restore", "disk", "--overwrite", "--from", "2026-01-01", status=2)
    assert "later than" in program("restore", "disk", "--from", "2026-01-02", "--until", "2026-01-01", status=2)


def test_a_dry_run_changes_nothing(node: Program) -> None:
    lose(node)
    said = node("restore", "disk", "-n")
    assert "4 would be created" in said
    assert re.search("a.one: would be created, from [^ ,]*, 2 increments\n", said)
    assert re.search("c.new: would be created, from increments\n", said)
    assert not contents(node.prefix)


def test_a_span_of_a_file_has_its_points_alone(program: Program) -> None:
    path = program.write("a.one", 2)
    now = int(time.time())
    assert not span.has_points(path.read_bytes(), (now + 86400, None), now)
    assert span.has_points(path.read_bytes(), EVER, now)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_span_leaves_out_no_point_of_a_sender_whose_clock_is_ahead(program: Program, is_there: bool) -> None:
    path, now = program.prefix / "m.wsp", int(time.time())
    whisper.create(str(path), [(60, 7200)])
    whisper.update_many(str(path), [(now - 600, 1.0), (now - 60, 2.0), (now + 3600, 3.0), (now + 86400 * 3, 4.0)])
    program("backup", "disk")
    path.unlink()
    if is_there:
        whisper.create(str(path), [(60, 7200)])
    for options in (["-n"], []):
        said = program("restore", "disk", "--from", "3min", *options, status=3 if is_there else 0)
        assert ("1 points of its backup of" in said) == is_there
    _, values = whisper.fetch(str(path), now - 3600, now + 86400 * 4, now + 86400 * 4)
    assert {value for value in values if value is not None} == ({2.0} if is_there else {2.0, 3.0, 4.0})

"""increment: what a run stores, where the next one begins, what it tells, and what retention leaves of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import servers
import whisper
from conftest import Program, add_point, children, install_driver, wait_for
from test_faults import mounted
from test_storage import open_store
from test_stores import connect

from whisperbackup.commands.increment import check_clock
from whisperbackup.commands.run_record import RunRecord
from whisperbackup.increments import expire, history, image, merge, order, reader
from whisperbackup.increments.manifest import Manifest, Run, increment_key, read_manifest
from whisperbackup.increments.names import Folding, Names
from whisperbackup.increments.record import decode
from whisperbackup.increments.window import Now
from whisperbackup.options import parse
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.catalog import Catalog
from whisperbackup.repository.stamps import stamp_at
from whisperbackup.runtime import clock, defaults
from whisperbackup.storage import disk
from whisperbackup.storage.base import Driver
from whisperbackup.tree import places
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import walk

PROCESSES = 2


@pytest.fixture
def stored(program: Program) -> Program:
    """Three metrics of some age, backed up; their schemas differ."""
    for number, metric in enumerate(("a.one", "a.two", "b.three")):
        program.write(metric, number)
    settle()  # born before the run
    program("backup", "disk")
    return program


def driver_of(program: Program) -> Driver:
    return open_store(servers.store("disk"), str(program.store))


def made(program: Program, driver: Driver | None = None, path: str = "") -> list[Manifest]:
    """The complete increments, the oldest first."""
    driver = driver or driver_of(program)
    return list(history.manifests(driver, path, history.look_at_all(driver, path).complete))


def runs(program: Program) -> list[Run]:
    driver = driver_of(program)
    return list(history.runs_of(driver, "", history.look_at_all(driver, "").runs))


def records(program: Program, number: int = -1) -> dict[str, object]:
    """What an increment has of each metric."""
    manifest, driver = made(program)[number], driver_of(program)

    def fetch(name: str, offset: int, size: int) -> bytes:
        return driver.get(increment_key(manifest.stamp, name))[offset : offset + size]

    return {found.key.decode()[:-1]: decode(found.content) for found in reader.read(manifest, fetch)}


def images(driver: Driver, path: str = "") -> dict[str, bytes]:
    """What the newest backups and all increments together say that the files hold."""
    found = history.look_at_all(driver, path)
    manifests = list(history.manifests(driver, path, found.complete))
    known_runs = list(history.runs_of(driver, path, found.runs))

    def fetch_of(stamp: str) -> reader.Fetch:
        return lambda name, offset, size: driver.get(path + increment_key(stamp, name))[offset : offset + size]

    streams = [reader.read(one, fetch_of(one.stamp)) for one in manifests]
    shares = {metric.key: metric.shares for metric in merge.join(streams, reader.stop)}
    backups = {}
    for metric in Catalog(driver, path, select(["*"])):
        if metric.backups:
            stamp = metric.backups[-1].stamp
            payload = driver.get(f"{path}{metric.key}{stamp}.wsp.gz")
            backups[metric.key] = stamp, gzip.decompress(payload)
    result = {}
    for key in sorted(shares.keys() | backups.keys()):
        stamp, content = backups.get(key, ("", None))
        records = [(decode(content), manifests[number]) for number, content in shares.get(key, [])]
        how = order.orders(records, stamp, known_runs, math.inf)
        whole = image.lay(content and bytes(content), order.Sorted.by(how, [record for record, _ in records]), 1 << 30)
        assert whole is not None
        result[key[:-1]] = whole.content
    return result


def live(program: Program) -> dict[str, bytes]:
    paths = program.prefix.rglob("*.wsp")
    return {".".join(p.relative_to(program.prefix).with_suffix("").parts): p.read_bytes() for p in paths}


def settle() -> None:
    """A stamp has whole seconds."""
    time.sleep(1.01 - time.time() % 1)


def test_backup_and_increments_together_are_the_live_files(stored: Program) -> None:
    for value in range(3):
        settle()
        add_point(stored.prefix / "a/one.wsp", float(value))
        add_point(stored.prefix / "a/two.wsp", float(value))
        if value == 1:
            stored.write("c.new", 2)
        said = stored("increment", "disk")
        assert "0 failed" in said
    assert images(driver_of(stored)) == live(stored)
    assert len(made(stored)) == 3


def test_a_window_begins_at_the_reference_less_the_lag_and_what_was_not_written_is_not_opened(stored: Program) -> None:
    settle()
    old = stored.prefix / "b/three.wsp"
    os.utime(old, (1, 1))
    settle()
    said = stored("increment", "disk", "--lag", "0")
    (first,) = made(stored)
    (run,) = runs(stored)
    assert (first.reference, first.lag) == (run.stamp, 0)
    assert run.begin - 1 <= first.since <= run.begin, "the kernel's uptime tells it, too, in whole seconds"
    assert set(records(stored)) >= {"b.three"}, "its ctime is new"
    assert "3 examined" in said
    time.sleep(2)
    add_point(stored.prefix / "a/one.wsp")
    settle()
    stored("increment", "disk", "--lag", "0")
    second = made(stored)[-1]
    assert second.reference == first.stamp
    assert first.begin - 1 <= second.since <= first.begin
    assert set(records(stored)) == {"a.one"}
    assert "2 not written to" in stored.log.read_text().splitlines()[-1]


def test_without_a_backup_run_that_counts_it_says_run_backup_first(program: Program) -> None:
    program.write("a.one")
    program.write("b.one")
    assert "run backup" in program("increment", "disk", status=1)
    program("backup", "disk", "-m", "a.*")
    assert "run backup first" in program("increment", "disk", status=1)
    program("backup", "disk", "--exclude", "b.*")
    assert "run backup first" in program("increment", "disk", status=1)
    program("increment", "disk", "--exclude", "b.*")
    assert set(records(program)) == {"a.one"}
    assert not program.store.joinpath(".increments/x").exists()


def test_it_has_a_lock_and_a_stamp_file_of_its_own(stored: Program) -> None:
    words = stored.words("increment", "disk")
    at = words.index("--lockfile")
    done = stored.start_words(words[:at] + words[at + 4 :])
    _, said = done.communicate(timeout=60)
    assert done.returncode == 0, said
    stamp = Path(defaults.on_this_machine(defaults.INCREMENT_STAMPFILE))
    assert stamp.exists()
    assert not Path(defaults.on_this_machine(defaults.STAMPFILE)).exists()
    assert not Path(defaults.on_this_machine(defaults.LOCKFILE)).exists()
    with stored.lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert stored.start_words(words[:at] + words[at + 4 :]).wait(60) == 0, "a backup does not hold it up"


def test_it_has_a_lock_and_a_stamp_of_its_own_where_those_of_all_commands_are_named(stored: Program) -> None:
    os.utime(stored.stamp, (1, 1))
    with stored.lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        stored("increment")
    assert stored.stamp.stat().st_mtime == 1
    assert Path(f"{stored.stamp}.increment").exists()


def test_the_options_of_one_metric_are_refused(stored: Program) -> None:
    assert "-m is not an option of increment" in stored("increment", "disk", "-m", "a.*", status=2)


def test_noop_changes_nothing(stored: Program) -> None:
    before = {path: path.stat().st_mtime_ns for path in stored.store.rglob("*")}
    said = stored("increment", "disk", "-n")
    assert "3 recorded" in said
    assert {path: path.stat().st_mtime_ns for path in stored.store.rglob("*")} == before
    assert "3 recorded" in stored("increment", "noop")


def test_json_has_the_counters_and_list_shows_runs_and_increments(stored: Program) -> None:
    summary = json.loads(stored("increment", "disk", "--json", "-q").splitlines()[-1])
    assert (summary["command"], summary["recorded"], summary["parts"], summary["status"]) == ("increment", 3, 1, 0)
    assert ", 1 increments, " in stored("list", "disk")
    first, second = [json.loads(line) for line in stored("list", "disk", "--runs", "--json").splitlines()]
    assert (first["command"], first["status"], first["unconfirmed"]) == ("backup", 0, 0)
    assert (second["command"], second["status"], second["records"]) == ("increment", 0, 3)
    assert datetime.fromisoformat(second["end"]) >= datetime.fromisoformat(second["begin"])
    assert len(stored("list", "disk", "--runs").splitlines()) == 2
    manifest = stored.store / increment_key(made(stored)[0].stamp)
    changed = json.loads(manifest.read_text()) | {"node": "other", "prefix": "/its", "all_records": 9}
    manifest.write_text(json.dumps(changed))
    run, increment = stored("list", "disk", "--runs").splitlines()
    assert increment.endswith(", 3 records kept, of /its on other")
    assert " on " not in run
    settle()
    stored("backup", "disk", "-m", "a.one")
    partial = max((stored.store / ".runs").iterdir())
    partial.write_text(json.dumps(json.loads(partial.read_text()) | {"node": "third"}))
    run, _, last = stored("list", "disk", "--runs").splitlines()
    assert " on " not in run, "one backup of a part, from another host, makes no other tree the usual one"
    assert last.endswith(" on third")


def test_no_command_takes_increments_and_records_of_runs_for_strangers(stored: Program) -> None:
    for path in ((), ("--storage-path", "node")):
        stored("backup", "disk", *path)
        stored("increment", "disk", *path)
        for command in (("backup", "-x", 0), ("purge",), ("list",), ("list", "--debris"), ("verify",)):
            said = stored(command[0], "disk", *command[1:], *path)
            assert "unrecognized" not in said or path == (), said
    assert "--storage-path node" in stored("list", "disk", "--storage-path", "nodes", status=1)
    assert len(made(stored)) == 1


def test_a_store_that_has_lost_its_backups_is_noticed(stored: Program) -> None:
    settle()
    for name in ("a.one", "a.two", "b.three"):
        shutil.rmtree(stored.store / name)
    assert "there were backups in it" in stored("increment", "disk", status=1)
    assert "there were backups in it" in stored("backup", "disk", status=1)
    shutil.rmtree(stored.store)
    assert "there were backups in it" in stored("increment", "disk", status=1)


# What cannot be read


def test_a_locked_or_unreadable_file_is_named_and_owed_until_it_is_read(stored: Program) -> None:
    path = stored.prefix / "a/one.wsp"
    for name in ("b.x", "b.y"):
        stored.write(name)
    settle()
    stored("backup", "disk")
    settle()
    add_point(path)
    folder = stored.prefix / "a"
    owned = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
    folder.chmod(0o000)
    try:
        run = stored.start_words([*owned, *stored.words("increment", "disk")])
        _, said = run.communicate(timeout=60)
    finally:
        folder.chmod(0o755)
    assert run.returncode == 3, said
    (first,) = made(stored)
    assert first.owed == {"a.": first.since + first.lag}
    time.sleep(2)
    settle()
    stored("increment", "disk", "--lag", "0")
    assert made(stored)[-1].owed == {}
    assert set(records(stored)) == {"a.one", "a.two"}, "the window of the folder begins where it did"
    assert images(driver_of(stored)) == live(stored)


def test_what_is_no_whisper_file_is_named_and_not_owed(stored: Program) -> None:
    (stored.prefix / "a/bad.wsp").write_bytes(b"no whisper file" * 99)
    (stored.prefix / "a/young.wsp").write_bytes(b"")
    said = stored("increment", "disk", status=3)
    assert "a.bad: not a whisper file" in said
    assert "1 too new" in said
    assert list(made(stored)[-1].owed or ()) == ["a.young/"]


def test_a_file_that_was_cut_short_is_owed_until_a_restore_has_mended_it(stored: Program) -> None:
    path = stored.prefix / "a/one.wsp"
    add_point(path)
    settle()
    stored("increment", "disk")
    add_point(path, 8.0)
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 12)
    os.utime(path, (time.time() - 99, time.time() - 99))
    settle()
    assert "a.one: not a whisper file" in stored("increment", "disk", status=3)
    first, second = made(stored)
    assert second.owed == {"a.one/": first.begin}
    stored("restore", "disk", "-m", "a.one")
    settle()
    stored("increment", "disk", "--lag", "0")
    assert made(stored)[-1].owed == {}
    assert "a.one" in records(stored)
    assert images(driver_of(stored)) == live(stored)


def test_a_new_file_that_was_cut_short_is_taken_whole_when_it_is_mended_whatever_the_lag_then(stored: Program) -> None:
    stored("increment", "disk", "--lag", 0)
    settle()
    path = stored.write("a.born")
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 1)
    stored("increment", "disk", "--lag", 0, status=3)
    path.write_bytes(whole)
    settle()
    assert "1 taken whole" in stored("increment", "disk", "--lag", 3600)
    assert images(driver_of(stored))["a.born"] == whole


def test_what_a_backup_did_not_find_is_owed_until_it_is_there_again(stored: Program) -> None:
    add_point(stored.prefix / "b/three.wsp")
    (stored.prefix / "b").rename(stored.home / "away")
    settle()
    stored("backup", "disk")
    for _ in range(2):
        settle()
        stored("increment", "disk")
        assert list(made(stored)[-1].owed or ()) == ["b."]
    (stored.home / "away").rename(stored.prefix / "b")
    settle()
    stored("increment", "disk")
    assert made(stored)[-1].owed == {}
    assert images(driver_of(stored)) == live(stored)


def test_a_tree_that_lost_half_its_files_is_no_reference(stored: Program) -> None:
    shutil.rmtree(stored.prefix / "a")
    settle()
    assert "is a disk not mounted" in stored("increment", "disk", status=3)
    settle()
    stored.write("a.one")
    stored.write("a.two")
    stored("increment", "disk")
    first, second = made(stored)
    assert second.reference == first.reference


def test_what_a_backup_run_did_without_is_not_missed(stored: Program) -> None:
    shutil.rmtree(stored.prefix / "a")
    settle()
    stored("increment", "disk", status=3)
    stored("backup", "disk")
    settle()
    stored("backup", "disk", "-m", "b.*")
    for _ in range(2):
        settle()
        stored("increment", "disk")
    assert made(stored)[-1].reference == made(stored)[-2].stamp


def test_half_of_the_files_that_a_backup_run_did_without_are_owed(stored: Program) -> None:
    stored("increment", "disk")
    settle()
    add_point(stored.prefix / "a/one.wsp")
    (stored.prefix / "a").rename(stored.home / "away")
    settle()
    stored("increment", "disk", status=3)
    stored("backup", "disk")
    settle()
    stored("increment", "disk", "--lag", 0)
    assert "a." in (made(stored)[-1].owed or ())
    (stored.home / "away").rename(stored.prefix / "a")
    settle()
    stored("increment", "disk", "--lag", 0)
    assert made(stored)[-1].owed == {}
    assert images(driver_of(stored)) == live(stored)


@pytest.fixture
def own_disk(program: Program) -> Iterator[Path]:
    """A file system of its own, that can be mounted below the tree and is there when it is not."""
    yield from mounted(program.home / "disk", "-t", "tmpfs", "none")


@pytest.fixture
def disk_below(program: Program, own_disk: Path) -> Iterator[Program]:
    """A tree with a disk mounted below it; half of the metrics are there."""
    for _ in mounted(program.prefix / "my disk", "--bind", str(own_disk)):
        for number, metric in enumerate(("a.one", "a.two", "my disk.one", "my disk.two")):
            program.write(metric, number)
        settle()
        program("backup", "disk")
        settle()
        program("increment", "disk")
        yield program


def below(found: Iterable[places.Place]) -> list[str]:
    """The places' keys, without the tree itself."""
    return [place.key for place in found if place.key]


AWAY = "my disk.*: the folder with these metrics is gone"
BACK = "my disk.*: no new backup is of this folder"


def test_what_is_on_a_disk_that_is_not_mounted_is_owed_until_it_is(disk_below: Program) -> None:
    stored, folder = disk_below, disk_below.prefix / "my disk"
    add_point(folder / "one.wsp", 77.0)
    settle()
    subprocess.run(["umount", folder], check=True)
    assert AWAY in stored("increment", "disk", status=3)
    stored.write("my disk.one")  # carbon makes it anew, in the empty folder
    stored.write("my disk.three")
    settle()
    assert AWAY in stored("increment", "disk", status=3)
    stored("backup", "disk")
    for _ in range(2):
        settle()
        assert "my disk" not in stored("increment", "disk", "--lag", 0)
    last = made(stored)[-1]
    waiting = below(place for place, _ in last.waiting)
    assert (waiting, below(last.places), below(last.away)) == (["my disk."], [], ["my disk."])
    assert last.records == 0, "the new files' points come once"
    shutil.rmtree(folder)
    folder.mkdir()
    subprocess.run(["mount", "--bind", stored.home / "disk", folder], check=True)
    settle()
    assert BACK in stored("increment", "disk", status=3)
    last = made(stored)[-1]
    assert (last.owed, last.waiting, below(last.places), below(last.away)) == ({}, (), ["my disk."], ["my disk."])
    settle()
    assert BACK in stored("increment", "disk", status=3)
    image = stored.home / "image.wsp"
    image.write_bytes(images(driver_of(stored))["my disk.one"])
    assert 77.0 in whisper.fetch(str(image), int(time.time()) - 600)[1]


def test_what_waits_for_a_disk_is_owed_also_to_a_file_that_cannot_be_read_when_it_is_back(disk_below: Program) -> None:
    stored, folder = disk_below, disk_below.prefix / "my disk"
    begin = made(stored)[-1].begin
    settle()
    add_point(folder / "one.wsp", 77.0)
    subprocess.run(["umount", folder], check=True)
    settle()
    stored("increment", "disk", status=3)
    subprocess.run(["mount", "--bind", stored.home / "disk", folder], check=True)
    settle()
    os.truncate(folder / "one.wsp", 10)  # as if it were being created
    stored("increment", "disk")
    assert made(stored)[-1].owed == {"my disk.one/": begin}


def test_a_place_that_goes_while_a_backup_looks_at_it_was_not_there(disk_below: Program) -> None:
    """What stands in for its files meanwhile may be in the store."""
    options = parse(disk_below.words("backup")[3:])
    seen, stats = places.Places(), RunStats("backup")
    record = RunRecord(options, driver_of(disk_below), stats, seen)
    list(walk(options.prefix, options.selection, places=seen))
    assert below(record.complete(stats).places) == ["my disk."]
    subprocess.run(["umount", disk_below.prefix / "my disk"], check=True)
    assert below(record.complete(stats).places) == []


def test_places_without_a_birth_are_told_by_their_file_systems() -> None:
    path = Path("/proc")
    place = places.at(b"/", "proc.")
    assert place is not None
    assert place.folder == f"{path.stat().st_ino:x}-0-{os.statvfs(path).f_fsid:x}"


@pytest.mark.parametrize("how", ["stopped", "for a part"])
def test_a_disk_that_was_away_during_any_backup_is_named_until_one_has_its_files(disk_below: Program, how: str) -> None:
    stored, folder = disk_below, disk_below.prefix / "my disk"
    subprocess.run(["umount", folder], check=True)
    stored("increment", "disk", status=3)
    stored.write("my disk.one")
    settle()
    if how == "stopped":
        record = json.loads(runs(stored)[-1].to_json()) | {"is_complete": False, "stamp": stamp_at(time.time())}
        driver_of(stored).put(f".runs/{record['stamp']}.json", json.dumps(record).encode())
    else:
        stored("backup", "disk", "-m", "my disk.*")
    shutil.rmtree(folder)
    folder.mkdir()
    subprocess.run(["mount", "--bind", stored.home / "disk", folder], check=True)
    for _ in range(2):
        settle()
        assert BACK in stored("increment", "disk", status=3)
    stored("backup", "disk")
    settle()
    stored("increment", "disk")
    assert images(driver_of(stored)) == live(stored)


def test_another_disk_in_the_place_of_one_is_not_that_one(disk_below: Program) -> None:
    stored, folder = disk_below, disk_below.prefix / "my disk"
    add_point(folder / "one.wsp", 77.0)
    settle()
    subprocess.run(["umount", folder], check=True)
    for _ in mounted(folder, "-t", "tmpfs", "none"):
        assert AWAY in stored("increment", "disk", status=3), "it is empty"
        stored.write("my disk.one")
        settle()
        assert AWAY in stored("increment", "disk", status=3)
    subprocess.run(["mount", "--bind", stored.home / "disk", folder], check=True)
    settle()
    stored("increment", "disk")
    image = stored.home / "image.wsp"
    image.write_bytes(images(driver_of(stored))["my disk.one"])
    assert 77.0 in whisper.fetch(str(image), int(time.time()) - 600)[1]


def test_a_disk_that_is_new_is_named_until_a_backup_has_it_and_missed_from_then_on(disk_below: Program) -> None:
    """A backup for a part is none; its files may have any times."""
    stored, folder = disk_below, disk_below.prefix / "new"
    for _ in mounted(folder, "-t", "tmpfs", "none"):
        path = stored.write("new.one")
        os.utime(path, (1, 1))
        settle()
        assert "new.*: no new backup is of this folder" in stored("increment", "disk", status=3)
        stored("backup", "disk", "-m", "new.*")
        assert below(runs(stored)[-1].places) == ["my disk.", "new."], "also where it did not look"
        settle()
        assert "new.*" in stored("increment", "disk", status=3)
        stored("backup", "disk")
        settle()
        stored("increment", "disk")
    settle()
    assert "new.*: the folder with these metrics is gone" in stored("increment", "disk", status=3)


def test_a_disk_that_increments_leave_out_is_not_missed(disk_below: Program) -> None:
    for _ in range(2):  # the first begins at the backup run, which had it
        settle()
        assert "my disk" not in disk_below("increment", "disk", "--exclude", "my disk.*")
    assert below(made(disk_below)[-1].places) == []


def test_a_backup_that_an_increment_overlaps_ends_the_waiting_for_a_disk_too(disk_below: Program) -> None:
    subprocess.run(["umount", disk_below.prefix / "my disk"], check=True)
    disk_below("increment", "disk", status=3)
    disk_below("backup", "disk")
    driver, newest = driver_of(disk_below), runs(disk_below)[-1]
    (disk_below.store / ".runs" / f"{newest.stamp}.json").unlink()  # as if it had begun before that increment
    before = stamp_at(datetime.fromisoformat(made(disk_below)[-1].stamp).timestamp() - 1)
    assert before > runs(disk_below)[-1].stamp
    driver.put(f".runs/{before}.json", replace(newest, stamp=before).to_json())
    settle()
    assert "my disk" not in disk_below("increment", "disk")


@pytest.mark.parametrize("point", ["", "tree", "tree/whisper"])
def test_a_tree_on_a_disk_is_missed_too(program: Program, own_disk: Path, point: str) -> None:
    """The disk is mounted at the prefix, or above it."""
    at = program.prefix
    program.prefix = at / point
    for _ in mounted(at, "--bind", str(own_disk)):
        program.prefix.mkdir(parents=True, exist_ok=True)
        for metric in ("a.one", "b.two"):
            program.write(metric)
        settle()
        program("backup", "disk")
        settle()
        add_point(program.prefix / "a/one.wsp", 77.0)
        settle()
        subprocess.run(["umount", at], check=True)
        program.prefix.mkdir(parents=True, exist_ok=True)
        for metric in ("a.one", "b.two"):
            program.write(metric)
        assert "*: the folder with these metrics is gone, or another" in program("increment", "disk", status=3)
        subprocess.run(["mount", "--bind", own_disk, at], check=True)
        settle()
        program("increment", "disk")
        assert made(program)[-1].waiting == ()
        image = program.home / "image.wsp"
        image.write_bytes(images(driver_of(program))["a.one"])
        assert 77.0 in whisper.fetch(str(image), int(time.time()) - 600)[1]


def test_a_disk_that_is_gone_for_a_week_is_not_waited_for(disk_below: Program) -> None:
    folder = disk_below.prefix / "my disk"
    subprocess.run(["umount", folder], check=True)
    driver = driver_of(disk_below)
    (only,) = made(disk_below)
    (disk,) = [place for place in only.places if place.key]
    others = [place for place in only.places if place != disk]
    old = {"places": others, "away": [disk], "waiting": [[disk, int(time.time()) - 8 * 86400]]}
    driver.put(increment_key(only.stamp), json.dumps(json.loads(only.to_json()) | old).encode())
    settle()
    assert "my disk" not in disk_below("increment", "disk")
    last = made(disk_below)[-1]
    assert (below(last.places), last.away, last.waiting) == ([], (disk,), ())
    subprocess.run(["mount", "--bind", disk_below.home / "disk", folder], check=True)
    settle()
    assert BACK in disk_below("increment", "disk", status=3)


def test_a_folder_that_a_service_has_mounted_anew_is_the_same(program: Program) -> None:
    """systemd does that for ReadWritePaths and the like: a run from a shell does not have it."""
    program.write("a.one")
    before = walked(program)
    for _ in mounted(program.prefix, "--bind", str(program.prefix)):
        for _ in mounted(program.prefix / "a", "--bind", str(program.prefix / "a")):
            assert walked(program) == before


def walked(program: Program) -> set[places.Place]:
    seen = places.Places()
    list(walk(os.fsencode(program.prefix), select(["*"]), places=seen))
    assert seen.used == seen.found == places.there(os.fsencode(program.prefix), seen.used)
    return seen.used


def test_file_systems_without_metrics_are_not_missed(disk_below: Program) -> None:
    (disk_below.prefix / "my disk/empty").mkdir()
    for _ in mounted(disk_below.prefix / "my disk/empty", "-t", "tmpfs", "none"):
        settle()
        disk_below("increment", "disk")
        disk_below("backup", "disk")
        assert below(made(disk_below)[-1].places) == below(runs(disk_below)[-1].places) == ["my disk."]
    settle()
    for metric in ("one", "two"):
        (disk_below.prefix / f"my disk/{metric}.wsp").unlink()
    assert AWAY not in disk_below("increment", "disk", "--exclude", "b.*")
    assert AWAY not in disk_below("increment", "disk"), "its metrics are gone, not the disk"


def test_a_clock_that_is_set_during_a_run_is_named() -> None:
    stats = RunStats("increment")
    now = Now(int(time.time()), "boot", clock.uptime())
    check_clock(now, 900, stats)
    assert not stats.failed
    check_clock(replace(now, time=now.time + 3600), 900, stats)
    assert stats.failed


def test_points_that_come_later_than_half_the_lag_are_warned_of(stored: Program) -> None:
    path = stored.prefix / "a/one.wsp"
    now = int(time.time())
    whisper.create(str(stored.prefix / "a/late.wsp"), [(1, 7200)], xFilesFactor=0.0)
    settle()
    time.sleep(1)  # clock and uptime are rounded each by itself: a window may begin a second early
    assert "use a larger --lag" not in stored("increment", "disk")
    settle()  # increments of one second have one reference
    for late in [path, stored.prefix / "a/late.wsp"]:
        whisper.update(str(late), 1.0, now - 600)
    assert "use a larger --lag" in stored("increment", "disk")


def test_a_file_born_in_the_window_is_taken_whole_but_not_thousands(stored: Program) -> None:
    settle()
    time.sleep(1)
    stored.write("n.new", 2)
    settle()
    time.sleep(1)  # clock and uptime are rounded each by itself: a window may begin a second early
    stored("increment", "disk")
    assert records(stored)["n.new"].is_whole  # type: ignore[attr-defined]
    settle()
    template = (stored.prefix / "n/new.wsp").read_bytes()
    for number in range(1100):
        path = stored.prefix / f"many/m{number:04}.wsp"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(template)
    said = stored("increment", "disk")
    assert "1000 taken whole" in said
    assert re.search("10[0-4] new, left to backup", said)  # some that were there before, too: a second of rounding
    assert "1104 recorded" in said


def test_large_files_born_in_the_window_are_not_all_held_at_once(stored: Program) -> None:
    settle()
    time.sleep(1)
    chance = random.Random(1)
    for number in range(25):  # of 2.4 MB
        path = stored.prefix / f"large/m{number:04}.wsp"
        path.parent.mkdir(exist_ok=True)
        whisper.create(str(path), [(60, 200_000)])
        with path.open("r+b") as file:
            file.seek(28)
            now = int(time.time()) // 60 * 60
            file.write(b"".join(struct.pack(">Ld", now + 60 * age, chance.random()) for age in range(-199_999, 1)))
    for number in range(20):
        whisper.create(str(path.with_name(f"empty{number}.wsp")), [(60, 200_000)])  # these take no memory
    said = stored("increment", "disk", "-f", "1")
    found = re.search("([0-9]+) taken whole, ([0-9]+) new, left to backup", said)
    assert found
    taken, left = int(found[1]), int(found[2])
    assert 20 + 15 < taken < 20 + 25
    assert 45 <= taken + left <= 48  # some that were there before, too: a second of rounding


# Faults


def test_an_increment_killed_before_its_manifest_is_none_and_the_next_takes_all(stored: Program) -> None:
    settle()
    add_point(stored.prefix / "a/one.wsp", 5.0)
    stored("increment", "disk")
    (only,) = made(stored)
    (stored.store / increment_key(only.stamp)).unlink()
    settle()
    stored("increment", "disk")
    second = made(stored)[-1]
    assert second.reference == only.reference
    assert second.stamp > only.stamp
    assert images(driver_of(stored)) == live(stored)
    debris = stored("list", "disk", "--debris")
    assert only.stamp in debris
    assert second.stamp not in debris


def test_two_increments_of_one_second_do_not_mix(stored: Program) -> None:
    settle()
    add_point(stored.prefix / "a/one.wsp", 5.0)
    both = [stored.start("increment", "disk", "--nolock") for _ in range(3)]
    said = [run.communicate(timeout=60)[1] for run in both]
    assert {run.returncode for run in both} <= {0, 1}
    assert all("in the same second" in text for run, text in zip(both, said, strict=True) if run.returncode)
    assert made(stored)
    assert images(driver_of(stored)) == live(stored)


HOLDING = """
import os, time
from pathlib import Path
from whisperbackup.storage import disk
class Driver(disk.Disk):
    def hold(self, key):
        if key.startswith(os.environ["HOLDS"]):
            Path(os.environ["SIGN"]).touch()
            time.sleep(float(os.environ["SECONDS"]))
    def get(self, key):
        self.hold(key)
        return super().get(key)
    def put(self, key, body):
        self.hold(key)
        super().put(key, body)
def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Driver(os.fsencode(bucket))
"""


@pytest.mark.slow
def test_what_is_written_after_a_backup_read_the_file_comes_from_the_increment_beside_it(
    stored: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The increment knows nothing of the backup; that is stored after it, with the moment of its reading as stamp."""

    def hold(command: str, key: str, seconds: float) -> subprocess.Popen[str]:
        sign = stored.home / command
        stored.environment |= {"HOLDS": key, "SECONDS": str(seconds), "SIGN": str(sign)}
        run = stored.start(command, "shelf")
        wait_for(sign.exists)
        return run

    path = stored.prefix / "a/one.wsp"
    add_point(path, 1.0)
    settle()  # it is read once
    install_driver(stored, monkeypatch, HOLDING)
    increment = hold("increment", ".runs/", 4)  # it has listed the store, and not read the file
    backup = hold("backup", "a.one/", 8)  # it has read the file, and not stored it
    whisper.update(str(path), 77.0, int(time.time()) - 300)
    for run in (increment, backup):
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said
    assert len(stored.stamps("a.one")) == 2
    target = stored.home / "target"
    target.mkdir()
    stored("restore", "disk", "-p", target)
    assert (target / "a/one.wsp").read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_an_increment_that_another_one_overtakes_ends_with_1(stored: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it read later would lie below what the other one read earlier."""
    install_driver(stored, monkeypatch, HOLDING)
    sign = stored.home / "sign"
    stored.environment |= {"HOLDS": ".increments/", "SECONDS": "4", "SIGN": str(sign)}
    slow = stored.start("increment", "shelf", "--nolock")
    wait_for(sign.exists)  # it stores its part
    settle()
    stored.environment["SECONDS"] = "0"
    stored("increment", "shelf", "--nolock")
    _, said = slow.communicate(timeout=60)
    assert slow.returncode == 1, said
    (only,) = made(stored)
    assert "is complete, so this one is dropped: let all runs of a tree have the same --lockfile" in said
    add_point(stored.prefix / "a/one.wsp")
    settle()
    stored("increment", "shelf")
    assert made(stored)[-1].reference == only.stamp
    assert images(driver_of(stored)) == live(stored)


def test_an_increment_during_a_backup_and_a_purge_is_whole(stored: Program) -> None:
    backup = stored.start("backup", "disk", "--nolock")
    runs_ = [stored.start(command, "disk", "--nolock") for command in ("increment", "purge")]
    for run in [backup, *runs_]:
        _, said = run.communicate(timeout=60)
        assert run.returncode == 0, said
    assert images(driver_of(stored)) == live(stored)


@pytest.mark.slow
def test_a_stopped_increment_leaves_none_and_status_128_n(stored: Program) -> None:
    path = stored.prefix / "a/one.wsp"
    add_point(path)
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run = stored.start("increment", "disk")
        wait_for(lambda: len(list(children(run.pid))) == stored.processes)
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, said
    assert made(stored) == []
    stored("increment", "disk")
    assert images(driver_of(stored)) == live(stored)


def test_a_store_that_fails_in_the_middle_leaves_no_increment(stored: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    stored("increment", "disk")
    (stored.store / ".increments").chmod(0o500)
    owned = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
    settle()
    run = stored.start_words([*owned, *stored.words("increment", "disk")])
    _, said = run.communicate(timeout=60)
    (stored.store / ".increments").chmod(0o755)
    assert run.returncode == 1, said
    assert os.strerror(errno.EACCES) in said
    assert len(made(stored)) == 1


def test_a_clock_that_was_ahead_costs_no_point(stored: Program) -> None:
    """The store has an increment and a run stamped tomorrow: the next is stamped later still, and builds on neither."""
    settle()
    stored("increment", "disk")
    (first,) = made(stored)
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    ahead = json.loads(first.to_json()) | {
        "stamp": stamp_at(tomorrow.timestamp()),
        "begin": int(tomorrow.timestamp()),
        "end": int(tomorrow.timestamp()),
    }
    parts = [stored.store / increment_key(first.stamp, part.name) for part in first.parts]
    driver = driver_of(stored)
    for part in parts:
        driver.put(increment_key(ahead["stamp"], part.name), part.read_bytes())
    driver.put(increment_key(ahead["stamp"]), json.dumps(ahead).encode())
    settle()
    stored("increment", "disk")
    last = made(stored)[-1]
    assert last.stamp > ahead["stamp"]
    assert last.reference == first.stamp


def test_a_damaged_manifest_is_named_and_passed_over(stored: Program) -> None:
    stored("increment", "disk")
    (first,) = made(stored)
    (stored.store / increment_key(first.stamp)).write_bytes(b"<html>")
    settle()
    assert f"{first.stamp}/manifest.json is damaged" in stored("increment", "disk")
    assert made(stored)[-1].reference == first.reference


# Records of runs


def test_a_run_names_what_it_cannot_vouch_for(stored: Program) -> None:
    (stored.prefix / "a/two.wsp").unlink()
    (stored.prefix / "b/three.wsp").write_bytes(b"broken by a disk")
    os.utime(stored.prefix / "b/three.wsp", (1, 1))
    (stored.prefix / "a/never.wsp").write_bytes(b"no whisper file" * 99)
    (stored.prefix / "a/young.wsp").write_bytes(b"")
    settle()
    stored("backup", "disk", "--keep-increments", 30, status=3)
    first, second = runs(stored)
    assert (first.keep_increments, second.keep_increments) == (7, 30)
    assert (first.is_complete, first.status, first.unconfirmed, first.files) == (True, 0, (), 3)
    assert (second.is_complete, second.status, second.is_partial) == (True, 3, False)
    assert second.unconfirmed == ("a.never/", "a.two/", "a.young/", "b.three/")
    assert second.stamp > first.stamp
    newest = max(stored.stamps("a.one"))
    assert first.last_stamp >= datetime.fromisoformat(newest).timestamp()


def test_a_run_in_progress_is_known_and_one_that_was_killed(stored: Program) -> None:
    path = stored.prefix / "a/one.wsp"
    add_point(path)
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        settle()
        run = stored.start("backup", "disk")
        wait_for(lambda: len(runs(stored)) == 2)
        run.kill()
        run.wait()
    assert [one.is_complete for one in runs(stored)] == [True, False]
    assert "no end" in stored("list", "disk", "--runs")
    stored("increment", "disk")
    assert made(stored)[-1].reference == runs(stored)[0].stamp
    assert made(stored)[-1].after_run == runs(stored)[0].stamp


def test_a_partial_run_is_recorded_as_one(stored: Program) -> None:
    settle()
    stored("backup", "disk", "-m", "a.*")
    assert [(run.is_partial, run.metrics) for run in runs(stored)] == [(False, ()), (True, ("a.*",))]


def test_metrics_of_a_folder_where_nothing_is_left_are_named_by_it() -> None:
    def folded(*keys: str, limit: int = 5) -> list[str] | None:
        folding = Folding(limit)
        for key in keys:
            (folding.leave if key.startswith("+") else folding.add)(key.removeprefix("+"))
        return folding.names()

    assert folded("a.b.c/", "a.b.d/", "+b.x/") == ["a."]
    assert folded("+a.a/", "a.b.c/", "a.b.d/", "a.c/", "+b.x/") == ["a.b.", "a.c/"]
    assert folded("a.b.c/", "a.b.d/", "+a.b.e/", "a.b.f/") == ["a.b.c/", "a.b.d/", "a.b.f/"]
    assert folded("a.b.c/", "a.c.d/", "+a.c.e/") == ["a.b.", "a.c.d/"]
    assert folded(*[f"a.m{n}/" for n in range(9)]) == ["a."]
    assert folded(*[f"a.m{n}/" for n in range(9)], "+a.n/") is None
    assert folded(*[f"{n}.x/" for n in range(9)]) is None
    for key in ("a.b.c/", "a.c.d/"):
        assert Names(folded("a.b.c/", "a.c.d/", "+a.c.e/") or ()).cover(key)


# Retention


def age(program: Program, days: float) -> None:
    """Everything that the store has of runs and increments happened so many days earlier, with pauses as long."""
    driver = driver_of(program)
    found = history.look_at_all(driver, "")
    names = {stamp: moved(stamp, days) for stamp in (*found.complete, *found.runs)}

    def earlier(content: bytes) -> bytes:
        values = json.loads(content)
        for name in ("begin", "end", "since", "last_stamp"):
            if values.get(name):
                values[name] -= int(days * 86400)
        for name in ("stamp", "reference", "after_run", "after_increment"):
            if values.get(name):
                values[name] = names.get(values[name], values[name])
        values |= {"boot": "", "pause": int(days * 86400)}
        return json.dumps(values).encode()

    for key, _ in found.objects:
        stamp = key.split("/")[1].removesuffix(".json")
        content = driver.get(key)
        driver.delete([key])
        driver.put(
            key.replace(stamp, names.get(stamp, moved(stamp, days))),
            earlier(content) if key.endswith("json") else content,
        )


def moved(stamp: str, days: float) -> str:
    return stamp_at(datetime.fromisoformat(stamp).timestamp() - days * 86400)


def old_increment(program: Program) -> None:
    """An increment of eight days ago."""
    settle()
    program("increment", "disk")
    age(program, 8)


def test_an_old_increment_goes_once_a_backup_run_has_its_points(stored: Program) -> None:
    old_increment(stored)
    before = made(stored)
    said = stored("backup", "disk", "-n")
    assert "would be deleted, later backup runs covered all of its metrics" in said
    assert made(stored) == before
    assert "1 increments removed" in stored("backup", "disk")
    assert made(stored) == []
    assert not (stored.store / ".increments").exists()


def test_a_young_increment_stays(stored: Program) -> None:
    settle()
    stored("increment", "disk")
    age(stored, 6)
    stored("backup", "disk")
    assert len(made(stored)) == 1
    stored("backup", "disk", "--keep-increments", 3)
    assert made(stored) == []


@pytest.mark.parametrize("how", ["-m", "--exclude", "killed", "failed"])
def test_an_increment_stays_after_a_run_that_does_not_count(stored: Program, how: str) -> None:
    old_increment(stored)
    if how == "-m":
        stored("backup", "disk", "-m", "a.*")
    elif how == "--exclude":
        stored("backup", "disk", "--exclude", "a.*")
    elif how == "killed":
        path = stored.prefix / "a/one.wsp"
        add_point(path)
        with path.open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            run = stored.start("backup", "disk")
            wait_for(lambda: len(runs(stored)) == 2)
            run.kill()
            run.wait()
    else:
        for name in ("a/one", "a/two"):
            (stored.prefix / f"{name}.wsp").write_bytes(b"broken by a disk" * 99)
        assert "not a whisper file" in stored("backup", "disk", status=3)
    assert len(made(stored)) == 1
    assert set(records(stored)) == {"a.one", "a.two", "b.three"}


@pytest.mark.parametrize("how", ["missing", "broken", "unreadable"])
def test_an_increment_is_rewritten_to_what_no_backup_has(stored: Program, how: str) -> None:
    path = stored.prefix / "b/three.wsp"
    add_point(path, 77.0)
    old_increment(stored)
    expected = records(stored)["b.three"]
    content = path.read_bytes()
    path.unlink()
    if how == "broken":
        path.write_bytes(b"broken by a disk" * 99)
    elif how == "unreadable":
        path.symlink_to("/nowhere")
    said = stored("backup", "disk", status=3 if how == "broken" else 0)
    assert "1 increments rewritten" in said
    assert records(stored) == {"b.three": expected}
    assert len(list((stored.store / ".increments").rglob("*.wbi"))) == 1
    settle()
    stored("backup", "disk", status=3 if how == "broken" else 0)
    assert records(stored) == {"b.three": expected}
    assert images(driver_of(stored))["b.three"] == content
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    settle()
    assert "1 increments removed" in stored("backup", "disk")


@pytest.mark.parametrize("command", ["backup", "prune", "purge"])
@pytest.mark.parametrize("moment", ["before the manifest", "after it"])
def test_what_one_run_rewrites_no_other_run_deletes(stored: Program, command: str, moment: str) -> None:
    add_point(stored.prefix / "b/three.wsp", 77.0)
    old_increment(stored)
    expected = records(stored)["b.three"]
    (stored.prefix / "b/three.wsp").unlink()
    stored("backup", "disk", "--keep-increments", 30)
    arguments = ["-p", stored.prefix] if command == "purge" else []

    class Met(disk.Disk):
        """Another run begins and ends just before, or after, the new manifest is stored."""

        def put(self, key: str, body: bytes) -> None:
            if moment == "after it" and key.endswith("json"):
                super().put(key, body)
            if key.endswith("json"):
                stored(command, "disk", *arguments)
            if moment == "before the manifest" or not key.endswith("json"):
                super().put(key, body)

    rules = expire.Rules("", 7 * 86400, None, noop=False)
    stats = RunStats("prune")
    expire.expire(Met(os.fsencode(stored.store)), rules, int(time.time()), None, stats)
    assert records(stored) == {"b.three": expected}


def test_an_increment_that_another_run_rewrites_is_not_called_damaged(
    stored: Program, caplog: pytest.LogCaptureFixture
) -> None:
    old_increment(stored)
    (stored.prefix / "b/three.wsp").unlink()
    stored("backup", "disk", "--keep-increments", 30)

    class Late(disk.Disk):
        """Another run begins and ends just before a part is read."""

        def get(self, key: str) -> bytes:
            if key.endswith(".wbi"):
                stored("prune", "disk")
            return super().get(key)

    rules = expire.Rules("", 7 * 86400, None, noop=False)
    caplog.set_level("INFO")
    expire.expire(Late(os.fsencode(stored.store)), rules, int(time.time()), None, RunStats("prune"))
    assert "left to the run that is changing it" in caplog.text
    assert "damaged" not in caplog.text
    assert set(records(stored)) == {"b.three"}


@pytest.mark.parametrize("command", ["verify", "restore"])
def test_an_increment_that_is_rewritten_while_it_is_read_is_not_called_damaged(
    stored: Program, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_increment(stored)
    (stored.prefix / "b/three.wsp").unlink()
    stored("backup", "disk", "--keep-increments", 30)
    prune = [*stored.words("prune", "--nolock"), "disk"]
    install_driver(
        stored,
        monkeypatch,
        f"""
import os, subprocess
from whisperbackup.storage import disk

class Late(disk.Disk):
    # A prune begins and ends just before a part is read.
    def get(self, key):
        if key.endswith(".wbi"):
            subprocess.run({prune}, check=True, capture_output=True)
        return super().get(key)

    def get_range(self, key, offset, length):
        subprocess.run({prune}, check=True, capture_output=True)
        return super().get_range(key, offset, length)

def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Late(os.fsencode(bucket))
""",
    )
    said = stored(command, "shelf", status=0 if command == "verify" else 3)
    assert set(records(stored)) == {"b.three"}, "it was rewritten"
    assert "is missing" not in said
    assert ("during this run: run it again" if command == "restore" else "1 vanished") in said
    stored(command, "disk")


def test_a_file_that_broke_before_its_first_backup_keeps_what_increments_have_of_it(stored: Program) -> None:
    settle()
    path = stored.write("b.born")
    content = path.read_bytes()
    settle()
    old_increment(stored)
    path.write_bytes(b"broken by a disk" * 99)
    assert "1 increments rewritten" in stored("backup", "disk", status=3)
    assert set(records(stored)) == {"b.born"}
    assert images(driver_of(stored))["b.born"] == content


def test_a_metric_that_was_made_smaller_on_purpose_is_doubted_only_for_a_while(stored: Program) -> None:
    """A disk may have died: then only increments have what the old file got after its last backup."""
    path = stored.prefix / "b/three.wsp"
    (large,) = (stored.store / "b.three").glob("*.gz")
    large.write_bytes(gzip.compress(random.randbytes(60_000)))  # more than what follows is, also when compressed
    settle()
    path.unlink()
    stored.write("b.three", 1)
    stored("backup", "disk", "-r", "1")
    assert large.exists()
    assert runs(stored)[-1].unconfirmed == ("b.three/",)
    old = f"{datetime.now(UTC) - timedelta(days=46):%Y-%m-%dT%H:%M:%S}+00:00"
    for one in (stored.store / "b.three").glob(large.name.removesuffix(".wsp.gz") + "*"):
        one.rename(one.with_name(old + one.name[len(old) :]))
    settle()
    stored("backup", "disk", "-r", "1")
    assert runs(stored)[-1].unconfirmed == ()
    assert len(list((stored.store / "b.three").glob("*.gz"))) == 2


def test_what_a_killed_rewriting_left_goes_after_the_increment(stored: Program) -> None:
    old_increment(stored)
    (part,) = (stored.store / ".increments").rglob("*.wbi")
    shutil.copy(part, part.with_name("000007.wbi" if part.name != "000007.wbi" else "000008.wbi"))
    assert "1 increments removed" in stored("backup", "disk")
    assert "1 debris removed" in stored("backup", "disk")
    assert not (stored.store / ".increments").exists()


def test_an_increment_that_retention_deleted_is_not_missed_where_a_metric_always_fails(stored: Program) -> None:
    for days in (1, 6.5):
        settle()
        add_point(stored.prefix / "a/one.wsp")
        stored("increment", "disk", "--lag", 0)
        age(stored, days)
    (stored.prefix / "b/three.wsp").write_bytes(b"broken by a disk" * 99)
    assert "1 increments removed" in stored("backup", "disk", status=3)
    (left,) = made(stored)
    assert left.reference not in ("", left.after_run)
    assert "0 failed" in stored("verify", "disk")


def test_what_nothing_confirms_for_long_goes_and_is_named(stored: Program) -> None:
    old_increment(stored)
    (stored.prefix / "b/three.wsp").unlink()
    age(stored, 50)
    said = stored("backup", "disk")
    assert "has points of b.three that no backup has: deleted" in said
    assert "covered not all of its metrics" in said
    assert made(stored) == []


@pytest.mark.parametrize("leapt", ["now", "20 days ago"])
def test_what_nothing_confirms_stays_when_the_clock_has_leapt(stored: Program, leapt: str) -> None:
    old_increment(stored)
    (stored.prefix / "b/three.wsp").unlink()
    age(stored, 50)
    (record,) = (stored.store / ".runs").iterdir()
    values = {"pause": 0} if leapt == "now" else {"steady_since": int(time.time()) - 20 * 86400}
    record.write_text(json.dumps(json.loads(record.read_text()) | values))
    for _ in range(2):
        stored("backup", "disk")
        assert "b.three" in records(stored)


def test_an_increment_of_which_most_is_unconfirmed_never_goes_by_itself(stored: Program) -> None:
    old_increment(stored)
    shutil.rmtree(stored.prefix / "a")
    age(stored, 400)
    stored("backup", "disk")
    assert set(records(stored)) == {"a.one", "a.two", "b.three"}


@pytest.mark.parametrize("command", ["backup", "purge"])
def test_what_killed_increments_left_goes_after_a_day(stored: Program, command: str) -> None:
    settle()
    stored("increment", "disk")
    (only,) = made(stored)
    (stored.store / increment_key(only.stamp)).unlink()
    stored("backup", "disk")
    assert list((stored.store / ".increments").rglob("*.wbi")), "it may be a run in progress"
    age(stored, 2)
    assert "would be deleted" in stored(command, "disk", "-n")
    assert list((stored.store / ".increments").rglob("*.wbi"))
    assert "1 debris removed" in stored(command, "disk")
    assert not (stored.store / ".increments").exists()


def test_parts_whose_manifest_is_damaged_are_no_debris(stored: Program) -> None:
    old_increment(stored)
    (only,) = made(stored)
    (stored.store / increment_key(only.stamp)).write_bytes(b"<html>")
    stored("backup", "disk")
    assert list((stored.store / ".increments").rglob("*.wbi"))


def test_records_of_runs_go_with_the_last_backup_that_they_tell_of(stored: Program) -> None:
    driver = driver_of(stored)
    (run,) = runs(stored)
    newest = stored.stamps("a.one")[-1]
    for day in range(100, 60, -1):
        values = json.loads(run.to_json()) | {"stamp": moved(run.stamp, day), "begin": run.begin - day * 86400}
        values |= {"end": run.end - day * 86400, "last_stamp": 0}
        driver.put(f".runs/{values['stamp']}.json", json.dumps(values).encode())
    for suffix in ("wsp.gz", "sha1"):
        content = driver.get(f"a.one/{newest}.{suffix}")
        driver.put(f"a.one/{moved(run.stamp, 99)}.{suffix}", content)
    before = {one.stamp for one in runs(stored)}
    settle()
    stored("backup", "disk")
    gone = before - {one.stamp for one in runs(stored)}
    assert moved(run.stamp, 100) in gone
    assert moved(run.stamp, 99) not in gone
    assert moved(run.stamp, 61) not in gone


def test_the_record_of_a_run_stays_while_an_increment_is_there_that_begins_at_it(stored: Program) -> None:
    """The host was renamed, so the increment stays; between the two a part was backed up."""
    (run,) = runs(stored)
    settle()
    stored("backup", "disk", "-m", "a.*")
    old_increment(stored)
    driver = driver_of(stored)
    for key, _ in history.look_at_all(driver, "").objects:
        if key.endswith("json"):
            driver.put(key, json.dumps(json.loads(driver.get(key)) | {"node": "old"}).encode())
    (increment,) = made(stored)
    assert increment.reference < increment.after_run
    for day in range(35, 1, -1):
        values = json.loads(run.to_json()) | {"stamp": moved(run.stamp, day / 10), "end": run.begin - day * 8640}
        driver.put(f".runs/{values['stamp']}.json", json.dumps(values | {"begin": values["end"]}).encode())
    settle()
    stored("backup", "disk")  # all backups are of today
    assert made(stored) == [increment]
    assert "0 failed" in stored("verify", "disk")


@pytest.mark.servers
def test_an_increment_costs_few_requests_in_a_service(program: Program) -> None:
    store = servers.store("s3-rclone")
    connect(program, store)
    program.write("a.one")
    options = [store.driver, *store.arguments, "--storage-path", "nodes/one"]
    program("backup", *options)
    settle()
    add_point(program.prefix / "a/one.wsp")
    program("increment", *options)
    program("increment", *options)
    driver = open_store(store, program.bucket)
    assert images(driver, "nodes/one/")["a.one"] == (program.prefix / "a/one.wsp").read_bytes()
    newest = history.look(driver, "nodes/one/", time.time()).newest
    assert read_manifest(driver.get("nodes/one/" + increment_key(newest))).records == 1


COUNTING = """
import io
import os
from whisperbackup.storage import disk


class Counting(disk.Disk):
    def _note(self, what):
        with io.open(os.environ["REQUESTS"], "a") as file:
            file.write(what + "\\n")

    def list_range(self, prefix, after, until):
        self._note("list")
        return super().list_range(prefix, after, until)

    def get(self, key):
        self._note("get")
        return super().get(key)

    def put(self, key, body):
        self._note("put")
        super().put(key, body)


def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Counting(os.fsencode(bucket))
"""


def test_an_increment_costs_the_requests_of_its_parts_and_four(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(program, monkeypatch, COUNTING)
    requests = program.home / "requests"
    monkeypatch.setenv("REQUESTS", str(requests))
    program.write("a.one")
    program("backup", "shelf")
    settle()
    program("increment", "shelf")
    requests.unlink()
    settle()
    assert "1 parts" in program("increment", "shelf")
    assert sorted(requests.read_text().split()) == ["get", "list", "list", "put", "put"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "s3-rclone"])
def test_an_increment_killed_at_any_moment_loses_nothing(program: Program, kind: str) -> None:
    """KILLS=300 for more: whatever is killed when, what is complete stays as it is, and the next run takes the rest."""
    store = servers.store(kind)
    connect(program, store)
    chance = random.Random(int(os.environ.get("SEED", "1")))
    paths = [program.write(f"web{number % 7}.m{number}", number) for number in range(60)]
    options = [store.driver, *store.arguments, "--storage-path", "nodes/one", "-f", "2"]
    settle()
    program("backup", *options)
    driver = open_store(store, program.bucket or str(program.store))
    path = "nodes/one/"
    settle()
    began = time.monotonic()
    program("increment", *options)
    length = time.monotonic() - began
    whole: dict[str, bytes] = {}
    killed = 0
    for number in range(int(os.environ.get("KILLS", "6"))):
        for one in chance.sample(paths, 10):
            add_point(one, float(number))
        run = program.start("increment", *options, start_new_session=True)
        time.sleep(chance.uniform(0.1, 0.9) * length)
        workers = list(children(run.pid))
        if run.poll() is None:
            killed += 1
            if chance.random() < 0.3 and workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(workers), signal.SIGKILL)
            else:
                run.kill()
        _, said = run.communicate(timeout=60)
        assert run.returncode in (-signal.SIGKILL, 0, 1), said
        assert "Traceback" not in said
        found = history.look_at_all(driver, path)
        for stamp in found.complete:
            keys = [path + key for key, _ in found.objects if stamp in key]
            for key in keys:
                assert whole.setdefault(key, driver.get(key)) == driver.get(key)
        if number % 5 == 4 or number == 5:
            settle()
            program("increment", *options)
            assert images(driver, path) == live(program)
    print(f"{killed} killed")
    assert killed

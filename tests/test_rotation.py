"""verify and restore beside a run that rotates or purges the very backups that they are about to read."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import Program, add_point, contents, install_driver

from whisperbackup.storage import disk

PROCESSES = 2
pytestmark = pytest.mark.slow

# A directory store that lets another run of the program do its work between the listing and the first reading.
DRIVER = """
import os, subprocess, time
from whisperbackup.storage import disk

def open(bucket, create, arguments):
    driver = disk.open(bucket, create, [])
    if "SLOW" in os.environ:
        driver.get = lambda key: time.sleep(0.01) or type(driver).get(driver, key)
    if "LISTED" in os.environ:
        def list(prefix):
            for found in type(driver).list(driver, prefix):
                yield found
                if found.key.startswith("b.one/") and found.key.endswith(".gz"):
                    subprocess.run(os.environ["LISTED"].split("|"), check=True)
        driver.list = list
    if "WORDS" not in os.environ:
        return driver
    def get(key):
        try:  # the first reader of all processes does it, the others wait for it
            os.close(os.open(os.environ["FLAG"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            while not os.path.exists(os.environ["FLAG"] + ".done"):
                time.sleep(0.01)
        else:
            words = os.environ.pop("WORDS").split("|")
            subprocess.run(words, check=True, capture_output=True)
            os.close(os.open(os.environ["FLAG"] + ".done", os.O_CREAT))
        return type(driver).get(driver, key)
    driver.get = get
    return driver
"""
METRICS = ("a.one", "a.two", "b.one")


@pytest.fixture
def stored(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Three metrics with two backups each, files that changed since, and a driver that `meanwhile` uses."""
    install_driver(program, monkeypatch, DRIVER)
    for number in range(2):
        for metric in METRICS:
            path = program.write(metric) if not number else program.prefix / f"{metric.replace('.', '/')}.wsp"
            add_point(path, number)
        program("backup")
    for metric in METRICS:
        add_point(program.prefix / f"{metric.replace('.', '/')}.wsp", 7)
    return program


def meanwhile(program: Program, *words: str) -> None:
    """The next run reads only when another one, of the given words, has done its work."""
    program.environment |= {"FLAG": str(program.home / "flag"), "WORDS": "|".join(words)}


def rotate(program: Program) -> None:
    """Meanwhile a backup stores three newer ones and deletes those that were listed."""
    meanwhile(program, *program.words("backup", "disk", "-r", "1", "--nostamp", "--lockfile", f"{program.lock}2"))


def erase(program: Program, *paths: Path) -> None:
    meanwhile(program, "rm", "-r", *map(str, paths))


def test_verify_looks_again_where_the_newest_was_rotated_away(stored: Program) -> None:
    before = stored.stamps("a.one")
    rotate(stored)
    said = stored("verify", "shelf")
    assert before[-1] not in stored.stamps("a.one")
    assert "3 examined, 3 good" in said
    assert "vanished" not in said


def test_verify_names_what_is_bad_about_the_backup_that_took_its_place(stored: Program) -> None:
    """The payload of the new one is spoilt as soon as it is there."""
    script = f"""
import pathlib, subprocess
subprocess.run({stored.words("backup", "disk", "-r", "1", "--nolock")!r}, check=True)
[payload] = pathlib.Path({str(stored.store)!r}, "a.two").glob("*.gz")
payload.write_bytes(b"spoilt")
"""
    meanwhile(stored, sys.executable, "-c", script)
    said = stored("verify", "shelf", "--json", status=3)
    (stamp,) = stored.stamps("a.two")
    assert f"ERROR: a.two: the backup of {stamp} is bad" in said
    figures = json.loads(next(line for line in said.splitlines() if '"command"' in line))
    assert (figures["examined"], figures["good"], figures["failed"], figures["vanished"]) == (3, 2, 1, 0)


def test_verify_all_counts_rotated_backups_as_vanished_and_not_as_examined(stored: Program) -> None:
    rotate(stored)
    said = stored("verify", "shelf", "--all")
    assert "3 examined, 3 good" in said
    assert "3 vanished" in said


def test_a_deletion_on_its_way_is_none_of_the_newest(stored: Program) -> None:
    """Marks are deleted first: of an older backup that is retention at work."""
    older, _ = stored.stamps("a.one")
    erase(stored, stored.store / f"a.one/{older}.sha1")
    assert "5 examined, 5 good" in stored("verify", "shelf", "--all")


def test_a_date_holds_where_verify_looks_again(stored: Program) -> None:
    """Of the two backups up to then the newer is deleted; what is read instead is the older one, no later one."""
    older, newer = stored.stamps("a.one")
    (stored.store / f"a.one/{older}.sha1").with_suffix(".sha1").write_text("no digest")
    erase(stored, *(stored.store / "a.one").glob(f"{newer}*"))
    said = stored("verify", "shelf", "-m", "a.one", "-c", newer, status=3)
    assert f"the backup of {older} is bad" in said
    assert "1 examined, 0 good" in said


def test_half_a_backup_that_is_gone_is_still_bad(stored: Program) -> None:
    (newest,) = stored.stamps("a.one")[-1:]
    erase(stored, stored.store / f"a.one/{newest}.wsp.gz")
    assert f"the backup of {newest} is bad: its gz payload is gone" in stored("verify", "shelf", status=3)
    shutil.rmtree(stored.store / "a.one")
    for path in stored.home.glob("flag*"):
        path.unlink()
    (newest,) = stored.stamps("a.two")[-1:]
    erase(stored, stored.store / f"a.two/{newest}.sha1")
    assert f"the backup of {newest} is bad: its mark is gone" in stored("verify", "shelf", status=3)


def test_a_metric_that_was_purged_meanwhile_vanished_and_one_that_was_erased_is_bad(stored: Program) -> None:
    (stored.prefix / "a/two.wsp").unlink()
    stored("backup")
    assert len(list(stored.store.glob("a.two/*.missing"))) == 1
    meanwhile(stored, *stored.words("purge", "disk", "-x", "0", "--nolock"))
    said = stored("verify", "shelf")
    assert "2 examined, 2 good" in said
    assert "1 vanished, 0 failed" in said
    for path in stored.home.glob("flag*"):
        path.unlink()
    erase(stored, stored.store / "a.one")
    said = stored("verify", "shelf", status=3)
    assert "a.one: all its backups were deleted during this run" in said
    assert "2 examined, 1 good" in said


def test_restore_looks_again_where_its_candidates_were_rotated_away(stored: Program) -> None:
    target = stored.home / "target"
    target.mkdir()
    rotate(stored)
    assert "3 examined, 3 created" in stored("restore", "shelf", "-p", target)
    assert contents(target) == contents(stored.prefix)


def test_restore_names_a_metric_of_which_nothing_is_left(stored: Program) -> None:
    target = stored.home / "target"
    target.mkdir()
    erase(stored, stored.store / "a.one")
    said = stored("restore", "shelf", "-p", target, status=3)
    assert "ERROR: a.one: all its backups were deleted during this run" in said
    assert "3 examined, 2 created" in said


def test_a_listing_finds_what_took_the_place_of_what_was_deleted_under_it(tmp_path: Path) -> None:
    """A directory's names are read before its files are looked at: a metric must not look as if it had no backup."""
    driver = disk.open(str(tmp_path), False, [])
    driver.put("a/1.sha1", b"")
    driver.put("a/1.wsp", b"")
    driver.put("a/1.wsp.gz", b"")
    driver.put("b/1.sha1", b"")
    listing = (found.key for found in driver.list(""))
    assert next(listing) == "a/1.sha1"
    driver.put("a/2.sha1", b"")
    driver.put("a/2.wsp.gz", b"")
    driver.delete(["a/1.sha1", "a/1.wsp", "a/1.wsp.gz"])
    assert list(listing) == ["a/2.sha1", "a/2.wsp.gz", "b/1.sha1"]
    listing = (found.key for found in driver.list("a/"))
    assert next(listing) == "a/2.sha1"
    shutil.rmtree(tmp_path / "a")
    assert list(listing) == []
    driver.put("c1", b"")
    driver.put("c2", b"")
    listing = (found.key for found in driver.list("c"))
    next(listing)
    driver.put("c3", b"")
    driver.put("d", b"")
    driver.delete(["c2"])
    assert list(listing) == ["c3"]


def test_a_metric_that_is_listed_in_the_middle_of_its_rotation_is_looked_up_again(stored: Program) -> None:
    """The listing shows a payload without its mark; by the time it is asked again there is a whole backup."""
    held = {metric: stored.store / metric for metric in METRICS}
    aside = stored.home / "aside"
    shutil.copytree(held["b.one"], aside)
    for path in held["b.one"].glob("*.sha1"):
        path.unlink()
    # The first listing, up to b.one, comes before the copy; reading a.one brings it.
    script = f"import shutil; shutil.copytree({str(aside)!r}, {str(held['b.one'])!r}, dirs_exist_ok=True)"
    stored.environment["LISTED"] = "|".join([sys.executable, "-c", script])
    assert "3 examined, 3 good" in stored("verify", "shelf")


def test_verify_and_restore_beside_backups_that_go_on_rotating_are_good(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(program, monkeypatch, DRIVER)
    paths = [program.write(f"m.m{number}", number) for number in range(20)]
    program("backup", "disk", "-r", "1")
    target = program.home / "target"
    target.mkdir()
    value = 0
    for command, *options in (["verify", "shelf"], ["verify", "shelf", "--all"], ["restore", "shelf", "-p", target]):
        first = program.stamps("m.m19")
        words = ["--nolock", "--nostamp", "-f", "1", "--threads", "1"]
        program.environment["SLOW"] = "1"
        reading = program.start(command, *options, *words)
        del program.environment["SLOW"]
        while reading.poll() is None:
            value += 1
            for path in paths:
                add_point(path, value)
            program("backup", "disk", "-r", "1")
        said = reading.communicate()[1]
        assert reading.returncode == 0, said
        assert program.stamps("m.m19") > first

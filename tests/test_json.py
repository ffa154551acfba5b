"""--json: stdout holds one object a line, the last one says how the run ended, however it did."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from typing import Any

import pytest
from conftest import Program, add_point, wait_for

COMMON = {"command", "status", "error", "noop", "seconds", "failed", "examined"}
PURGE = {"missing", "purged", "marked_missing", "came_back", "debris_removed"}
KEYS = {
    "backup": PURGE
    | {"unchanged", "backed_up", "read_bytes", "stored_bytes", "removed", "vanished", "too_new", "changing_while_read"}
    | {"kept_all_newer_being_much_smaller", "stamped_anew", "objects_not_deleted"}
    | {"increments_removed", "increments_rewritten", "run_records_removed"},
    "increment": {"not_written_to", "recorded", "points", "stored_bytes", "p99_seconds_late", "taken_whole", "vanished"}
    | {"new_left_to_backup", "compressed_left_to_backup", "too_new", "changing_while_read", "parts"}
    | {"owed_to_the_next_increment"},
    "restore": {"created", "healed", "points_filled", "already_whole", "skipped", "replaced", "needed_an_older_backup"}
    | {"compressed_differing"},
    "purge": PURGE,
    "prune": {"removed", "missing", "purged", "came_back", "debris_removed", "protected"}
    | {"kept_all_newer_being_much_smaller"},
    "verify": {"good", "read_bytes", "vanished", "left_to_other_days"},
    "verify_tree": {"same", "differ", "not_backed_up", "new", "gone", "read_bytes", "unseen", "vanished"}
    | {"left_to_other_days"},
}
COMMANDS = [("backup",), ("increment",), ("restore",), ("purge",), ("prune",), ("verify",), ("verify", "--tree")]


class Ran:
    """A finished run: its status, what it said, and the objects on its stdout."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        stdout, self.said, self.status = done.stdout, done.stderr, done.returncode
        assert "Traceback" not in self.said, self.said
        assert stdout.isascii()
        *self.lines, self.summary = [json.loads(line) for line in stdout.splitlines()]
        assert all("metric" in line for line in self.lines)
        assert self.summary["status"] == self.status


def run(program: Program, command: str, *options: object) -> Ran:
    return Ran(program.ran(command, "disk", "--json", *options))


@pytest.fixture(autouse=True)
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # some containers set it, and it hides what is not flushed


@pytest.fixture
def stored(program: Program) -> Program:
    for number, metric in enumerate(("a.one", "a.two", "b.é")):
        program.write(metric, number)
    program("backup")
    return program


@pytest.mark.parametrize("command", COMMANDS, ids="".join)
def test_every_command_ends_in_an_object_with_all_its_figures(stored: Program, command: tuple[str, ...]) -> None:
    ran = run(stored, *command)
    assert ran.status == 0
    assert ran.lines == []
    name = ran.summary["command"]
    assert name == "_".join(command).replace("--", "")
    assert set(ran.summary) == COMMON | KEYS[name]
    assert (ran.summary["error"], ran.summary["failed"], ran.summary["noop"]) == (None, 0, False)
    assert ran.summary["examined"] == 3
    assert 0 < ran.summary["seconds"] < 60
    assert " complete: 3 examined, " in ran.said, "stderr is as ever"


def test_figures_are_what_was_done_and_bytes_are_bytes(program: Program) -> None:
    files = [program.write(metric) for metric in ("a", "b")]
    would = run(program, "backup", "-n").summary
    did = run(program, "backup").summary
    assert would["noop"]
    assert not did["noop"]
    for summary in (would, did):
        assert (summary["examined"], summary["backed_up"]) == (2, 2)
        assert summary["read_bytes"] == sum(path.stat().st_size for path in files)
    assert did["stored_bytes"] == sum(path.stat().st_size for path in program.store.rglob("*.wsp.gz"))


def test_each_failure_is_an_object_as_it_occurs(stored: Program) -> None:
    (stored.prefix / "a/one.wsp").write_bytes(b"x" * 1000)
    os.utime(stored.prefix / "a/one.wsp", (0, 0))
    ran = run(stored, "backup", "-q")
    assert ran.status == 3
    assert [line["metric"] for line in ran.lines] == ["a.one"]
    assert ran.lines[0]["error"].startswith("not a whisper file")
    assert f"ERROR: a.one: {ran.lines[0]['error']}" in ran.said
    assert (ran.summary["failed"], ran.summary["unchanged"], ran.summary["error"]) == (1, 2, None)


def test_verify_names_the_stamp_of_a_bad_backup(stored: Program) -> None:
    (stamp,) = stored.stamps("b.é")
    (stored.store / f"b.é/{stamp}.wsp.gz").write_bytes(b"")
    for options in ([], ["--all"]):
        ran = run(stored, "verify", *options)
        assert ran.status == 3
        (line,) = ran.lines
        assert (line["metric"], line["backup"]) == ("b.é", stamp)


def test_the_tree_is_told_metric_by_metric(stored: Program) -> None:
    add_point(stored.prefix / "a/one.wsp")
    (stored.prefix / "a/two.wsp").unlink()
    stored.write("new")
    ran = run(stored, "verify", "--tree")
    assert ran.status == 0
    stamps = {metric: stored.stamps(metric)[-1] for metric in ("a.one", "a.two")}
    assert sorted(ran.lines, key=str) == [
        {"metric": "a.one", "state": "differs", "backup": stamps["a.one"]},
        {"metric": "a.two", "state": "gone", "backup": stamps["a.two"]},
        {"metric": "new", "state": "new"},
    ]
    assert (ran.summary["differ"], ran.summary["gone"], ran.summary["new"], ran.summary["same"]) == (1, 1, 1, 1)


@pytest.mark.parametrize("command", COMMANDS, ids="".join)
def test_a_run_that_cannot_begin_says_so_in_its_object(stored: Program, command: tuple[str, ...]) -> None:
    stored.store = stored.home / "file"
    stored.store.touch()
    ran = run(stored, *command)
    assert ran.status == 1
    assert str(stored.store) in ran.summary["error"]
    assert ran.summary["error"] in ran.said
    assert set(ran.summary) == COMMON | KEYS[ran.summary["command"]]


def test_a_busy_lock_and_an_unknown_storage_argument_are_told(stored: Program) -> None:
    with stored.lock.open("r+") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert "another run" in run(stored, "backup", "--locktimeout", "0").summary["error"]
    ran = run(stored, "backup", "x=1")
    assert ran.status == 2
    assert "storage argument 'x'" in ran.summary["error"]


def test_a_log_that_cannot_be_opened_and_a_stamp_that_cannot_be_touched_are_told(stored: Program) -> None:
    for option in ("--logfile", "--stampfile"):
        ran = run(stored, "backup", option, "/proc/x")
        assert ran.status == 1
        assert option in ran.summary["error"]


def test_a_stopped_run_tells_how_far_it_came(program: Program) -> None:
    for number in range(60):
        program.write(f"m{number}")
    process = program.start("backup", "disk", "--json", "-f", "1", "--bwlimit", "0.02")
    wait_for(lambda: any(program.store.rglob("*.sha1")))
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    ran = Ran(subprocess.CompletedProcess([], process.returncode, stdout, stderr))
    assert ran.status == 143
    assert ran.summary["error"] == "stopped by SIGTERM"
    assert 0 < ran.summary["backed_up"] == len(list(program.store.rglob("*.sha1"))) < 60


def test_nobody_reading_fails_no_backup(program: Program) -> None:
    for number in range(3):
        path = program.write(f"bad{number}")
        path.write_bytes(b"x" * 1000)
        os.utime(path, (0, 0))
    program.write("good")
    reader, writer = os.pipe()
    os.close(reader)
    for stdout in (writer, os.open("/dev/full", os.O_WRONLY)):
        process = program.start("backup", "disk", "--json", "--nostate", stdout=stdout)
        os.close(stdout)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 3, said
        assert said.count("cannot write to standard output") == 1
        assert "3 failed" in said
        assert "Exception ignored" not in said
    assert program.stamps("good")


def test_failures_come_while_the_run_is_at_work(program: Program) -> None:
    program.write("a").write_bytes(b"x" * 1000)
    os.utime(program.prefix / "a.wsp", (0, 0))
    for number in range(60):
        program.write(f"m{number}")
    process = program.start("backup", "disk", "--json", "-f", "1", "--bwlimit", "0.02")
    assert process.stdout
    first = json.loads(process.stdout.readline())
    assert first["metric"] == "a"
    assert len(list(program.store.rglob("*.sha1"))) < 60
    process.kill()
    process.communicate()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_json_in_any_locale(stored: Program, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    shown = subprocess.run(stored.words("list", "disk", "--json", "-m", "b.*"), capture_output=True, check=True).stdout
    listed: dict[str, Any] = json.loads(shown)
    assert listed["metric"] == "b.é"
    (stored.store / f"b.é/{stored.stamps('b.é')[0]}.wsp.gz").write_bytes(b"")
    assert run(stored, "verify").lines[0]["metric"] == "b.é"

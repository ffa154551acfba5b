"""What an operator sees of a run: where it works, how long it waits, and how much it says."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Program, wait_for
from test_ordinary_user import MACHINE, NOBODY

PROCESSES = 2
FIRST, LATER = "2026-11-20T02:12:25+00:00", "2026-11-21T02:12:25+00:00"


def first_line(said: str) -> str:
    return next(line for line in said.splitlines() if "whisper-backup " in line)


# -- the first line ---------------------------------------------------------------------------------------


def test_the_first_line_says_where_a_run_works(program: Program) -> None:
    program.write("a.b")
    for command in ("backup", "restore", "purge"):
        line = first_line(program(command, "disk", "--storage-path", "node1"))
        assert f": {command}, {program.prefix}, disk '{program.store}', storage path 'node1/', 2 processes" in line
    line = first_line(program("verify", "disk", "--storage-path", "node1"))
    assert f": verify, disk '{program.store}', storage path 'node1/', 2 processes" in line  # it looks at no tree
    line = first_line(program("verify", "disk", "--storage-path", "node1", "--tree"))
    assert f": verify --tree, {program.prefix}, disk '{program.store}'" in line


@pytest.mark.parametrize(("words", "environment", "expected"), [
    (["s3", "endpoint=http://127.0.0.1:1/x"], {}, "at 127.0.0.1:1, "),
    (["s3"], {"AWS_ENDPOINT_URL": "http://127.0.0.1:2"}, "at 127.0.0.1:2, "),
    (["swift"], {"ST_AUTH": "http://127.0.0.1:3/auth/v1.0", "ST_USER": "u", "ST_KEY": "hush"}, "at 127.0.0.1:3, "),
    (["s3", "endpoint=http://me:hush@127.0.0.1:1"], {}, ""),
    (["s3", "endpoint=http://me:hush/hush@127.0.0.1:1"], {}, ""),
    (["s3", "endpoint=http://[hush"], {}, ""),
])  # fmt: skip
def test_the_first_line_names_the_endpoint_and_no_secret(
    program: Program, words: Sequence[str], environment: dict[str, str], expected: str
) -> None:
    program.write("a.b")
    program.environment = {"AWS_EC2_METADATA_DISABLED": "true", **environment}
    run = program.start("backup", *words)
    assert run.stderr is not None
    said = run.stderr.readline()  # it goes on to ask a server that is not there
    run.kill()
    _, rest = run.communicate()
    assert f"{program.store}', {expected}2 processes" in said
    assert "hush" not in said + rest


# -- dates ------------------------------------------------------------------------------------------------


def test_a_date_in_the_future_is_warned_of(program: Program) -> None:
    program.write("a.b")
    program("backup")
    for command in ("list", "verify", "restore"):
        said = program(command, "disk", "-c", "2099-01-01")
        assert "WARNING: -c 2099-01-01T00:00:00+00:00 is in the future, so the newest backups are used" in said
        assert "is in the future" not in program(command, "disk", "-c", program.stamps("a.b")[0])


def many_backups(program: Program, count: int) -> None:
    """`count` metrics with a backup each, and the last of them with one that is older."""
    program.write("a.b")
    program("backup")
    (stamp,) = program.stamps("a.b")
    for number in range(count):
        folder = program.store / f"m{number:02}"
        folder.mkdir()
        for other in (LATER, FIRST) if number == count - 1 else (LATER,):
            for end in ("sha1", "wsp.gz"):
                (folder / f"{other}.{end}").write_bytes((program.store / f"a.b/{stamp}.{end}").read_bytes())


@pytest.mark.parametrize("command", ["restore", "verify"])
def test_a_date_before_the_first_backups_is_one_line_with_the_earliest_and_their_number(
    program: Program, command: str
) -> None:
    many_backups(program, 30)
    said = program(command, "disk", "-c", "2026-11-01", "--json", status=3)
    assert said.count("has no backup as old as 2026-11-01T00:00:00+00:00; its first is of") == 20 + 31  # and in JSON
    assert (
        "ERROR: 31 metrics have no backup as old as 2026-11-01T00:00:00+00:00, 20 of them named above; "
        f"the earliest of their backups is of {FIRST}"
    ) in said
    assert len([line for line in said.splitlines() if line.startswith("ERROR: ")]) == 22  # the last one sums up
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert len([line for line in lines if "metric" in line]) == 31 == lines[-1]["failed"]


def test_a_few_without_a_backup_that_old_are_all_named(program: Program) -> None:
    many_backups(program, 3)
    said = program("restore", "disk", "-m", "m*", "-c", "2026-11-20T12:00", status=3)
    assert said.count("ERROR: m") == 2 and "1 created" in said
    assert "of them named above" not in said


# -- terminals --------------------------------------------------------------------------------------------


def test_at_a_terminal_splay_does_not_wait(program: Program) -> None:
    program.write("a.b")
    terminal, side = pty.openpty()
    try:
        for stream in ("stdin", "stderr"):
            run = program.start("backup", "disk", "--splay", "80000", **{stream: side})
            try:
                _, said = run.communicate(timeout=60)
            finally:
                run.kill()
            assert run.returncode == 0
            assert stream == "stderr" or "starting at once: --splay is for runs without a terminal" in said
    finally:
        os.close(terminal)
        os.close(side)


def test_a_restore_does_not_wait_for_the_splay_of_the_configuration_file(program: Program) -> None:
    program.write("a.b")
    program("backup", "disk")
    program.environment["WHISPER_BACKUP_SPLAY"] = "80000"
    assert "1 already whole" in program("restore", "disk")


def test_without_one_it_says_how_long_it_waits_before_it_does(program: Program) -> None:
    program.write("a.b")
    run = program.start("backup", "disk", "-q", "--splay", "80000", stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: program.log.exists() and "starting in " in program.log.read_text())
    finally:
        run.terminate()
        _, said = run.communicate(timeout=60)
    assert "starting in" not in said  # cron would send it by mail


@pytest.mark.parametrize(("options", "unit"), [([], "backups"), (["--tree"], "metrics")])
def test_the_progress_of_verify_counts_what_it_examines(program: Program, options: list[str], unit: str) -> None:
    program.write("a.b")
    program("backup")
    terminal, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    run = program.start("verify", "disk", *options, stderr=side)
    os.close(side)
    said = b""
    try:
        while piece := os.read(terminal, 4096):
            said += piece
    except OSError:  # the other side is closed
        pass
    os.close(terminal)
    run.communicate(timeout=60)
    assert run.returncode == 0
    assert f"0/1 [00:00<?, ? {unit}/s]" in said.decode()


# -- the log of verify ------------------------------------------------------------------------------------


def on_a_machine_of_its_own(program: Program, *words: object, user: Sequence[str] = ()) -> str:
    """Run with every default, /var/log being empty and root's; what was said, and then what is in the log."""
    script = MACHINE.replace("exit $status", "cat /var/log/whisperbackup.py.log >&2; exit $status")
    command = [sys.executable, "-B", "-m", "whisperbackup", "-b", program.store, "-p", program.prefix, *words]
    environment = {"HOME": "/mnt", "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent)}
    words_of_all = ["unshare", "--mount", "sh", "-c", script, "sh", *user, *command]
    ran = subprocess.run(words_of_all, capture_output=True, text=True, env=environment)
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip("may not make a machine of its own here")
    return ran.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for /var/log")
def test_verify_writes_its_failures_to_the_default_log(program: Program) -> None:
    program.write("a.b")
    program("backup")
    next((program.store / "a.b").glob("*.sha1")).write_text("0" * 40)
    said = on_a_machine_of_its_own(program, "-q", "verify", "disk")
    logged = said.partition("whisperbackup.py.log\n")[2]  # behind the names of what is there
    assert "ERROR a.b: the backup of" in logged
    assert "INFO whisper-backup " in logged and "ERROR verify incomplete: 1 examined, 0 good" in logged


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_verify_by_a_user_who_may_not_write_the_default_log_says_nothing_about_it(program: Program) -> None:
    program.write("a.b")
    program("backup")
    user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups",
            "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]  # fmt: skip
    said = on_a_machine_of_its_own(program, "verify", "disk", user=user)
    assert "1 good" in said and "WARNING" not in said
    assert "cannot open the log file" in on_a_machine_of_its_own(program, "-d", "verify", "disk", user=user)


def test_verify_cannot_run_where_a_log_that_was_asked_for_cannot_be_opened(program: Program) -> None:
    program.store.mkdir()
    said = program("verify", "disk", "--logfile", "/nowhere/log", status=1)
    assert "cannot open the log file /nowhere/log" in said

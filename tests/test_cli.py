"""The command line: every mistake gets one clear line and the right status."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import MARKER, Program, unprivileged

from whisperbackup.options import COMMANDS, make_parser, parse
from whisperbackup.repository.dates import parse_date
from whisperbackup.runtime import defaults
from whisperbackup.util import Keep


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no command"),
        (["bakup", "disk"], "unknown command 'bakup'"),
        (["backup"], "no storage driver"),
        (["backup", "tape"], "unknown storage driver 'tape'"),
        (["backup", "disk", "-r", "0"], "-r 0"),
        (["backup", "disk", "-f", "0"], "-f 0"),
        (["backup", "disk", "-x", "-2"], "-x -2"),
        (["backup", "disk", "-a", "lzma"], "-a lzma"),
        (["restore", "disk", "-c", "tomorow"], "-c tomorow: a date in ISO 8601"),
        (["lst", "disk"], "did you mean 'list'?"),
        (["list", "dsk"], "did you mean 'disk'?"),
        (["list", "disk", "--buket", "x"], "did you mean '--bucket'?"),
        (["restore", "disk", "-m", "a.[b"], "a.[b"),
        (["restore", "disk", "-m", "a/b"], "slashes"),
        (["backup", "disk", "--splay", "-1"], "--splay"),
        (["backup", "disk", "--splay", "1e300"], "--splay"),
        (["backup", "disk", "-x", "400000"], "-x 400000"),
        (["backup", "disk", "-b", ""], "-b is empty"),
        (["list", "disk", "-m", "a\udcff"], "not UTF-8"),
        (["list", "disk", "-m", "{" * 2000], "braces"),
        (["backup", "disk", "--max-file-size", "big"], "--max-file-size"),
        (["backup", "disk", "--frobnicate"], "--frobnicate"),
        (["backup", "disk", "x=1"], "storage argument 'x'"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(program: Program, words: list[str], says: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "whisperbackup", "--nolog", "--nolock", "--nostamp", "-q", "-p", program.prefix, *words],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert says in ran.stderr
    assert len(ran.stderr.splitlines()) == 1, ran.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["backup", "disk", "-p", "/nowhere/at/all"], "does not exist"),
        (["backup", "disk", "-p", "/etc/passwd"], "not a directory"),
        (["backup", "disk", "-b", "/proc/no"], "/proc/no"),
        (["backup", "disk", "-b", "/etc/passwd"], "not a directory"),
        (["restore", "disk", "-b", "/nowhere"], "/nowhere"),
        (["restore", "disk", "-m", "no.such.*"], "no metric"),
        (["backup", "disk"], "no whisper file"),
        (["backup", "disk", "--logfile", "/proc/x"], "--logfile"),
        (["backup", "disk", "--lockfile", "/etc/passwd/x"], "--lockfile"),
    ],
)
def test_what_cannot_run_says_why_with_status_1(program: Program, words: list[str], says: str) -> None:
    program.store.mkdir()
    (program.store / MARKER).touch()
    command, *options = words
    told = program(command, "-q", *options, status=1)
    assert says in told
    assert len(told.splitlines()) == 1
    assert not program.stamp.exists()


def test_an_unwritable_store_is_told_in_one_line(program: Program) -> None:
    program.write("a.b")
    program.store.mkdir(mode=0o555)
    ran = subprocess.run([*unprivileged(), *program.words("backup", "disk", "-q")], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "cannot write to" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_options_and_arguments_come_in_any_order() -> None:
    one = parse(["-p", "/x", "backup", "-n", "s3", "-r", "3", "eu-west-1"])
    assert (one.command, one.driver, one.storage_arguments, one.keep.last, one.noop) == (
        "backup",
        "s3",
        ["eu-west-1"],
        3,
        True,
    )
    assert parse(["backup", "s3", "eu-west-1", "-r", "3", "-n", "-p", "/x"]) == one


def test_defaults_are_those_of_the_older_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(defaults.TEST_ROOT)
    options = parse(["--config", "/dev/null", "backup", "s3"])
    assert options.prefix == b"/opt/graphite/storage/whisper"
    assert (options.processes, options.keep, options.purge_days, options.bucket) == (4, Keep(5), 45, "graphite-backups")
    assert (options.algorithm, options.storage_path, options.lock_timeout, options.splay) == ("gz", "", 90, 0)
    assert options.lockfile == "/var/lock/whisperbackup.py"
    assert options.stampfile == "/var/tmp/whisperbackup.py.success"
    assert options.logfile == "/var/log/whisperbackup.py.log"


def test_a_storage_path_gets_its_slash_and_keeps_a_leading_one() -> None:
    assert [parse(["list", "disk", "--storage-path", path]).storage_path for path in ("", "a", "a/b/", "/")] == [
        "", "a/", "a/b/", "/",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "stamp"),
    [
        ("2026-11-23", "2026-11-23T00:00:00+00:00"),
        ("20261123", "2026-11-23T00:00:00+00:00"),
        ("2026-11-23T18:30", "2026-11-23T18:30:00+00:00"),
        ("2026-11-23 18:30:05", "2026-11-23T18:30:05+00:00"),
        ("2026-11-23T18:30:05Z", "2026-11-23T18:30:05+00:00"),
        ("2026-11-23t18:30:05z", "2026-11-23T18:30:05+00:00"),
        ("2026-11-23 18:30:05 UTC", "2026-11-23T18:30:05+00:00"),
        ("2026-11-23T18:30:05+02:00", "2026-11-23T16:30:05+00:00"),
        ("2026-11-23 18:30:05 -0130", "2026-11-23T20:00:05+00:00"),
        ("20261123T183005Z", "2026-11-23T18:30:05+00:00"),
        ("2026-11-23T18:30:05.9", "2026-11-23T18:30:05+00:00"),
        ("36h", "2026-11-23T18:30:05+00:00"),
        ("-2d", "2026-11-23T06:30:05+00:00"),
        ("1 w ago", "2026-11-18T06:30:05+00:00"),
        ("90min", "2026-11-25T05:00:05+00:00"),
        ("now", "2026-11-25T06:30:05+00:00"),
        ("yesterday", "2026-11-24T00:00:00+00:00"),
        ("Today 05:30", "2026-11-25T05:30:00+00:00"),
        ("yesterday 18:00 +01:00", "2026-11-24T17:00:00+00:00"),
        ("yesterday 18:00 -08:00", "2026-11-24T02:00:00+00:00"),  # there it is still the 24th
    ],
)
def test_dates_in_any_common_spelling(text: str, stamp: str) -> None:
    assert parse_date(text, datetime(2026, 11, 25, 6, 30, 5, tzinfo=UTC)) == stamp


@pytest.mark.parametrize(
    "text", ["2", "2x", "h", "999999w", "yesterday 25:00", "2m", "03-04-2026", "3/4/26", "yesterday now"]
)
def test_no_date_is_guessed(text: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        parse_date(text, datetime(2026, 11, 25, tzinfo=UTC))


def test_what_a_date_was_understood_as_is_shown_in_utc_and_local_time(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "XYZ-02:00")
    program.store.mkdir()
    said = program("list", "disk", "-c", "2026-11-23T22:30Z")
    assert "at or before 2026-11-23T22:30:00+00:00 (2026-11-24 00:30:00 XYZ here)" in said


def test_dry_run_is_noop() -> None:
    assert parse(["backup", "disk", "--dry-run"]).noop


def test_help_shows_usage_and_every_default() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "whisperbackup", "-h"], capture_output=True, text=True, check=True
    ).stdout
    commands = "backup|increment|restore|purge|prune|list|verify|doctor"
    usage = f"whisper-backup [options] {commands} disk|gcs|noop|s3|swift [storage args]"
    assert usage in re.sub(r"\s+", " ", shown)
    names = ("/var/log/whisperbackup.py.log", "/var/lock/whisperbackup.py", "/var/tmp/whisperbackup.py.success")
    values = ("/opt/graphite/storage/whisper", "[4]", "[5]", "[45]", "[graphite-backups]", "[gz]", "[90]", "[0]")
    for default in (*names, *values):
        assert default in re.sub(r"\s+", "", shown), default


def test_help_fits_a_terminal_and_every_option_is_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = make_parser()
    assert not parser.option_list
    assert max(len(line) for line in parser.format_help().splitlines()) < 80
    assert not [option for group in parser.option_groups for option in group.option_list if not option.help]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_after_a_command_shows_its_options_and_no_others(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        parse(["-q", command, "disk", "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert f"[options] {command} " in shown
    assert max(len(line) for line in shown.splitlines()) < 80
    assert ("--overwrite" in shown) == (command == "restore")
    assert ("--retention" in shown) == (command in ("backup", "prune"))
    assert ("--purge-anyway" in shown) == (command in ("backup", "purge", "prune"))
    assert ("--prefix" in shown) == (command not in ("prune", "list"))
    assert ("--no-delete" in shown) == (command in ("backup", "increment", "doctor"))
    assert ("--protected-ok" in shown) == (command == "prune")
    assert ("--lockfile" in shown) == (command in ("backup", "increment", "restore", "purge", "prune"))
    assert "--bucket" in shown


def test_options_of_the_older_tool_are_accepted_with_every_command() -> None:
    for command in set(COMMANDS) - {"increment", "doctor"}:
        parse(
            [
                command,
                "disk",
                *["-r", "3", "-x", "9", "-a", "gz", "-f", "2", "-p", "/x", "-m", "a", "--splay", "1", "-n", "-q"],
            ]
        )


def test_version_is_printed() -> None:
    from whisperbackup import __version__

    ran = subprocess.run(
        [sys.executable, "-m", "whisperbackup", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == f"whisper-backup {__version__}"


def test_a_default_log_that_cannot_be_opened_is_one_warning(program: Program) -> None:
    program.write("a.b")
    words = program.words("backup", "disk")
    at = words.index("--logfile")
    log = Path(defaults.on_this_machine(defaults.LOGFILE))
    log.touch(mode=0o444)
    ran = subprocess.run([*unprivileged(), *words[:at], *words[at + 2 :]], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("WARNING: cannot open the log file") == 1
    assert f"cannot open the log file {log}: Permission denied" in ran.stderr
    assert log.read_bytes() == b""


def test_without_options_log_lock_stamp_and_state_are_where_the_defaults_say(
    program: Program, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write("a.b")
    words = [sys.executable, "-m", "whisperbackup", "-p", program.prefix, "-b", program.store, "backup", "disk"]
    subprocess.run(words, capture_output=True, check=True)
    assert "backup complete" in (machine / "var/log/whisperbackup.py.log").read_text()
    assert (machine / "var/lock/whisperbackup.py").exists()
    assert (machine / "var/tmp/whisperbackup.py.success").exists()
    assert list(machine.rglob("whisper-backup/*.state"))
    monkeypatch.delenv(defaults.TEST_ROOT)
    assert defaults.on_this_machine(defaults.LOGFILE) == "/var/log/whisperbackup.py.log"


def test_list_imports_no_client_library_and_nothing_else_that_it_does_not_need(program: Program) -> None:
    program.store.mkdir()
    words = program.words("list", "disk")
    ran = subprocess.run([words[0], "-X", "importtime", *words[1:]], capture_output=True, text=True, check=True)
    assert not re.search(r"boto|swiftclient|google|numpy|tqdm|prometheus|known_store|tempfile|secrets", ran.stderr)


@pytest.mark.parametrize(("driver", "library"), [("s3", "boto3"), ("swift", "swiftclient"), ("gcs", "google")])
def test_a_missing_client_library_is_named_with_its_remedy(
    program: Program, monkeypatch: pytest.MonkeyPatch, driver: str, library: str
) -> None:
    (program.home / "site").mkdir()
    hidden = f'raise ModuleNotFoundError("no {library}", name="{library}")'
    (program.home / f"site/{library}.py").write_text(hidden)
    monkeypatch.setenv("PYTHONPATH", str(program.home / "site"))
    said = program("list", driver, status=1)
    assert f"needs the library '{library}'" in said
    assert f"pip install 'whisper-backup[{driver}]'" in said


def helped(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    ran = [sys.executable, "-m", "whisperbackup", "help", *words]
    return subprocess.run(ran, text=True, **{"capture_output": True, **options})


def test_help_shows_the_pages_and_the_options_of_commands() -> None:
    page = helped("restore").stdout
    assert page.startswith("# Restore: the page for three in the morning\n")
    assert page.endswith("\nThe options: whisper-backup restore --help\n")
    assert "<!--" not in page
    assert not re.search(r"\]\([\w#/.-]+\)", page)
    assert "(sizing.md)" in page and "See Exit statuses (faq.md)." in page
    assert "--retention" in helped("backup").stdout and "--overwrite" not in helped("backup").stdout
    shown = helped().stdout
    assert (
        shown
        == subprocess.run([sys.executable, "-m", "whisperbackup", "--help"], text=True, capture_output=True).stdout
    )
    for path in (Path(__file__).parents[1] / "docs").glob("*.md"):
        assert re.search(rf"^(Pages:|  ).*\b{path.stem}\b", shown, re.MULTILINE)
        assert helped(path.stem).stdout.startswith("# ")


def test_help_on_something_unknown_names_what_is_near() -> None:
    ran = helped("restoer")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "whisper-backup: no help on 'restoer'; did you mean 'restore'? See whisper-backup --help\n"


def test_help_into_head_is_silent_and_into_a_full_disk_is_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = helped("restore", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        ran = helped("restore", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "cannot write to standard output" in ran.stderr


def test_help_on_a_terminal_goes_through_the_pager(tmp_path: Path) -> None:
    pager = tmp_path / "pager"
    pager.write_text(f"#!/bin/sh\nexec cat > {tmp_path}/paged\n")
    pager.chmod(0o755)
    terminal, end = pty.openpty()
    environment = {**os.environ, "PAGER": str(pager), "MANPAGER": ""}
    helped("restore", capture_output=False, stdin=end, stdout=end, env=environment, check=True)
    os.close(end)
    os.close(terminal)
    assert (tmp_path / "paged").read_text() == helped("restore").stdout

"""The progress bar on a terminal of 80 columns."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest
from conftest import Program

METRICS = ("a.b", "a.c", "x.y")
MANY = 10**18


def shown(program: Program, *words: object, stdout: int | None = subprocess.DEVNULL) -> str:
    """What a run writes to a terminal: on stderr, and on stdout as well if that is None."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    read: list[bytes] = []

    def collect() -> None:
        while piece := _read(ours):
            read.append(piece)

    reader = threading.Thread(target=collect)
    reader.start()
    words = tuple(program.words(*map(str, words)))
    done = subprocess.run(words, stderr=theirs, stdout=theirs if stdout is None else stdout, timeout=60)
    os.close(theirs)
    reader.join()
    os.close(ours)
    text = b"".join(read).decode()
    assert done.returncode == 0, text
    return text


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""  # the program has ended


def ends(text: str) -> set[int]:
    """Where the bars end, in `text`."""
    return {int(total) for total in re.findall(r"\d+/(\d+) \[", text)}


def write_run(program: Program, **changes: object) -> None:
    """Change the newest record of a run in the store."""
    newest = max((program.store / ".runs").glob("*.json"))
    newest.write_text(json.dumps(json.loads(newest.read_text()) | changes))


@pytest.fixture
def stored(program: Program) -> Program:
    """A tree of METRICS, backed up."""
    for name in METRICS:
        program.write(name)
    program("backup", "disk")
    return program


@pytest.mark.slow
def test_the_bar_has_an_end_where_the_state_file_knows_the_metrics(program: Program) -> None:
    for name in METRICS:
        program.write(name)
    time.sleep(2.1)  # until the files count as settled
    assert "%|" not in shown(program, "backup", "disk")
    assert " 0/3 [" in shown(program, "backup", "disk")
    assert " 0/2 [" in shown(program, "backup", "disk", "-m", "a.*")
    for command in ("verify", "list"):
        assert " 0/2 [" in shown(program, command, "disk", "-m", "a.*", stdout=None)
    assert " 0/2 [" in shown(program, "verify", "disk", "--tree", "-m", "a.*")
    for command in ("restore", "purge", "prune", "increment", "list"):
        assert " 0/3 [" in shown(program, command, "disk", stdout=None), command
    assert "%|" not in shown(program, "verify", "disk", "--all")


@pytest.mark.slow
def test_elsewhere_the_bar_ends_where_the_last_run_of_the_whole_tree_did(stored: Program) -> None:
    program = stored
    program("backup", "disk", "-m", "a.b")
    for command in ("prune", "list", "verify", "restore", "increment"):
        assert ends(shown(program, command, "disk", "--nostate", stdout=None)) == {3}, command
    assert not ends(shown(program, "prune", "disk", "--nostate", "-q"))
    assert not ends(shown(program, "list", "disk", "--nostate", "-m", "a.*", stdout=None))
    for record in (program.store / ".runs").iterdir():
        record.unlink()
    assert not ends(shown(program, "prune", "disk", "--nostate"))


@pytest.mark.slow
def test_a_record_that_lies_about_the_files_only_moves_the_end_of_the_bar(stored: Program) -> None:
    for files in (MANY, 1, 0):
        write_run(stored, files=files)
        text = shown(stored, "verify", "disk", "--nostate")
        assert ends(text) <= {files}
        assert "verify complete: 3 examined, 3 good" in text
        assert max(len(line) for line in re.split(r"[\r\n]", text) if "backups/s" in line) <= 80
    write_run(stored, files=-1)
    assert "verify complete: 3 examined, 3 good" in shown(stored, "verify", "disk", "--nostate")
    (newest,) = (stored.store / ".runs").glob("*.json")
    newest.write_text("{")
    assert "verify complete: 3 examined, 3 good" in shown(stored, "verify", "disk", "--nostate")


def test_a_list_on_a_terminal_is_whole_lines_although_a_bar_is_there(stored: Program) -> None:
    text = shown(stored, "list", "disk", stdout=None)
    assert ends(text) == {3}
    screen = [re.sub(r".*\r", "", line.rstrip("\r")) for line in text.split("\n")]
    assert [line.split()[-1] for line in screen if " gz " in line] == list(METRICS)
    assert "3 metrics, 3 backups" in screen[-2]


def test_a_list_that_another_program_reads_shows_no_bar_and_one_in_a_file_does(stored: Program, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    assert shown(stored, "list", "disk", stdout=theirs) == ""
    os.close(theirs)
    piped = os.fdopen(ours, "rb").read()
    with (tmp_path / "list").open("w") as file:
        assert ends(shown(stored, "list", "disk", stdout=file.fileno())) == {3}
    assert (tmp_path / "list").read_bytes() == piped

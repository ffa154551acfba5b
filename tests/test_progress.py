"""The progress bar on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import termios
import time

import pytest
from conftest import Program


def shown(program: Program, *words: str) -> str:
    """What a run writes to a terminal on stderr."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    run = subprocess.run(program.words(*words), stderr=theirs, stdout=subprocess.DEVNULL, check=True)
    assert run.returncode == 0
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return text


@pytest.mark.slow
def test_the_bar_has_an_end_where_the_state_file_knows_the_metrics(program: Program) -> None:
    for name in ("a.b", "a.c", "x.y"):
        program.write(name)
    time.sleep(2.1)  # until the files count as settled
    assert "%|" not in shown(program, "backup", "disk")
    assert " 0/3 [" in shown(program, "backup", "disk")
    assert " 0/2 [" in shown(program, "backup", "disk", "-m", "a.*")
    assert " 0/2 [" in shown(program, "verify", "disk", "-m", "a.*")
    assert " 0/3 [" in shown(program, "restore", "disk")
    assert "%|" not in shown(program, "verify", "disk", "--all")

"""Backup and increments beside a real carbon: together they are the files as they were last read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
from conftest import Program, wait_for
from test_carbon import METRICS, WRITER, Carbon
from test_increment import images, settle
from test_storage import open_store

from whisperbackup.tree.names import metric_name


def live(prefix: Path) -> dict[str, bytes]:
    return {metric_name(os.fsencode(path.relative_to(prefix))): path.read_bytes() for path in prefix.rglob("*.wsp")}


@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.parametrize("locks", [True, False], ids=["locking", "not locking"])
def test_increments_under_carbons_writing_hold_what_its_files_held(
    program: Program, tmp_path: Path, locks: bool
) -> None:
    carbon = Carbon(tmp_path / "carbon", locks)
    try:
        now = int(time.time())
        for age in range(120, 0, -10):
            carbon.send(METRICS, age / 7, now - age)
        wait_for(lambda: len(list(carbon.prefix.rglob("*.wsp"))) == len(METRICS))
        settle()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(carbon.port), *METRICS])
        try:
            program("backup", "disk", "-p", carbon.prefix)
            for number in range(3):
                time.sleep(1)
                carbon.send([f"late.metric{number}"], 1.0)
                carbon.send(METRICS[:3], 5.0, int(time.time()) - 40)  # late, within the lag
                program("increment", "disk", "-p", carbon.prefix)
            wait_for(lambda: len(list(carbon.prefix.rglob("*.wsp"))) == len(METRICS) + 3)
        finally:
            writer.terminate()
            writer.wait()
    finally:
        carbon.stop()  # it writes what it holds
    settle()
    program("increment", "disk", "-p", carbon.prefix)
    expected = live(carbon.prefix)
    assert len(expected) == len(METRICS) + 3
    assert images(open_store(servers.store("disk"), str(program.store))) == expected
    shutil.rmtree(carbon.prefix)
    carbon.prefix.mkdir()
    program("restore", "disk", "-p", carbon.prefix)
    assert live(carbon.prefix) == expected

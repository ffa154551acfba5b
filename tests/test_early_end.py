"""When a run ends early because the store does nothing but fail, and when it must not."""

from __future__ import annotations

import pytest
from conftest import Program, add_point, install_driver

PROCESSES = 2
pytestmark = pytest.mark.slow

DRIVER = """
import os, time
from whisperbackup.commands import pipeline
from whisperbackup.repository import state
from whisperbackup.storage import disk
from whisperbackup.storage.base import Unavailable

class Driver(disk.Disk):
    threads = 1
    def list(self, prefix):
        for one in super().list(prefix):
            time.sleep(float(os.environ["LISTING"]))
            yield one
    def create_all(self, objects):
        if objects[0][0].partition("/")[0] in os.environ["FAILS"].split():
            time.sleep(float(os.environ["FAILING"]))
            raise Unavailable("no answer")
        return super().create_all(objects)

def open(bucket, create, arguments):
    pipeline.MAX_SECONDS_WITHOUT_SUCCESS = 0.7
    state.SETTLED = 0
    disk.open(bucket, create, arguments)
    return Driver(os.fsencode(bucket))
"""


@pytest.fixture
def failing(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A store that can be told for which metrics it fails; 0.7 seconds of nothing but failures end a run."""
    install_driver(program, monkeypatch, DRIVER)
    program.environment |= {"FAILS": "", "FAILING": "0", "LISTING": "0"}
    return program


@pytest.mark.alone
def test_two_failures_after_a_long_stretch_of_untouched_metrics_do_not_end_the_run(failing: Program) -> None:
    paths = [failing.write(f"m{number:03}") for number in range(200)]
    failing("backup", "shelf")
    for number in (180, 181, 199):
        add_point(paths[number])
    failing.environment |= {"FAILS": "m180 m181", "LISTING": "0.004"}  # 1.4 seconds until the first of them
    said = failing("backup", "shelf", status=3)
    assert "200 examined, 197 unchanged, 1 backed up" in said
    assert "2 failed" in said


def test_two_failures_that_took_long_end_the_run(failing: Program) -> None:
    for number in range(40):
        failing.write(f"m{number}")
    failing.environment |= {"FAILS": " ".join(f"m{number}" for number in range(40)), "FAILING": "0.5"}
    said = failing("backup", "shelf", "-f", "1", status=1)
    assert "the store failed 2 times in a row" in said

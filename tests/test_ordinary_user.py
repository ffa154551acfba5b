"""Neither root nor any configuration is needed: every default works for an ordinary user, on a machine of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MARKER, Program

NOBODY = "65534"
MACHINE = """
mount -t tmpfs -o mode=1777 none /run/lock && mount -t tmpfs -o mode=1777 none /var/tmp || exit 77
mount -t tmpfs -o mode=755 none /var/log && mount -t tmpfs -o mode=755 none /var/cache || exit 77
mount -t tmpfs -o mode=1777 none /mnt || exit 77
cd /mnt && "$@"; status=$?
ls -A /var/log /var/tmp /run/lock .cache/whisper-backup graphite-backups >&2
exit $status
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_every_default_works_for_an_ordinary_user(program: Program) -> None:
    program.write("a.b")
    # The interpreter may lie where only root can read; what is written still needs permission.
    words = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups",
             "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]  # fmt: skip
    backup = [sys.executable, "-B", "-m", "whisperbackup", "-p", program.prefix, "backup", "disk"]
    environment = {"HOME": "/mnt", "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent)}
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", MACHINE, "sh", *words, *backup],
        capture_output=True,
        text=True,
        env=environment,
    )
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip("may not make a machine of its own here")
    assert ran.returncode == 0, ran.stderr
    assert "backup complete: 1 examined, 0 unchanged, 1 backed up" in ran.stderr
    warnings = [line for line in ran.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert "cannot open the log file" in warnings[0]  # it is root's
    assert "a new store begins there" in warnings[1]
    assert "whisperbackup.py\n" in ran.stderr  # the lock
    assert "whisperbackup.py.success\n" in ran.stderr
    assert ".state\n" in ran.stderr
    assert f"graphite-backups:\n.runs\n{MARKER}\na.b\n" in ran.stderr

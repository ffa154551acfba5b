"""The default paths of log, lock, stamp and state files."""

from __future__ import annotations

import os

LOGFILE = "/var/log/whisperbackup.py.log"
LOCKFILE = "/var/lock/whisperbackup.py"
STAMPFILE = "/var/tmp/whisperbackup.py.success"
INCREMENT_LOCKFILE = "/var/lock/whisperbackup.py.increment"
INCREMENT_STAMPFILE = "/var/tmp/whisperbackup.py.increment.success"
STATE_FOLDER = "/var/cache/whisper-backup"

TEST_ROOT = "WHISPER_BACKUP_TEST_ROOT"
"""An environment variable for tests only: a directory that replaces `/` in front of these paths."""


def on_this_machine(path: str) -> str:
    """The default `path` as this run uses it."""
    return os.environ.get(TEST_ROOT, "") + path


def state_folder() -> str:
    """The default directory of state files: the system's cache for root, else the user's."""
    if os.geteuid() == 0:
        return on_this_machine(STATE_FOLDER)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "whisper-backup")

"""Where a machine's runs keep their log, lock, stamp and state when no option says otherwise."""

from __future__ import annotations

import os

LOGFILE = "/var/log/whisperbackup.py.log"
LOCKFILE = "/var/lock/whisperbackup.py"
STAMPFILE = "/var/tmp/whisperbackup.py.success"
STATE_FOLDER = "/var/cache/whisper-backup"

TEST_ROOT = "WHISPER_BACKUP_TEST_ROOT"
"""An environment variable for tests and nothing else: a folder that stands for `/` in front of these paths."""


def on_this_machine(path: str) -> str:
    """Where this run has the default `path`."""
    return os.environ.get(TEST_ROOT, "") + path


def state_folder() -> str:
    """The folder of the state files that are not named: the machine's for root, else the user's."""
    if os.geteuid() == 0:
        return on_this_machine(STATE_FOLDER)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "whisper-backup")

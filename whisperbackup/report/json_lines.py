"""What --json prints: one object a line on stdout, and nothing else there.

`backup`, `restore`, `purge` and `verify` print a line for each failure as it occurs, and as the last line of all,
however the run ended (but for `kill -9`), the summary:

    {"metric": "a.b", "error": "…"}                         named on stderr, too; `metric` is the folder that could
                                                            not be read, or the step, as `purge`, if it is no metric's
    {"metric": "a.b", "error": "…", "backup": "…"}          from verify: the stamp of the backup that is bad
    {"metric": "a.b", "state": "differs", "backup": "…"}    from verify --tree, no failure: the stamp of the newest
                                                            backup; also `gone`, and `new`, which has no backup
    {"command": "backup", "status": 0, "error": null, "noop": false, "seconds": 1.2, "failed": 0, "examined": 10, …}

In the summary `command` is backup, restore, purge, verify or verify_tree; `status` the exit status; `error` why the
run could not go on to its end (status 1, 2, 128+N), else null; `failed` the number of failures; the rest are the
figures in figures.py, all of them always there, bytes as bytes.  A line is a summary exactly if it has `command`.
A command line that cannot be meant (status 2, at once) prints nothing here.

`list` prints {"metric": "a.b", "backups": [{"stamp": "…", "codec": "gz", "size": 123}]} for each metric, with
--debris {"metric": "a.b", "debris": [{"stamp": "…", "left": "wsp.gz", "size": 123}]}, and no summary.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping

from whisperbackup.runtime import signals

logger = logging.getLogger(__name__)


def line(fields: Mapping[str, object]) -> str:
    """One line, in ASCII, whatever encoding the locale asks for."""
    return json.dumps(fields)


class Printer:
    """Prints lines for as long as somebody takes them: no backup fails because its output is not read."""

    def __init__(self) -> None:
        self._is_lost = False

    def emit(self, fields: Mapping[str, object]) -> None:
        """Print one line, at once and whole."""
        if self._is_lost:
            return
        with signals.shield():
            try:
                print(line(fields), flush=True)
            except OSError as error:
                self._is_lost = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again as it exits
                logger.warning("cannot write to standard output: %s; nothing more is printed there", error.strerror)

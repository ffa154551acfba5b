"""The output of --json: one object per line on stdout, and nothing else.

`backup`, `increment`, `restore`, `purge`, `prune` and `verify` print a line for each failure as it occurs.  Their last
line is the summary, however the run ended (except after `kill -9`):

    {"metric": "a.b", "error": "…"}                         also named on stderr; `metric` may be a directory that
                                                            cannot be read, or a step, for example `purge`
    {"metric": "a.b", "error": "…", "backup": "…"}          from verify: the stamp of the backup that is bad
    {"metric": "a.b", "state": "differs", "backup": "…"}    from verify --tree, not a failure: the stamp of the
                                                            newest backup; also `gone`, and `new` without `backup`
    {"command": "backup", "status": 0, "error": null, "noop": false, "seconds": 1.2, "failed": 0, "examined": 10, …}

In the summary `command` is backup, increment, restore, purge, prune, verify or verify_tree; `status` is the exit
status; `error` is the reason if the run ended early (status 1, 2, 128+N), else null; `failed` is the number of
failures.  The rest are all counters of the command (counters.py), even if zero; sizes are in bytes.  Only the summary,
doctor's last line, and a line of `list --runs`, have the key `command`.
An invalid command line (status 2, at once) prints nothing on stdout.

`list` prints {"metric": "a.b", "backups": [{"stamp": "…", "codec": "gz", "size": 123}]} for each metric, with
--debris {"metric": "a.b", "debris": [{"stamp": "…", "left": "wsp.gz", "size": 123}]} and
{"increment": ".increments/…", "debris": [{"left": "part", "size": 123}]}, and no summary.  With --runs it prints
{"run": "<stamp>", "begin": "…", "end": "…", "command": "backup", "status": 0, …, "counters": {…}} for each run of
`backup` and `increment`; `end` and `status` are null for one that did not come to its end.  With --summary it prints
{"storage_path": "node1/", "metrics": 2, "backups": 9, "bytes_by_codec": {"gz": 123}, "oldest": "…", "newest": "…",
"missing": 0, "orphans": 0, "increments": 3, "last_run": {…}} for each storage path; `last_run` is as with --runs, or
null.

`doctor` prints {"check": "tree", "result": "ok", "text": "…", "remedy": ""} for each check; `result` is ok, warning or
failure.  Its last line is {"command": "doctor", "status": 3, "error": null, "warnings": 0, "failures": 1}.
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
    """One line, in ASCII, in any locale."""
    return json.dumps(fields)


class Printer:
    """Prints lines while stdout is open: no backup fails because its output is not read."""

    def __init__(self) -> None:
        self._is_lost = False

    def emit(self, fields: Mapping[str, object]) -> None:
        """Print one whole line, and flush it."""
        if self._is_lost:
            return
        with signals.shield():
            try:
                print(line(fields), flush=True)
            except OSError as error:
                self._is_lost = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush again at exit
                logger.warning("cannot write to standard output: %s; nothing more is printed there", error.strerror)

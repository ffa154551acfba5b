"""About how much a run will examine, for the end of the progress bar; it decides nothing else."""

from __future__ import annotations

import itertools

from whisperbackup.commands.known_store import state_of
from whisperbackup.errors import StorageError
from whisperbackup.increments import history
from whisperbackup.options import Options
from whisperbackup.storage.base import Driver

RUNS_READ = 10


def metrics(options: Options, driver: Driver) -> int:
    """About how many metrics are selected; 0 if that is unknown.

    The state file has their names.  Where there is none, as on a machine that prunes or restores for others, the
    newest backup run of the whole tree recorded how many files it saw; that tells nothing about a part (`-m`).
    """
    known = state_of(options).count()
    if known or options.selection.wanted is not None:
        return known
    try:
        runs = history.runs_of(driver, options.storage_path, history.newest_runs(driver, options.storage_path))
        whole = (run.files for run in itertools.islice(runs, RUNS_READ) if run.is_complete and not run.is_partial)
        return next(whole, 0)
    except StorageError:
        return 0

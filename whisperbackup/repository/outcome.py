"""What a worker reports of one job."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from whisperbackup.errors import AccessDenied, NotFound, Unavailable
from whisperbackup.report.counters import Count
from whisperbackup.repository.state import Record

logger = logging.getLogger(__name__)

REMEDIES = {
    errno.EACCES: "; run as root, or as the owner of the tree",
    errno.EPERM: "; run as root, or as the owner of the tree",
    errno.ENOSPC: "; free some space there",
    errno.EDQUOT: "; free some space there",
}


class PendingDelete(NamedTuple):
    """Keys that are counted once, as `counter`, when all of them are deleted.

    `last` are keys that are deleted only after `keys`.  `keys` are deleted in any order: services choose the order
    within a request, and either half of a backup alone is an orphan, which is never restored.
    """

    counter: Count
    keys: tuple[str, ...]
    last: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """The result of one job: counters to add, errors to report, and what the command does with it."""

    name: str
    counts: Mapping[Count, int]
    errors: tuple[str, ...] = ()
    deletes: tuple[PendingDelete, ...] = ()  # keys that can be deleted now
    record: Record | None = None  # for the state file
    store_failed: bool = False  # the error is the store's, so the next job may fail too
    is_damaged: bool = False  # the backup `stamp` was read, and is damaged
    unexplained: int = 0  # objects that the store refused to delete without saying that it protects them
    stamp: str | None = None  # of the backup that this job processed, if any
    is_foreign: bool = False  # the file is no whisper file, and the metric has no backup that is one
    guarded: str = ""  # the stamp of the newest backup that is kept since all newer ones are much smaller


class StoreJob(Protocol):
    """The properties of a job that `failed` needs."""

    @property
    def name(self) -> str:
        """The name of the job's subject, for messages."""

    @property
    def examines(self) -> bool:
        """Whether the job counts as examined, also when it fails."""


def failed(job: StoreJob, error: Exception) -> Outcome:
    """The outcome of a job that raised `error`."""
    logger.debug("%s", job.name, exc_info=error)
    counts = {Count.EXAMINED: 1} if job.examines else {}
    store_failed = isinstance(error, (AccessDenied, NotFound, Unavailable))
    return Outcome(job.name, counts, (_reason(error),), store_failed=store_failed)


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
    return where + error.strerror + REMEDIES.get(error.errno or 0, "")

"""The counters of a run, and their names in its last line, in JSON and in carbon.

    last line      `12 backed up, 3.4 MB read`       names as below; bytes in kB, MB …
    --json         `"backed_up": 12, "read_bytes": 3412345`
    --carbon       `….backup.backed_up 12 1795000000`

JSON and carbon always have all the counters of a command, and also `failed` (the failures named on stderr), `seconds`
and `status` (the exit status).  The names in this file are an interface: dashboards and runbooks use them.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple


class Count(enum.StrEnum):
    """One counter; its value is its name in the last line."""

    # tree and store
    EXAMINED = "examined"  # selected files (backup, verify --tree), metrics (restore, purge) or backups (verify)
    READ_BYTES = "read bytes"  # of whisper files; verify: of payloads, compressed
    VANISHED = "vanished"  # deleted between the walk or the listing and the read
    # backup
    UNCHANGED = "unchanged"  # files whose newest backup holds the same content
    BACKED_UP = "backed up"
    STORED_BYTES = "stored bytes"  # compressed
    REMOVED = "removed"  # backups that retention no longer keeps
    TOO_NEW = "too new"  # files that carbon was just creating
    TORN = "changing while read"  # stored, or found unchanged, nevertheless
    NOT_DELETED = "objects not deleted"  # what --no-delete left to prune
    GUARDED = "kept, all newer being much smaller"  # backups beyond retention
    STAMPED_ANEW = "stamped anew"  # backups whose stamps came from a clock that was far ahead
    # purge, also after backup
    MISSING = "missing"  # metrics in the store, not in the tree
    PURGED = "purged"  # of them, those missing for -x days: all their backups were deleted
    MARKED_MISSING = "marked missing"  # of them, those that this run gave a tombstone
    CAME_BACK = "came back"  # metrics in the tree again: their tombstones were deleted, or are void
    PROTECTED = "protected"  # prune: objects that the store refused to delete
    ORPHANS_REMOVED = "debris removed"  # incomplete backups of interrupted runs
    INCREMENTS_REMOVED = "increments removed"  # all their points are in backups
    INCREMENTS_REWRITTEN = "increments rewritten"  # to the records that no backup has confirmed
    RUNS_REMOVED = "run records removed"
    # increment
    RECORDS = "recorded"  # metrics with a record
    POINTS = "points"  # in these
    PARTS = "parts"  # objects stored, besides the manifest
    NOT_WRITTEN = "not written to"  # files not opened: neither written nor changed in the window
    WHOLE = "taken whole"  # files born in the window
    NEW_LEFT = "new, left to backup"  # more such files: only their window was taken
    COMPRESSED = "compressed, left to backup"
    OWED = "owed to the next increment"  # metrics, or folders, that could not be read
    LATENESS = "p99 seconds late"  # 99 of 100 metrics were written no later than so long after their points' time
    # restore
    CREATED = "created"
    HEALED = "healed"
    POINTS_FILLED = "points filled"
    ALREADY_WHOLE = "already whole"
    SKIPPED = "skipped"  # existing files that are left as they are
    REPLACED = "replaced"
    COMPRESSED_DIFFERING = "compressed, differing"  # of those skipped, go-carbon's compressed ones; they also fail
    NEEDED_OLDER = "needed an older backup"  # metrics restored, or filled, from one that is not the newest
    # verify
    GOOD = "good"
    LEFT_TO_OTHER_DAYS = "left to other days"  # metrics that --sample did not select
    # verify --tree
    SAME = "same"  # files whose newest backup holds the same content
    DIFFER = "differ"  # files changed since
    NOT_BACKED_UP = "not backed up"  # files that should have a backup, but have none
    NEW = "new"  # files that have no backup, and are less than a day old
    GONE = "gone"  # metrics in the store, not in the tree
    UNSEEN = "unseen"  # metrics in the store that the walk could not look for

    @property
    def key(self) -> str:
        """Its name in JSON and carbon."""
        return key_of(self)


class Counters(NamedTuple):
    """The counters of a command; the last line shows `always` even if zero, `seldom` only if not.

    `unit` is what the progress bar counts.
    """

    always: tuple[Count, ...]
    seldom: tuple[Count, ...] = ()
    unit: str = "metrics"


_PURGE = (Count.MISSING, Count.PURGED)
_PURGE_SELDOM = (Count.MARKED_MISSING, Count.CAME_BACK, Count.ORPHANS_REMOVED)
_INCREMENTS = (Count.INCREMENTS_REMOVED, Count.INCREMENTS_REWRITTEN, Count.RUNS_REMOVED)

COUNTERS = {
    "backup": Counters(
        (Count.EXAMINED, Count.UNCHANGED, Count.BACKED_UP, Count.READ_BYTES, Count.STORED_BYTES, Count.REMOVED),
        (
            *(Count.VANISHED, Count.TOO_NEW, Count.TORN, Count.NOT_DELETED, Count.GUARDED, Count.STAMPED_ANEW),
            *(*_PURGE, *_PURGE_SELDOM),
            *_INCREMENTS,
        ),
    ),
    "increment": Counters(
        (Count.EXAMINED, Count.NOT_WRITTEN, Count.RECORDS, Count.POINTS, Count.STORED_BYTES, Count.LATENESS),
        (
            *(Count.WHOLE, Count.NEW_LEFT, Count.COMPRESSED, Count.VANISHED, Count.TOO_NEW, Count.TORN, Count.OWED),
            Count.PARTS,
        ),
    ),
    "restore": Counters(
        (Count.EXAMINED, Count.CREATED, Count.HEALED, Count.POINTS_FILLED, Count.ALREADY_WHOLE, Count.SKIPPED),
        (Count.REPLACED, Count.COMPRESSED_DIFFERING, Count.NEEDED_OLDER),
    ),
    "purge": Counters((Count.EXAMINED, *_PURGE), _PURGE_SELDOM),
    "prune": Counters(
        (Count.EXAMINED, Count.REMOVED, *_PURGE),
        (Count.CAME_BACK, Count.ORPHANS_REMOVED, Count.GUARDED, Count.PROTECTED),
    ),
    "verify": Counters(
        (Count.EXAMINED, Count.GOOD, Count.READ_BYTES),
        (Count.VANISHED, Count.LEFT_TO_OTHER_DAYS),
        unit="backups",
    ),
    "verify --tree": Counters(
        (
            *(Count.EXAMINED, Count.SAME, Count.DIFFER, Count.NOT_BACKED_UP),
            *(Count.NEW, Count.GONE, Count.READ_BYTES),
        ),
        (Count.UNSEEN, Count.VANISHED, Count.LEFT_TO_OTHER_DAYS),
    ),
}

IN_A_DRY_RUN = {
    Count.CREATED: "would be created",
    Count.HEALED: "would be healed",
    Count.POINTS_FILLED: "points would be filled",
    Count.REPLACED: "would be replaced",
    Count.NEEDED_OLDER: "would need an older backup",
}
"""The names of these counters in the last line and the log with --noop; in JSON and carbon they do not change."""


def key_of(name: str) -> str:
    """The name of a counter or command in JSON and carbon: `read bytes` becomes `read_bytes`."""
    return re.sub(r"\W+", "_", name)

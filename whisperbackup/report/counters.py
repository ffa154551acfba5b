"""What a run counts, by the names that its last line, its JSON and carbon show.

    last line      `12 backed up, 3.4 MB read`       names as below; bytes in kB, MB …
    --json         `"backed_up": 12, "read_bytes": 3412345`
    --carbon       `….backup.backed_up 12 1795000000`

JSON and carbon always have all the counters of a command, and besides `failed` (what is named on stderr), `seconds`
and `status` (the exit status).  The names in this file are an interface: dashboards and runbooks have them.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple


class Count(enum.StrEnum):
    """One thing that is counted."""

    # tree and store
    EXAMINED = "examined"  # selected files (backup, verify --tree), metrics (restore, purge) or backups (verify)
    READ_BYTES = "read bytes"  # of whisper files; verify: of payloads, compressed
    VANISHED = "vanished"  # gone between the walk or the listing and their reading
    # backup
    UNCHANGED = "unchanged"  # files whose newest backup holds the same content
    BACKED_UP = "backed up"
    STORED_BYTES = "stored bytes"  # compressed
    REMOVED = "removed"  # backups that retention no longer keeps
    TOO_NEW = "too new"  # files that carbon was just creating
    TORN = "changing while read"  # stored, or found unchanged, all the same
    GUARDED = "kept, all newer being much smaller"  # backups beyond retention
    STAMPED_ANEW = "stamped anew"  # backups whose stamps came from a clock that was far ahead
    # purge, also after backup
    MISSING = "missing"  # metrics in the store, not in the tree
    PURGED = "purged"  # of them, those whose days were over: all their backups deleted
    MARKED_MISSING = "marked missing"  # of them, those that got their tombstone in this run
    CAME_BACK = "came back"  # tombstones removed, the metric being in the tree
    ORPHANS_REMOVED = "debris removed"  # halves of backups that interrupted runs left
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
    LEFT_TO_OTHER_DAYS = "left to other days"  # metrics that --sample did not take
    # verify --tree
    SAME = "same"  # files whose newest backup holds the same content
    DIFFER = "differ"  # files changed since
    NOT_BACKED_UP = "not backed up"  # files that have no backup, and should
    NEW = "new"  # files that have no backup, and are less than a day old
    GONE = "gone"  # metrics in the store, not in the tree
    UNSEEN = "unseen"  # metrics in the store that the walk could not look for

    @property
    def key(self) -> str:
        """Its name in JSON and carbon."""
        return key_of(self)


class Counters(NamedTuple):
    """What a command counts; the last line shows `always` even when zero, `seldom` only when not.

    `unit` is what it examines, as the progress bar names it.
    """

    always: tuple[Count, ...]
    seldom: tuple[Count, ...] = ()
    unit: str = "metrics"


_PURGE = (Count.MISSING, Count.PURGED)
_PURGE_SELDOM = (Count.MARKED_MISSING, Count.CAME_BACK, Count.ORPHANS_REMOVED)

COUNTERS = {
    "backup": Counters(
        (Count.EXAMINED, Count.UNCHANGED, Count.BACKED_UP, Count.READ_BYTES, Count.STORED_BYTES, Count.REMOVED),
        (Count.VANISHED, Count.TOO_NEW, Count.TORN, Count.GUARDED, Count.STAMPED_ANEW, *_PURGE, *_PURGE_SELDOM),
    ),
    "restore": Counters(
        (Count.EXAMINED, Count.CREATED, Count.HEALED, Count.POINTS_FILLED, Count.ALREADY_WHOLE, Count.SKIPPED),
        (Count.REPLACED, Count.COMPRESSED_DIFFERING, Count.NEEDED_OLDER),
    ),
    "purge": Counters((Count.EXAMINED, *_PURGE), _PURGE_SELDOM),
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
"""What the last line and the log call these counters under --noop; JSON and carbon keep their names."""


def key_of(name: str) -> str:
    """A counter's or command's name as JSON and carbon have it: `read bytes` becomes `read_bytes`."""
    return re.sub(r"\W+", "_", name)

"""The figures of each command: what a run counts, by the names that its last line, its JSON and carbon show.

    last line      `12 backed up, 3.4 MB read`       names as below; bytes in kB, MB …
    --json         `"backed_up": 12, "read_bytes": 3412345`
    --carbon       `….backup.backed_up 12 1795000000`

JSON and carbon always have all the figures of a command, and besides `failed` (what is named on stderr), `seconds`
and `status` (the exit status).  The names in this file are an interface: dashboards and runbooks have them.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Names(NamedTuple):
    """What a command counts; the last line shows `always` also when they are zero, `seldom` only when not.

    `unit` is what it examines, as the progress bar names it.
    """

    always: tuple[str, ...]
    seldom: tuple[str, ...] = ()
    unit: str = "metrics"


_PURGE = (
    "missing",  # metrics in the store, not in the tree
    "purged",  # of them, those whose days were over: all their backups deleted
)
_PURGE_SELDOM = (
    "marked missing",  # of them, those that got their tombstone in this run
    "came back",  # tombstones removed, the metric being in the tree
    "debris removed",  # halves of backups that interrupted runs left
)

FIGURES = {
    "backup": Names(
        (
            "examined",  # files in the tree that are meant
            "unchanged",  # of them, those whose newest backup holds the same content
            "backed up",  # of them, those stored anew
            "read bytes",  # of whisper files
            "stored bytes",  # compressed
            "removed",  # backups that retention no longer keeps
        ),
        (
            "vanished",  # files that went between the walk and their reading
            "too new",  # files that carbon was just creating
            "changing while read",  # stored (or unchanged) all the same
            "kept, all newer being much smaller",  # backups beyond retention
            "stamped anew",  # backups that a clock far ahead had stamped
            *_PURGE,
            *_PURGE_SELDOM,
        ),
    ),
    "restore": Names(
        (
            "examined",  # metrics in the store that are meant
            "created",
            "healed",
            "points filled",
            "already whole",
            "skipped",  # existing files that are left as they are
        ),
        (
            "replaced",
            "compressed, differing",  # of those skipped, go-carbon's compressed ones; they count as failed
            "needed an older backup",  # metrics that were restored, or filled, from one that is not the newest, too
        ),
    ),
    "purge": Names(
        (
            "examined",  # metrics in the store that are meant
            *_PURGE,
        ),
        _PURGE_SELDOM,
    ),
    "verify": Names(
        (
            "examined",  # backups
            "good",  # of them
            "read bytes",  # of payloads, compressed
        ),
        (
            "vanished",  # backups that another run deleted between the listing and their reading
            "left to other days",  # metrics that --sample did not take
        ),
        unit="backups",
    ),
    "verify --tree": Names(
        (
            "examined",  # files in the tree that have a backup
            "same",  # of them, those whose newest backup holds the same content
            "differ",  # of them, those changed since
            "not backed up",  # files that have none, and should
            "new",  # files that have none, and are less than a day old
            "gone",  # metrics in the store, not in the tree
            "read bytes",  # of whisper files
        ),
        (
            "unseen",  # metrics in the store that the walk could not look for
            "vanished",  # files that went between the walk and their reading
            "left to other days",  # metrics that --sample did not take
        ),
    ),
}

IN_A_DRY_RUN = {
    "created": "would be created",
    "healed": "would be healed",
    "points filled": "points would be filled",
    "replaced": "would be replaced",
    "needed an older backup": "would need an older backup",
}
"""What the last line of a dry run calls them; JSON and carbon keep the names."""


def key_of(name: str) -> str:
    """A figure's or command's name as JSON and carbon have it: `read bytes` becomes `read_bytes`."""
    return re.sub(r"\W+", "_", name)

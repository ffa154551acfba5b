"""What a worker reports of one job."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # what only lists need not load them
    from whisperbackup.repository.deleter import PendingDelete
    from whisperbackup.repository.state import Record


class Outcome(NamedTuple):
    """What became of one job: figures to add up, errors to name, and whatever the command wants back."""

    metric: str
    figures: dict[str, int]
    errors: tuple[str, ...] = ()
    pending_deletes: tuple[PendingDelete, ...] = ()  # what may be deleted now
    record: Record | None = None  # for the state file
    store_failed: bool = False  # the error is the store's, and may well be the next metric's, too
    is_bad: bool = False  # the backup `stamp` was read, and is damaged
    stamp: str | None = None  # of the one backup that this is about, where it is about one
    began: float = 0.0  # time.monotonic() of the worker, which is the parent's, too
    ended: float = 0.0

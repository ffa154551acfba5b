"""Which backups of a metric retention drops; `backup` and `prune` ask the same function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from whisperbackup.repository import backups
from whisperbackup.repository.catalog import Backup
from whisperbackup.storage.base import Driver
from whisperbackup.util import Generation, Keep, retain


class Dropped(NamedTuple):
    """Backups that retention does not keep, and stamps that are kept only since all newer backups are much smaller."""

    backups: list[Backup]
    guarded: list[str]


def may_drop(existing: Sequence[Backup], keep: Keep) -> bool:
    """Whether retention would drop or guard one, if all contents differed; needs only the listing."""
    if len(existing) <= keep.last:
        return False
    kept = retain(generations_of(existing), keep)
    return bool(kept.dropped or kept.guarded)


def dropped(
    driver: Driver, key: str, existing: Sequence[Backup], keep: Keep, newer: Sequence[Generation] = ()
) -> Dropped:
    """What retention drops of `existing`, if `newer` follow them; the keys begin with `key`.  Raises StorageError."""
    generations = [*generations_of(existing), *newer]
    kept = retain(generations, keep)
    if kept.dropped or kept.guarded:
        # Retention would drop some if all contents differed; only now is it worth reading the marks to compare.
        contents = {backup.stamp: backups.content_of(driver, key, backup) for backup in existing}
        kept = retain([g._replace(content=contents.get(g.stamp, g.content)) for g in generations], keep)
    return Dropped([backup for backup in existing if backup.stamp in kept.dropped], kept.guarded)


def generations_of(existing: Sequence[Backup]) -> list[Generation]:
    """Backups as retention sees them, each content treated as different from every other's."""
    return [backups.generation_of(backup) for backup in existing]

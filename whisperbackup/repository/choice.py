"""Which backups of a metric restore uses, by the rules of retention (`util.dwarfs`, `util.falls`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from whisperbackup import util
from whisperbackup.repository.backups import generation_of
from whisperbackup.repository.catalog import Backup
from whisperbackup.util import Generation


class Choice:
    """Iterate over the backups to restore a metric from: the newest, and older ones that have what it may lack.

    After a disk was replaced, the newest backup may be that of a recreated file, and a much larger one has the history.
    Every backup that was yielded counts as good, unless it was replaced before the next one is requested.
    """

    def __init__(self, candidates: Sequence[Backup], since: str | None = None) -> None:
        """`candidates`: the newest first; of them, those made after the stamp `since` are used, and the one before."""
        self.saw_good = False
        self._left = list(candidates)
        self._listed = candidates
        self._since = since
        self._lasts = _last_of_old_files(candidates)
        self._tried: set[str] = set()
        self._useless: set[str] = set()  # bad or gone
        self._newer: list[Generation] = []

    def __iter__(self) -> Iterator[Backup]:
        while self._left:
            backup = self._left.pop(0)
            if self._is_used(backup, self._newer):
                self._tried.add(backup.stamp)
                yield backup
            if backup.stamp not in self._useless:
                self._newer.append(generation_of(backup))
                self.saw_good = True

    def has_more(self, backup: Backup) -> bool:
        """Whether others follow the backup that was just yielded, if it is good."""
        newer = [*self._newer, generation_of(backup)]
        for other in self._left:
            if self._is_used(other, newer):
                return True
            newer.append(generation_of(other))
        return False

    def _is_used(self, backup: Backup, newer: Sequence[Generation]) -> bool:
        """Whether to use a backup, if the `newer` ones are good."""
        if self._since is not None and all(other.stamp > self._since for other in newer):
            return True
        return backup.stamp in self._lasts or util.dwarfs(generation_of(backup), newer)

    def replace(self, backup: Backup, candidates: Sequence[Backup] | None = None) -> None:
        """Choose again without `backup`, which is bad; or among the `candidates` that exist now, since it is gone."""
        self._useless.add(backup.stamp)
        if candidates is not None:
            self._listed = candidates
        self._lasts = _last_of_old_files([one for one in self._listed if one.stamp not in self._useless])
        self._left = [one for one in self._listed if one.stamp not in self._tried]


def _last_of_old_files(candidates: Sequence[Backup]) -> set[str]:
    """The stamps of what may be the last backups of a file that was recreated, whatever the clock can tell."""
    generations = [generation_of(one) for one in reversed(candidates)]
    return {last.stamp for can_tell in (True, False) for last, _ in util.falls(generations, can_tell)}

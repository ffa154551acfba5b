"""What each storage path holds, counted in one pass over a listing; memory follows the number of storage paths."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from whisperbackup.repository.catalog import Metric, Part, parse_suffix, read_metric, storage_path_of
from whisperbackup.storage.base import StoredObject
from whisperbackup.tree.selection import Selection

_IS_RECORD = re.compile(r"(^|/)\.(increments|runs)/")
"""Keys of increments and of the records of runs, which are counted elsewhere."""


@dataclass
class Summary:
    """The counts of one storage path; stamps are empty if there is no backup."""

    storage_path: str
    metrics: int = 0
    backups: int = 0
    bytes_by_codec: collections.Counter[str] = field(default_factory=collections.Counter)
    oldest: str = ""
    newest: str = ""
    missing: int = 0
    orphans: int = 0
    increments: int = 0
    increment_bytes: int = 0
    last_run: dict[str, object] | None = None  # as list --runs shows it

    def add(self, metric: Metric) -> None:
        """Count one metric."""
        self.metrics += 1
        self.backups += len(metric.backups)
        self.missing += bool(metric.missing_since)
        self.orphans += len(metric.orphans)
        for backup in metric.backups:
            self.oldest = min(self.oldest or backup.stamp, backup.stamp)
            self.newest = max(self.newest, backup.stamp)
            for payload in backup.payloads:
                self.bytes_by_codec[payload.codec] += payload.size

    def fields(self) -> dict[str, object]:
        """The counts for JSON."""
        return dataclasses.asdict(self) | {"bytes_by_codec": dict(sorted(self.bytes_by_codec.items()))}


class Summaries:
    """The summaries of all storage paths in a listing, by path; `foreign` counts unrecognized keys."""

    def __init__(self, listing: Iterable[StoredObject], selection: Selection) -> None:
        """Read the listing."""
        self.by_path: dict[str, Summary] = {}
        self.foreign = 0
        for (path, name), parts in itertools.groupby(self._parts(listing), lambda found: found[0]):
            if name in selection:
                self.by_path.setdefault(path, Summary(path)).add(read_metric(name, (part for _, part in parts)))

    def _parts(self, listing: Iterable[StoredObject]) -> Iterator[tuple[tuple[str, str], Part]]:
        """Storage path and metric of each object, with the object."""
        for key, size, md5 in listing:
            if _IS_RECORD.search(key):
                continue
            path = storage_path_of(key)
            folder, _, end = key.rpartition("/")
            suffix = parse_suffix(end)
            if path is None or suffix is None:
                self.foreign += 1
            else:
                yield (path, folder[len(path) :]), (suffix, size, md5)

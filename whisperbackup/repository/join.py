"""Two sorted streams meet: the tree's metrics and the store's, joined in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whisperbackup.repository.catalog import Metric
from whisperbackup.tree.walk import LocalFile, Skipped


class Pair(NamedTuple):
    """One metric: what the walk says of it, and what the store holds of it.

    `local` is None for a metric that is surely not in the tree, Skipped for one of which the walk cannot tell.
    A pair without `metric` is a file that was never backed up, or a Skipped on its own, told once.
    """

    local: LocalFile | Skipped | None
    metric: Metric | None


def join(walk: Iterable[LocalFile | Skipped], catalog: Iterable[Metric]) -> Iterator[Pair]:
    """Pair two streams that are both ascending by key."""
    locals_ = iter(walk)
    local = next(locals_, None)
    skipped: Skipped | None = None  # the last one; metrics below a folder follow it directly
    for metric in catalog:
        while local is not None and local.key <= metric.key:
            if isinstance(local, Skipped):
                skipped = local
            elif local.key == metric.key:
                break
            yield Pair(local, None)
            local = next(locals_, None)
        if local is not None and local.key == metric.key:
            yield Pair(local, metric)
            local = next(locals_, None)
        elif skipped is not None and metric.key.startswith(skipped.key):
            yield Pair(skipped, metric)
        else:
            yield Pair(None, metric)
    while local is not None:
        yield Pair(local, None)
        local = next(locals_, None)

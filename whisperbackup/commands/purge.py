"""purge: see which metrics in the store are no longer in the tree."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator

from whisperbackup import tree
from whisperbackup.catalog import Catalog
from whisperbackup.commands import open_store
from whisperbackup.merge import Pair, join
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told
from whisperbackup.tree import Unseen

logger = logging.getLogger(__name__)


class Purge:
    """What one pass over tree and store says about metrics that are gone."""

    def __init__(self, options: Options, tally: Tally) -> None:
        self._options = options
        self._tally = tally

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Pass `pairs` on, noting what is missing; says what the walk could not see."""
        for pair in pairs:
            if isinstance(pair.local, Unseen) and pair.metric is None and pair.local.reason:
                self._note_unseen(pair.local)
            elif pair.local is None and pair.metric is not None:
                logger.info("%s: not in the tree any more", pair.metric.name)
                self._tally.figures["missing"] += 1
            yield pair

    def _note_unseen(self, unseen: Unseen) -> None:
        path = os.fsdecode(unseen.path)
        if unseen.is_error:
            self._tally.fail(path, unseen.reason)
        else:
            logger.warning("%s: not backed up, nor purged: %s", path, unseen.reason)


def run(options: Options) -> int:
    """Report what is missing; the exit status."""
    tree.check_prefix(options.prefix)
    tally = Tally("purge", ("missing",))
    with open_store(options) as driver, told(tally, options.quiet):
        catalog = Catalog(driver, options.storage_path, options.selection)
        for _ in Purge(options, tally).watch(join(tree.walk(options.prefix, options.selection), catalog)):
            pass
        catalog.report_foreign()
    return tally.finish()

"""backup: store every metric whose file changed since its newest backup, then purge what is gone."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whisperbackup import backups, compression, tree, util, wsp
from whisperbackup.catalog import Catalog, Metric, next_stamp
from whisperbackup.commands import open_store
from whisperbackup.commands.purge import (
    KEYS_AT_ONCE,
    Deletion,
    Purge,
    Sweep,
    Tombstone,
    carry_out,
    check_tree,
    deletions,
    work_on,
)
from whisperbackup.merge import Pair, join
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.tree import Found
from whisperbackup.util import CannotRun, Generation, retain
from whisperbackup.workers import Budget, Outcome, Pool, Work, failure

logger = logging.getLogger(__name__)

FIGURES = ("examined", "unchanged", "backed up", "read bytes", "stored bytes", "removed")


class Job(NamedTuple):
    """A file to back up if it changed; `metric` is what the store holds of it."""

    name: str
    path: bytes
    metric: Metric | None


def run(options: Options) -> int:
    """Back up what changed; the exit status."""
    tally = Tally("backup", FIGURES)
    with open_store(options, create=True) as driver:
        check_tree(options.prefix)
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog = Catalog(driver, options.storage_path, options.selection)
            surplus: list[str] = []
            purge = Purge(options, tally, surplus)
            pairs = purge.watch(join(tree.walk(options.prefix, options.selection), catalog))
            for outcome in work_through(pool, _jobs(pairs, surplus), tally):
                surplus += outcome.surplus
            carry_out(purge, pool, tally, surplus)
            catalog.report_foreign()
    if not tally.figures["examined"] and not tally.failed and not purge.saw_any:
        raise CannotRun("no metric matches, neither in the tree nor in the store; see -m and --exclude")
    return tally.finish()


def _jobs(pairs: Iterable[Pair], surplus: list[str]) -> Iterator[Job | Deletion]:
    """A job for each file that is there; between them deletions, as soon as `surplus` is worth a request."""
    for pair in pairs:
        if isinstance(pair.local, Found):
            yield Job(pair.local.name, pair.local.path, pair.metric)
        yield from deletions(surplus, KEYS_AT_ONCE)


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    # The parent has created the bucket by now; only under --noop may it be absent still.
    driver = open_store(options, create=options.noop).__enter__()  # for as long as the worker lives
    compress = compression.compressor(options.algorithm)
    budget = Budget()

    def work(job: Job | Deletion | Tombstone | Sweep) -> Outcome:
        if not isinstance(job, Job):
            return work_on(job, driver)
        try:
            with budget.take(os.stat(job.path).st_size):
                return backup_metric(job, options, driver, compress)
        except FileNotFoundError:
            return Outcome(job.name, {"examined": 1, "vanished": 1})
        except wsp.TooNew as error:
            logger.info("%s: too new: %s", job.name, error)
            return Outcome(job.name, {"examined": 1, "too new": 1})
        except wsp.CorruptFile as error:
            return Outcome(job.name, {"examined": 1}, (f"not a whisper file, not backed up: {error}",))
        except (OSError, ValueError, StorageError) as error:
            return failure(job.name, error, examined=1)

    return work


def backup_metric(job: Job, options: Options, driver: Driver, compress: compression.Compress) -> Outcome:
    """Back up one file unless its newest backup holds the same content, then see what retention no longer keeps.

    Raises what `wsp.read` and the driver raise.
    """
    key = f"{options.storage_path}{job.name}/"
    content, is_torn = wsp.read(job.path, options.max_file_size)
    now = util.utc_now()
    figures = {"examined": 1, "read bytes": len(content)}
    if is_torn:
        figures["changing while read"] = 1
    sha1 = backups.sha1_of(content)
    existing = job.metric.backups if job.metric else ()
    if existing and backups.has_digest(driver, key, existing[-1], sha1):
        return Outcome(job.name, figures | {"unchanged": 1})
    stamp = next_stamp(now, job.metric.last_stamp if job.metric else "")
    payload = compress(content)
    backups.store(driver, key, stamp, options.algorithm, payload, sha1)
    logger.debug("%s: stored %s, %d bytes of %s", job.name, stamp, len(payload), options.algorithm)
    figures |= {"backed up": 1, "stored bytes": len(payload)}
    surplus, counts = _surplus(job, key, options, driver, Generation(stamp, options.algorithm, len(payload), sha1))
    return Outcome(job.name, figures | counts, (), surplus)


def _surplus(
    job: Job, key: str, options: Options, driver: Driver, latest: Generation
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The keys that retention gives up now that `latest` is complete, and the figures to count."""
    existing = job.metric.backups if job.metric else ()
    if len(existing) < options.keep.last:
        return (), {}
    generations = [
        Generation(backup.stamp, *backup.payloads[0], backups.content_of(driver, key, backup)) for backup in existing
    ]
    kept = retain([*generations, latest._replace(content=backups.mark_md5(latest.content))], options.keep)
    surplus = tuple(key + suffix for backup in existing if backup.stamp in kept.dropped for suffix in backup.suffixes())
    counts = {"removed": len(kept.dropped)}
    if kept.guarded:
        counts["kept, all newer being much smaller"] = len(kept.guarded)
        logger.warning(
            "%s: kept beyond -r %d, every newer backup being much smaller: %s",
            job.name, options.keep.last, ", ".join(kept.guarded),
        )  # fmt: skip
    return surplus, counts

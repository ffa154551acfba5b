"""backup: store every metric whose file changed since its newest backup, then purge what is gone."""

from __future__ import annotations

import functools
import logging
import os
import random
import time
import unicodedata
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from whisperbackup import backups, compression, util, wsp
from whisperbackup.catalog import Backup, Metric, mark_md5, next_stamp, parse_suffix, stamp_of
from whisperbackup.commands import nothing_to_back_up, open_driver, open_store
from whisperbackup.commands.passes import tree_and_store
from whisperbackup.commands.purge import Purge, Sweep, Tombstone, check_tree, work_on
from whisperbackup.deletion import KEYS_AT_ONCE, Deletion, Doomed, doom, portions
from whisperbackup.merge import Pair
from whisperbackup.neighbour import Neighbour
from whisperbackup.options import Options
from whisperbackup.outcome import Outcome
from whisperbackup.progress import Tally, tick, told, work_through
from whisperbackup.state import Record, State, fingerprint, is_settled
from whisperbackup.storage.base import Driver, Exists, StorageError
from whisperbackup.tree import Found
from whisperbackup.util import Generation, Keep, retain
from whisperbackup.workers import Budget, Pool, Work, failure

logger = logging.getLogger(__name__)

STAMPS = 10  # tried for one backup, before what takes them is something else than another run


class Job(NamedTuple):
    """A file to back up if it changed; `metric` is what the store holds of it.

    `known` is there for a file that was not touched since its content was known.
    """

    name: str
    path: bytes
    metric: Metric | None
    known: Record | None


def run(options: Options, tally: Tally) -> int:
    """Back up what changed; the exit status."""
    with open_store(options, create=True) as driver:
        check_tree(options.prefix)
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog, pairs = tree_and_store(options, driver)
            store = (options.prefix, options.driver, options.bucket, options.storage_path, options.storage_arguments)
            state = State(options.statefile, store, options.selection)
            surplus: list[Doomed] = []

            def take(outcome: Outcome) -> None:
                surplus.extend(outcome.surplus)
                if outcome.record:
                    state.note(outcome.record)

            purge = Purge(options, tally)
            changed = _touched(purge.watch(pairs), state, options.keep, tally)
            work_through(pool, _with_deletions(changed, surplus), tally, take)
            purge.carry_out(pool, surplus)
            catalog.report_foreign()
            if not options.noop:
                state.write()
    if not tally.figures["examined"] and not tally.failed and not purge.saw_any:
        raise nothing_to_back_up(options)
    return tally.finish()


def _touched(pairs: Iterable[Pair], state: State, keep: Keep, tally: Tally) -> Iterator[Job]:
    """A job for each file that is there, but for those that are known to be in the store as they are."""
    for local, metric in pairs:
        if not isinstance(local, Found):
            continue
        known = state.recall(local.key)
        if known and known.fingerprint != _fingerprint(local.path):
            known = None
        if known and metric and _is_done(metric, known, keep):
            tally.figures["examined"] += 1
            tally.figures["unchanged"] += 1
            tick(tally)
            state.note(known)
        else:
            yield Job(local.name, local.path, metric, known)


def _fingerprint(path: bytes) -> str:
    try:
        return fingerprint(os.lstat(path))
    except OSError:
        return ""  # reading it will tell why


def _is_done(metric: Metric, known: Record, keep: Keep) -> bool:
    """Whether there is nothing to do about a metric whose file is the one that `known` was noted of."""
    if not metric.backups or metric.tombstones or not known.is_of(metric.backups[-1]):
        return False
    if len(metric.backups) <= keep.last:
        return True
    kept = retain(_generations(metric.backups), keep)
    return not kept.dropped and not kept.guarded


def _with_deletions(jobs: Iterable[Job], surplus: list[Doomed]) -> Iterator[Job | Deletion]:
    """`jobs`, and between them deletions, as soon as `surplus` is worth a request."""
    for job in jobs:
        yield job
        yield from portions(surplus, KEYS_AT_ONCE)


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    # The parent has created the bucket by now; only under --noop may it be absent still.
    driver = open_driver(options, create=options.noop)
    compress = compression.compressor(options.algorithm)
    budget = Budget()
    neighbour = Neighbour(options.bandwidth and options.bandwidth / options.processes, options.nice)

    def work(job: Job | Deletion | Tombstone | Sweep) -> Outcome:
        if not isinstance(job, Job):
            return work_on(job, driver)
        try:
            with budget.take(_size(job.path)):
                return backup_metric(job, options, driver, compress, neighbour)
        except (OSError, ValueError, StorageError) as error:
            return failure(job.name, error, examined=1)

    return work


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # reading it will tell why


def backup_metric(
    job: Job, options: Options, driver: Driver, compress: compression.Compress, neighbour: Neighbour
) -> Outcome:
    """Back up one file unless its newest backup holds the same content, then see what retention no longer keeps.

    Raises what the driver raises, and ValueError where no later stamp can be made.
    """
    key = f"{options.storage_path}{job.name}/"
    existing = job.metric.backups if job.metric else ()
    figures = {"examined": 1}
    if job.metric and job.metric.tombstones:  # first of all: if it went again tomorrow, its days must start anew
        driver.delete([f"{key}{stamp}.missing" for stamp in job.metric.tombstones])
        figures["came back"] = 1
    if job.known and existing and backups.has_digest(driver, key, existing[-1], job.known.sha1):
        figures["unchanged"] = 1
        return _outcome(job, options, driver, figures, _generations(existing), job.known.seen_in(existing[-1]))
    try:
        reading = wsp.read(job.path, options.max_file_size, neighbour)
    except FileNotFoundError:
        return Outcome(job.name, figures | {"vanished": 1})
    except wsp.TooNew as error:
        if existing:  # a file that was whole once and is short now is cut off, however young its last write
            return Outcome(job.name, figures, (f"not a whisper file, not backed up: {error}",))
        logger.warning("%s: too new: %s", job.name, error)
        return Outcome(job.name, figures | {"too new": 1})
    except wsp.CorruptFile as error:
        return Outcome(job.name, figures, (f"not a whisper file, not backed up: {error}",))
    now = util.utc_now()
    figures["read bytes"] = len(reading.content)
    if reading.is_torn:
        figures["changing while read"] = 1
    sha1 = backups.sha1_of(reading.content)
    generations = _generations(existing)
    if existing and backups.has_digest(driver, key, existing[-1], sha1):
        figures["unchanged"] = 1
        stamp, listed_md5 = existing[-1].stamp, existing[-1].mark_md5
    else:
        stamp, listed_md5 = next_stamp(now, job.metric.last_stamp if job.metric else ""), None
        if not job.metric:
            _check_form(driver, key, now)
        payload = compress(reading.content)
        stamp = _store(driver, key, stamp, options.algorithm, payload, sha1)
        logger.debug("%s: stored %s, %d bytes of %s", job.name, stamp, len(payload), options.algorithm)
        figures |= {"backed up": 1, "stored bytes": len(payload)}
        generations.append(Generation(stamp, options.algorithm, len(payload), mark_md5(sha1)))
    record = None
    if is_settled(reading.status, reading.began) and not reading.is_torn:
        record = Record(job.name + "/", fingerprint(reading.status), sha1, stamp, listed_md5 or "")
    return _outcome(job, options, driver, figures, generations, record)


def _check_form(driver: Driver, key: str, now: datetime) -> None:
    """See that a metric that the listing lacks is not there.  Raises StorageError.

    A file system or a store that merges the Unicode forms of a name lists one of them, and mixes the backups of both.
    """
    if unicodedata.is_normalized("NFC", key) and unicodedata.is_normalized("NFD", key):
        return
    before = stamp_of(now - timedelta(hours=1))  # later ones may be another run's
    first = next(driver.list(key), None)
    suffix = parse_suffix(first.key.rpartition("/")[2]) if first else None
    if suffix and suffix.stamp < before:
        raise StorageError(
            f"the store does not list '{key}', and holds it all the same: it merges the Unicode forms of names; "
            "rename the metric, or use a store that keeps names as they are"
        )


def _store(driver: Driver, key: str, stamp: str, codec: str, payload: bytes, sha1: str) -> str:
    """Store a backup; its stamp, which is a later one where a run without our lock has taken the first."""
    for _ in range(STAMPS):
        try:
            backups.store(driver, key, stamp, codec, payload, sha1)
            return stamp
        except Exists as error:
            logger.info("%s; trying a later stamp", error)
            time.sleep(random.uniform(0, 0.3))
            stamp, conflict = next_stamp(util.utc_now(), stamp), error
    raise StorageError(
        f"{STAMPS} stamps in a row were taken, the last by {conflict.key}: let one run at a time back up to this store"
    )


def _outcome(
    job: Job,
    options: Options,
    driver: Driver,
    figures: dict[str, int],
    generations: list[Generation],
    record: Record | None,
) -> Outcome:
    """The outcome of a file that is in the store now as `generations`, with what retention no longer keeps of them."""
    key = f"{options.storage_path}{job.name}/"
    existing = job.metric.backups if job.metric else ()
    kept = retain(generations, options.keep)
    if kept.dropped or kept.guarded:
        # Told apart as if all were different, some would go; now it is worth asking which are.
        contents = {backup.stamp: backups.content_of(driver, key, backup) for backup in existing}
        kept = retain([g._replace(content=contents.get(g.stamp, g.content)) for g in generations], options.keep)
    if kept.guarded:
        figures["kept, all newer being much smaller"] = len(kept.guarded)
        logger.info("%s: kept, every newer backup being much smaller: %s", job.name, ", ".join(kept.guarded))
    dropped = [backup for backup in existing if backup.stamp in kept.dropped]
    surplus = [one for backup in dropped for one in doom((key + end for end in backup.suffixes()), "removed")]
    return Outcome(job.name, figures, (), tuple(surplus), record)


def _generations(existing: Iterable[Backup]) -> list[Generation]:
    return [_generation(backup) for backup in existing]


def _generation(backup: Backup) -> Generation:
    """A backup as retention sees it, its content taken for different from every other's."""
    largest = max(backup.payloads, key=lambda payload: payload.size)
    return Generation(backup.stamp, largest.codec, largest.size, backup.stamp)

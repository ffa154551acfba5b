"""backup: store every metric whose file changed since its newest backup, then purge what is gone."""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
import os
import random
import time
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from whisperbackup.commands import nothing_to_back_up, open_driver
from whisperbackup.commands.known_store import holds_nothing, open_for_backup, state_of
from whisperbackup.commands.pipeline import tree_and_store, work_through
from whisperbackup.commands.purge import Purge, Sweep, Tombstone, check_tree, log_return, work_on
from whisperbackup.options import Options
from whisperbackup.report.progress import tick, told
from whisperbackup.report.run_stats import Tally
from whisperbackup.repository import backups, compression, future_stamps
from whisperbackup.repository.catalog import Backup, Metric, mark_md5
from whisperbackup.repository.deleter import Deleter, Deletion, PendingDelete
from whisperbackup.repository.join import Pair
from whisperbackup.repository.known_bad import KnownBad
from whisperbackup.repository.stamps import next_stamp, stamp_of
from whisperbackup.repository.state import EMPTY, FILLED, MARKED, Record, State, fingerprint, is_settled
from whisperbackup.runtime import clock
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.outcome import Outcome
from whisperbackup.runtime.pool import Pool, Work, failure
from whisperbackup.storage.base import Driver, Exists, StorageError, is_marked
from whisperbackup.tree.walk import LocalFile
from whisperbackup.util import Generation, Keep, retain
from whisperbackup.whisper import format, reader
from whisperbackup.whisper.throttle import Throttle

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
    is_bad: bool = False  # its newest backup is known to be damaged


def run(options: Options, tally: Tally) -> int:
    """Back up what changed; the exit status."""
    state = state_of(options)
    with contextlib.closing(open_for_backup(options, state)) as driver:
        check_tree(options.prefix)
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog, pairs = tree_and_store(options, driver, state)
            deleter = Deleter()

            def take(outcome: Outcome) -> None:
                deleter.add(*outcome.pending_deletes)
                if outcome.figures.get("backed up"):
                    still_bad.pop(outcome.metric, None)
                if outcome.figures.get("backed up") or outcome.figures.get("unchanged"):
                    state.store = filled
                if outcome.record:
                    state.note(outcome.record)

            purge = Purge(options, tally)
            known_bad = KnownBad(options)
            still_bad = {name: stamp for name, stamp in known_bad.stamps.items() if name not in options.selection}
            pairs = _noting_bad(purge.watch(pairs), known_bad, still_bad)
            changed = _touched(pairs, still_bad, state, options.keep, tally)
            filled = MARKED if is_marked(driver) else FILLED
            try:
                work_through(pool, _with_deletions(changed, deleter), tally, take)
                purge.carry_out(pool, deleter)
                catalog.report_foreign()
            except BaseException:
                state.save()  # what is done is done, and need not be read again
                raise
            if tally.figures["purged"] and holds_nothing(driver, options):
                state.store = EMPTY
            state.write()
            if not options.noop:
                known_bad.keep(still_bad)
    if not tally.figures["examined"] and not tally.failed and not purge.saw_any:
        raise nothing_to_back_up(options)
    return tally.finish()


def _noting_bad(pairs: Iterable[Pair], known_bad: KnownBad, still_bad: dict[str, str]) -> Iterator[Pair]:
    """Pass `pairs` on; puts into `still_bad` which of the backups that are known to be bad are a metric's newest."""
    for pair in pairs:
        metric = pair.metric
        if metric and metric.backups and metric.backups[-1].stamp == known_bad.stamps.get(metric.name):
            still_bad[metric.name] = metric.backups[-1].stamp
        yield pair


def _touched(pairs: Iterable[Pair], bad: Container[str], state: State, keep: Keep, tally: Tally) -> Iterator[Job]:
    """A job for each file that is there, but for those that are known to be in the store as they are."""
    now = clock.utc_now()
    for local, metric in pairs:
        if not isinstance(local, LocalFile):
            continue
        known = state.recall(local.key)
        if local.name in bad:
            yield Job(local.name, local.path, metric, None, is_bad=True)
            continue
        if known and known.fingerprint != _fingerprint(local.path):
            known = None
        if known and metric and _is_done(metric, known, keep) and not future_stamps.misdated(metric.backups, now):
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


def _with_deletions(jobs: Iterable[Job], deleter: Deleter) -> Iterator[Job | Deletion]:
    """`jobs`, and between them deletions, as soon as there are enough keys for a request."""
    for job in jobs:
        yield job
        yield from deleter.full_jobs()


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    # The parent has created the bucket by now; only under --noop may it be absent still.
    driver = open_driver(options, create=options.noop)
    compress = compression.compressor(options.algorithm)
    budget = Budget()
    throttle = Throttle(options.bandwidth and options.bandwidth / options.processes, options.nice)

    def work(job: Job | Deletion | Tombstone | Sweep) -> Outcome:
        if not isinstance(job, Job):
            return work_on(job, driver, options.noop)
        try:
            with budget.take(_size(job.path)):
                return backup_metric(job, options, driver, compress, throttle)
        except (OSError, ValueError, StorageError) as error:
            return failure(job.name, error, examined=1)

    return work


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # reading it will tell why


def backup_metric(
    job: Job, options: Options, driver: Driver, compress: compression.Compress, throttle: Throttle
) -> Outcome:
    """Back up one file unless its newest backup holds the same content, then see what retention no longer keeps.

    Raises what the driver raises, and ValueError where no later stamp can be made.
    """
    key = f"{options.storage_path}{job.name}/"
    figures = {"examined": 1}
    if job.metric and job.metric.tombstones:  # first of all: if it went again tomorrow, its days must start anew
        log_return(job.name, options.noop)
        driver.delete([f"{key}{stamp}.missing" for stamp in job.metric.tombstones])
        figures["came back"] = 1
    if job.metric and (misdated := future_stamps.misdated(job.metric.backups, clock.utc_now())):
        is_too_large = functools.partial(operator.lt, options.max_file_size)
        metric = future_stamps.stamp_anew(driver, key, job.metric, clock.utc_now(), is_too_large)
        if metric is not job.metric:
            figures["stamped anew"] = misdated
            job = job._replace(metric=metric)
    existing = job.metric.backups if job.metric else ()
    if job.known and existing and backups.has_digest(driver, key, existing[-1], job.known.sha1):
        figures["unchanged"] = 1
        return _outcome(job, options, driver, figures, _generations(existing), job.known.seen_in(existing[-1]))
    try:
        reading = reader.read(job.path, options.max_file_size, throttle)
    except FileNotFoundError:
        return Outcome(job.name, figures | {"vanished": 1})
    except reader.TooNew as error:
        if existing:  # a file that was whole once and is short now is cut off, however young its last write
            return Outcome(job.name, figures, (f"not a whisper file, not backed up: {error}",))
        logger.warning("%s: too new: %s", job.name, error)
        return Outcome(job.name, figures | {"too new": 1})
    except format.CorruptFile as error:
        return Outcome(job.name, figures, (f"not a whisper file, not backed up: {error}",))
    now = clock.utc_now()
    figures["read bytes"] = len(reading.content)
    if reading.is_torn:
        figures["changing while read"] = 1
    sha1 = backups.sha1_of(reading.content)
    generations = _generations(existing)
    if existing and not job.is_bad and backups.has_digest(driver, key, existing[-1], sha1):
        figures["unchanged"] = 1
        stamp, listed_md5 = existing[-1].stamp, existing[-1].mark_md5
    else:
        stamp, listed_md5 = future_stamps.later_stamp(job.metric, now) if job.metric else stamp_of(now), None
        payload = compress(reading.content)
        stamp = _store(driver, key, stamp, options.algorithm, payload, sha1)
        _log(options, "%s: %s, %d bytes of %s", job.name, "would be backed up" if options.noop else f"stored {stamp}",
             len(payload), options.algorithm)  # fmt: skip
        figures |= {"backed up": 1, "stored bytes": len(payload)}
        generations.append(Generation(stamp, options.algorithm, len(payload), mark_md5(sha1)))
    record = None
    if is_settled(reading.status, reading.began) and not reading.is_torn:
        record = Record(job.name + "/", fingerprint(reading.status), sha1, stamp, listed_md5 or "")
    return _outcome(job, options, driver, figures, generations, record)


def _store(driver: Driver, key: str, stamp: str, codec: str, payload: bytes, sha1: str) -> str:
    """Store a backup; its stamp, which is a later one where a run without our lock has taken the first."""
    for _ in range(STAMPS):
        try:
            backups.store(driver, key, stamp, codec, payload, sha1)
            return stamp
        except Exists as error:
            logger.info("%s; trying a later stamp", error)
            time.sleep(random.uniform(0, 0.3))
            stamp, conflict = next_stamp(clock.utc_now(), stamp), error
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
    if dropped:
        _log(options, "%s: %s the backups of %s, which retention does not keep", job.name,
             "would delete" if options.noop else "deleting", ", ".join(backup.stamp for backup in dropped))  # fmt: skip
    pending = [PendingDelete("removed", tuple(key + end for end in backup.suffixes())) for backup in dropped]
    return Outcome(job.name, figures, (), tuple(pending), record)


def _log(options: Options, text: str, *arguments: object) -> None:
    """Log what is done to one metric: what one wants to know of a dry run, and of no other."""
    logger.log(logging.INFO if options.noop else logging.DEBUG, text, *arguments)


def _generations(existing: Iterable[Backup]) -> list[Generation]:
    return [backups.generation_of(backup) for backup in existing]

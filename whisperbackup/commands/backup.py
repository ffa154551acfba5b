"""backup: store every metric whose file changed since its newest backup, then purge what is missing."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from whisperbackup.commands import check_excluded, expected, fail_unmatched, nothing_to_back_up
from whisperbackup.commands.context import Context, MetricJob, open_pool
from whisperbackup.commands.known_store import holds_nothing, known_bad_of, open_for_backup, purge_rules, state_of
from whisperbackup.commands.pipeline import finish_purge, match, run_jobs, tree_and_store
from whisperbackup.commands.run_record import RunRecord, expire_increments
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.progress import reporting, tick
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups, future_stamps, keys
from whisperbackup.repository.catalog import MARK_SIZE, Backup, Metric, mark_md5
from whisperbackup.repository.deleter import Deleter
from whisperbackup.repository.join import Pair
from whisperbackup.repository.known_bad import KnownBad
from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.repository.purge import Purge, log_return, needs_new_backup
from whisperbackup.repository.retention import dropped, may_drop
from whisperbackup.repository.stamps import seconds, stamp_of
from whisperbackup.repository.state import EMPTY, FILLED, MARKED, Record, State, fingerprint, is_settled
from whisperbackup.repository.steady import Steady
from whisperbackup.runtime import clock
from whisperbackup.storage.base import is_marked
from whisperbackup.tree.birth import birth_time
from whisperbackup.tree.places import Places
from whisperbackup.tree.selection import Unmatched
from whisperbackup.tree.walk import LocalFile, check_tree
from whisperbackup.util import YEAR, Generation, Keep
from whisperbackup.whisper import format, reader
from whisperbackup.whisper.cwhisper import is_compressed
from whisperbackup.whisper.span import is_all_after

logger = logging.getLogger(__name__)

LATE = 86400  # seconds: points that a sender brings later than this make a recreated file look like an old one


def run(options: Options, stats: RunStats) -> int:
    """Back up what changed; the exit status."""
    state = state_of(options)
    with contextlib.closing(open_for_backup(options, state)) as driver:
        check_tree(options.prefix)
        check_excluded(options, driver)
        about = functools.partial(expected.metrics, options, driver)
        with open_pool(options, driver) as pool, reporting(stats, options.quiet, about):
            places = Places()
            catalog, pairs = tree_and_store(options, driver, state, places)
            pairs = match(pairs, unmatched := Unmatched(options.selection))
            deleter = Deleter(functools.partial(stats.count, Count.NOT_DELETED) if options.no_delete else None)
            known_bad = known_bad_of(options)
            still_bad = {name: stamp for name, stamp in known_bad.stamps.items() if name not in options.selection}
            filled = MARKED if is_marked(driver) else FILLED
            record = RunRecord(options, driver, stats, places)
            purge = Purge(purge_rules(options), stats, record.steady)

            def on_outcome(outcome: Outcome) -> None:
                deleter.add(*outcome.deletes)
                record.note(outcome)
                if Count.BACKED_UP in outcome.counts:
                    still_bad.pop(outcome.name, None)
                if Count.BACKED_UP in outcome.counts or Count.UNCHANGED in outcome.counts:
                    state.store = filled
                if outcome.record:
                    state.note(outcome.record)

            pairs = _find_bad(record.watch(purge.watch(pairs)), known_bad, still_bad)
            changed = _modified(pairs, still_bad, state, options, stats, record.steady)
            try:
                run_jobs(pool, _with_deletions(changed, deleter), stats, on_outcome)
                finish_purge(pool, purge, deleter, stats)
                catalog.report_foreign()
                if purge.saw_any:
                    fail_unmatched(unmatched, stats.fail)
                ended = record.complete(stats)
                if not options.no_delete:
                    expire_increments(driver, options, record.hours, ended, record.steady, stats)
            except BaseException:
                state.save()  # files backed up so far need not be read again
                raise
            if purge.deletes_any and holds_nothing(driver, options):
                state.store = EMPTY
            state.write()
            if not options.noop:
                known_bad.keep(still_bad)
    if not purge.saw_any and not stats.failed:
        raise nothing_to_back_up(options)
    return stats.finish()


def _find_bad(pairs: Iterable[Pair], known_bad: KnownBad, still_bad: dict[str, str]) -> Iterator[Pair]:
    """Yield `pairs`; add a metric's newest backup to `still_bad` if it is known to be damaged, or has an empty object.

    A disk can lose the content of a file in a power failure.
    """
    for pair in pairs:
        metric = pair.metric
        if metric and metric.backups:
            newest = metric.backups[-1]
            is_cut = newest.mark_size < MARK_SIZE or not all(each.size for each in newest.payloads)
            if is_cut or newest.stamp == known_bad.stamps.get(metric.name):
                still_bad[metric.name] = newest.stamp
        yield pair


def _modified(
    pairs: Iterable[Pair], bad: Container[str], state: State, options: Options, stats: RunStats, steady: Steady
) -> Iterator[MetricJob]:
    """Yield a job for each file, except those whose current content is known to be in the store."""
    # A copy beside its original would help nobody.
    may_redate = steady.covers(future_stamps.SURE) and not options.no_delete
    keep = options.keep._replace(can_tell_year=options.purge_anyway or steady.covers(YEAR))
    for local, metric in pairs:
        if not isinstance(local, LocalFile):
            continue
        if metric and options.no_delete:
            stats.count(Count.NOT_DELETED, len(metric.tombstones))
        known = state.recall(local.key)
        if local.name in bad:
            yield BackupMetric(local.name, local.path, metric, None, keep, may_redate, is_bad=True)
            continue
        if known and known.fingerprint != _fingerprint(local.path):
            known = None
        if known and metric and _is_done(metric, known, options, keep, steady.now, may_redate):
            stats.count(Count.EXAMINED)
            stats.count(Count.UNCHANGED)
            tick(stats)
            state.note(known)
        else:
            yield BackupMetric(local.name, local.path, metric, known, keep, may_redate)


def _fingerprint(path: bytes) -> str:
    try:
        return fingerprint(os.lstat(path))
    except OSError:
        return ""  # the job reports why it cannot read the file


def _is_done(metric: Metric, known: Record, options: Options, keep: Keep, now: datetime, may_redate: bool) -> bool:
    """Whether a metric whose file has not changed since `known` was recorded needs no job."""
    if not metric.backups or not known.is_of(metric.backups[-1]) or may_drop(metric.backups, keep):
        return False
    if options.no_delete:
        return not needs_new_backup(metric, options.purge_days, now, deletes=False)
    return not metric.tombstones and not (may_redate and future_stamps.misdated(metric.backups, now))


def _with_deletions(jobs: Iterable[MetricJob], deleter: Deleter) -> Iterator[MetricJob]:
    """Yield `jobs`, and a deletion as soon as there are enough keys for one request."""
    for job in jobs:
        yield job
        yield from deleter.full_jobs()


class BackupMetric(NamedTuple):
    """Back up one file if it changed; `metric` is its metric in the store.

    `known` is set for a file that was not modified since its content was recorded.  `may_redate`: backups with stamps
    far in the future get new ones.
    """

    name: str
    path: bytes
    metric: Metric | None
    known: Record | None
    keep: Keep
    may_redate: bool
    is_bad: bool = False  # its newest backup is known to be damaged, or may be deleted by another run
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Back up the file unless its newest backup has the same content, then apply retention.

        Raises OSError, StorageError, and ValueError if no later stamp is possible.
        """
        if self.metric and self.metric.tombstones:
            options = context.options
            if needs_new_backup(self.metric, options.purge_days, clock.utc_now(), not options.no_delete):
                return self._replace(known=None, is_bad=True)._run(context, came_back=True)
            return self._run(context, came_back=not options.no_delete)
        return self._run(context, came_back=False)

    def _run(self, context: Context, came_back: bool) -> Outcome:
        with context.budget.take(_size(self.path)):
            key = keys.metric_key(context.options.storage_path, self.name)
            counts = {Count.EXAMINED: 1}
            if came_back and self.metric:
                log_return(self.name, context.noop)
                if not context.options.no_delete:  # first: if the file disappears again, its -x days start again
                    context.driver.delete([keys.tombstone(key, stamp) for stamp in self.metric.tombstones])
                counts[Count.CAME_BACK] = 1
            metric = self.metric
            existing = metric.backups if metric else ()
            if self.known and existing and backups.has_digest(context.driver, key, existing[-1], self.known.sha1):
                metric = self._with_true_stamps(key, context, counts)
                existing = metric.backups if metric else ()
                counts[Count.UNCHANGED] = 1
                record = self.known.seen_in(existing[-1])
                return _outcome(self.name, context, existing, counts, record, self.keep)
            try:
                reading = reader.read(self.path, context.options.max_file_size, context.throttle)
            except FileNotFoundError:
                return Outcome(self.name, counts | {Count.VANISHED: 1})
            except (reader.TooNew, format.CorruptFile) as error:
                # A short file that already has backups was truncated, even if its last write is recent.
                if not isinstance(error, reader.TooNew) or existing:
                    is_foreign = not existing and not isinstance(error, format.TooLarge)
                    reason = f"not a whisper file, not backed up: {error}"
                    return Outcome(self.name, counts, (reason,), is_foreign=is_foreign)
                logger.warning("%s: too new: %s", self.name, error)
                return Outcome(self.name, counts | {Count.TOO_NEW: 1})
            return self._store_reading(reading, key, context, counts)

    def _with_true_stamps(self, key: str, context: Context, counts: dict[Count, int]) -> Metric | None:
        """The metric, after backups that a fast clock stamped far in the future got new stamps.

        Not before the file was read: this run must vouch for the new stamps, or restore would treat all increments
        before it as earlier than that backup.
        """
        metric = self.metric
        if metric is None or not self.may_redate:
            return metric
        max_size = context.options.max_file_size
        changed, moved = future_stamps.stamp_anew(context.driver, key, metric, clock.utc_now(), max_size)
        if moved:
            counts[Count.STAMPED_ANEW] = moved
        return changed

    def _store_reading(self, reading: reader.Reading, key: str, context: Context, counts: dict[Count, int]) -> Outcome:
        """Store the content unless the newest backup has it."""
        metric = self._with_true_stamps(key, context, counts)
        existing = metric.backups if metric else ()
        counts[Count.READ_BYTES] = len(reading.content)
        if reading.is_torn:
            counts[Count.TORN] = 1
        sha1 = backups.sha1_of(reading.content)
        newer: list[Generation] = []
        given = None
        if existing and not self.is_bad and backups.has_digest(context.driver, key, existing[-1], sha1):
            counts[Count.UNCHANGED] = 1
            stamp, listed_md5 = existing[-1].stamp, existing[-1].mark_md5
        else:
            codec, payload = context.options.algorithm, context.compress(reading.content)
            now = reading.moment  # increments at the same time are told from it by this
            if metric is None:
                backups.check_form(context.driver, key, now)
            stamp, listed_md5 = future_stamps.later_stamp(metric, now) if metric else stamp_of(now), None
            is_recreated = bool(existing) and _is_recreated(self.path, reading, existing[-1])
            stamp = given = backups.store_at(context.driver, key, stamp, codec, payload, sha1, is_recreated)
            did = "would be backed up" if context.noop else f"stored {stamp}"
            _log(context, "%s: %s, %d bytes of %s", self.name, did, len(payload), codec)
            counts |= {Count.BACKED_UP: 1, Count.STORED_BYTES: len(payload)}
            newer = [Generation(stamp, codec, len(payload), mark_md5(sha1), is_recreated)]
        record = None
        if is_settled(reading.status, reading.began) and not reading.is_torn:
            record = Record(self.name + "/", fingerprint(reading.status), sha1, stamp, listed_md5 or "")
        return _outcome(self.name, context, existing, counts, record, self.keep, newer)._replace(stamp=given)


def _is_recreated(path: bytes, reading: reader.Reading, last: Backup) -> bool:
    """Whether the file has no points of the time before the `last` backup.

    If it was created after that, a few late points do not count.  If before, it may have been new then, or empty.
    """
    moment, now = seconds(last.stamp), int(reading.moment.timestamp())
    if is_compressed(reading.content) or not is_all_after(reading.content, moment, now, LATE):
        return False
    born = None
    with contextlib.suppress(OSError):
        born = birth_time(path)
    if born is not None and born >= moment + 1:
        return True
    finest = format.parse_header(reading.content).archives[0].step
    return is_all_after(reading.content, moment, now, 0 if born is None else -finest)


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # the job reports why it cannot read the file


def _outcome(
    name: str,
    context: Context,
    existing: tuple[Backup, ...],
    counts: dict[Count, int],
    record: Record | None,
    keep: Keep,
    newer: Sequence[Generation] = (),
) -> Outcome:
    """The outcome for a metric whose backups are now `existing` and `newer`, with what retention drops of them."""
    options = context.options
    key = keys.metric_key(options.storage_path, name)
    surplus = dropped(context.driver, key, existing, keep, newer)
    if surplus.guarded:
        counts[Count.GUARDED] = len(surplus.guarded)
        logger.info("%s: kept beyond -r: all newer backups are much smaller: %s", name, ", ".join(surplus.guarded))
    if surplus.backups:
        did = "would delete" if context.noop else "left to prune" if options.no_delete else "deleting"
        stamps = ", ".join(backup.stamp for backup in surplus.backups)
        _log(context, "%s: %s the backups of %s: retention does not keep them", name, did, stamps)
    deletes = [PendingDelete(Count.REMOVED, tuple(key + end for end in old.suffixes())) for old in surplus.backups]
    return Outcome(name, counts, deletes=tuple(deletes), record=record, guarded=max(surplus.guarded, default=""))


def _log(context: Context, text: str, *arguments: object) -> None:
    """Log what happens to one metric: at level info in a dry run, else at debug."""
    logger.log(logging.INFO if context.noop else logging.DEBUG, text, *arguments)

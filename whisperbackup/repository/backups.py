"""One backup in the store: this module stores it, mark last, and loads and verifies it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import random
import re
import sys
import time
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

from whisperbackup.repository import compression, keys
from whisperbackup.repository.catalog import MARK_SIZE, Backup, Metric, look_up, mark_md5, parse_suffix
from whisperbackup.repository.stamps import next_stamp, stamp_of
from whisperbackup.runtime.budget import BYTES_IN_FLIGHT, Budget
from whisperbackup.storage.base import Driver, Exists, NotFound, StorageError, Unreadable, create_all, holds
from whisperbackup.util import Generation
from whisperbackup.whisper import format

logger = logging.getLogger(__name__)

T = TypeVar("T")

STAMPS = 10  # stamps to try for one backup; if all are taken, the cause is not just another run
MAX_MARK = 256  # bytes
NOT_ITS_SHA1 = "its content does not have the SHA-1 of its mark"
_DIGEST = re.compile(r"[0-9a-f]{40}")


class BadBackup(Exception):
    """A backup that cannot be used; the text gives the reason.

    `is_damaged` is False where the backup may be good, but this machine or these options cannot verify it.
    """

    def __init__(self, reason: str, is_damaged: bool = True) -> None:
        super().__init__(reason)
        self.is_damaged = is_damaged

    def of(self, stamp: str) -> str:
        """The failure of the backup `stamp` in words."""
        return f"the backup of {stamp} {'is bad' if self.is_damaged else 'cannot be read'}: {self}"


class GoneBackup(BadBackup):
    """A listed backup whose mark, or every payload, is missing: another run may have deleted it meanwhile."""


def sha1_of(content: bytes | bytearray) -> str:
    """The 40 hex digits that a mark holds."""
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def store(
    driver: Driver, key: str, stamp: str, codec: str, payload: bytes, sha1: str, is_recreated: bool = False
) -> None:
    """Create a backup below `key` (storage path, metric, slash).  A stop in between leaves an orphan.

    Raises Exists if another run has stored other content under that stamp: the caller must try another stamp.
    Another run that stores the same content is not a conflict.  `is_recreated` is stored with it, and first.
    """
    notes = [(keys.recreated(key, stamp), b"")] if is_recreated else []
    body, mark = (keys.payload(key, stamp, codec), payload), (keys.mark(key, stamp), sha1.encode())
    try:
        is_sure = create_all(driver, [*notes, body, mark])
    except Exists as conflict:
        if conflict.key == mark[0] and _others(driver, f"{key}{stamp}.", body[0]):
            driver.delete([body[0]])  # the other run uses another codec, so the two payloads did not conflict
        raise
    if not is_sure:
        _check_alone(driver, f"{key}{stamp}.", body, mark)


def store_at(
    driver: Driver, key: str, stamp: str, codec: str, payload: bytes, sha1: str, is_recreated: bool = False
) -> str:
    """Store a backup and return its stamp, which is later than `stamp` if a run without the lock has used that one."""
    for _ in range(STAMPS):
        try:
            store(driver, key, stamp, codec, payload, sha1, is_recreated)
            return stamp
        except Exists as error:
            logger.info("%s; retrying with a later stamp", error)
            time.sleep(random.uniform(0, 0.3))
            stamp, conflict = next_stamp(datetime.fromisoformat(stamp), stamp), error
    raise StorageError(
        f"{STAMPS} stamps in a row were taken, the last by {conflict.key}: run one backup at a time to this store"
    )


def check_form(driver: Driver, key: str, now: datetime) -> None:
    """Check that a metric that the listing lacks does not exist.  Raises StorageError.

    A file system or a store that merges the Unicode forms of a name lists one of them, and mixes the backups of both.
    """
    if unicodedata.is_normalized("NFC", key) and unicodedata.is_normalized("NFD", key):
        return
    before = stamp_of(now - timedelta(hours=1))  # later ones may be another run's
    first = next(driver.list(key), None)
    suffix = parse_suffix(first.key.rpartition("/")[2]) if first else None
    if suffix and suffix.stamp < before:
        raise StorageError(
            f"the store does not list '{key}', but holds it: it merges the Unicode forms of names; "
            "rename the metric, or use a store that keeps names as they are"
        )


def _check_alone(driver: Driver, beginning: str, body: tuple[str, bytes], mark: tuple[str, bytes]) -> None:
    """Check that no other run stored a backup under this stamp, where two puts may both succeed.  Raises Exists.

    If two runs replaced each other's objects, the run that wrote its mark last sees the other's payload.  It writes the
    correct mark for that payload, since the other run may already have succeeded, and deletes its own payload.
    """
    md5s = {found.key: found.md5 for found in driver.list(beginning)}
    has_mark, has_body = (md5s.get(key) == _md5(ours) or holds(driver, key, ours) for key, ours in (mark, body))
    others = [key for key in md5s if key.startswith(beginning + "wsp.") and key != body[0]]
    unreadable = any(key.rpartition(".")[2] not in compression.installed() for key in others)
    if has_mark and has_body and (not others or unreadable):
        return  # the mark cannot be made that of a payload whose codec this machine lacks: it stays that of this one
    if has_mark:
        for key in others if has_body else [body[0]]:
            # An object that is already deleted, or is not a payload, needs no mark.
            with contextlib.suppress(compression.CorruptPayload, NotFound):
                digest = hashlib.sha1(usedforsecurity=False)
                for piece in compression.Expansion(key.rpartition(".")[2], driver.get(key)).pieces(sys.maxsize):
                    digest.update(piece)
                driver.put(mark[0], digest.hexdigest().encode())
        if has_body:
            driver.delete([body[0]])
    raise Exists(mark[0])


def _others(driver: Driver, beginning: str, ours: str) -> list[str]:
    """The keys of payloads of other codecs under a stamp."""
    return [found.key for found in driver.list(beginning + "wsp.") if found.key != ours]


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def read_mark(driver: Driver, key: str, backup: Backup) -> str:
    """The SHA-1 in a backup's mark.  Raises BadBackup, also when the mark is gone."""
    if backup.mark_size > MAX_MARK:
        raise BadBackup(f"its mark has {backup.mark_size} bytes instead of {MARK_SIZE}")
    try:
        text = driver.get(keys.mark(key, backup.stamp)).decode("ascii", "replace").strip().lower()
    except NotFound:
        raise GoneBackup("its mark is gone") from None
    except Unreadable as error:
        raise BadBackup(f"its mark cannot be read: {error}") from error
    if not _DIGEST.fullmatch(text):
        raise BadBackup(f"its mark holds {text[:60]!a} instead of a SHA-1")
    return text


class _Mark:
    """A backup's mark, read only where the listing does not prove a content.  Raises what `read_mark` raises."""

    def __init__(self, driver: Driver, key: str, backup: Backup) -> None:
        self._read = functools.cache(functools.partial(read_mark, driver, key, backup))
        self._listed_md5 = backup.mark_md5
        if backup.mark_md5 is None or backup.mark_size > MAX_MARK:
            self._read()

    def is_of(self, sha1: str) -> bool:
        """Whether it holds this SHA-1."""
        return mark_md5(sha1) == self._listed_md5 or sha1 == self._read()


def has_digest(driver: Driver, key: str, backup: Backup, sha1: str) -> bool:
    """Whether `backup` was made from content with this SHA-1; reads the mark only where the listing is no proof.

    False if the mark cannot be read: that costs an upload, but never misses a change.
    """
    if backup.mark_md5 == mark_md5(sha1):
        return True
    try:
        return read_mark(driver, key, backup) == sha1
    except BadBackup:
        return False


def content_of(driver: Driver, key: str, backup: Backup) -> str:
    """A string that is equal for backups of equal content: the MD5 of the mark, read if the listing lacks it."""
    if backup.mark_md5 is not None:
        return backup.mark_md5
    try:
        return mark_md5(read_mark(driver, key, backup))
    except BadBackup:
        return f"unreadable {backup.stamp}"


def generation_of(backup: Backup) -> Generation:
    """A backup as retention sees it, its content treated as different from every other's; empty if its mark is cut."""
    largest = max(backup.payloads, key=lambda payload: payload.size)
    size = largest.size if backup.mark_size >= MARK_SIZE else 0
    return Generation(backup.stamp, largest.codec, size, backup.stamp, backup.is_recreated)


def load(
    driver: Driver, key: str, backup: Backup, max_size: int, budget: Budget, copies: int, use: Callable[[bytes], T]
) -> T:
    """Load the whisper file of `backup`, verify its SHA-1, header and size, and return the result of `use` for it.

    The mark is read only if its MD5 in the listing does not prove the SHA-1: it proves a content that matches it.
    Raises BadBackup if none of its payloads passes.  At most `max_size` bytes are expanded.  Meanwhile `copies` times
    the size that the header declares is reserved in the budget.  Before a reservation so large that it excludes all
    others, the SHA-1 is verified once without keeping the content in memory.
    """
    mark = _Mark(driver, key, backup)
    reasons = []
    is_damaged = False
    gone = 0
    for codec, size in backup.payloads:
        if codec not in compression.installed():
            reasons.append(f"the library for {codec} is not installed")
        elif size > max_size:
            reasons.append(f"its {codec} payload has {size} bytes, more than --max-file-size ({max_size})")
        else:
            try:
                with budget.take(size):
                    payload = driver.get(keys.payload(key, backup.stamp, codec))
                    expansion = compression.Expansion(codec, payload)
                    limit = format.declared_size(expansion.beginning, max_size)
                    if limit is None or limit > BYTES_IN_FLIGHT:
                        # A bomb may declare anything, and some compressed whisper files declare nothing.
                        limit = proven_size(codec, payload, limit or max_size, mark.is_of)
                # Release the payload's share before reserving more, or two threads could wait for each other.
                with budget.take(size + copies * limit):
                    content = expansion.content(limit)
                    _check(content, mark)
                    return use(content)
            except NotFound:
                is_damaged = True
                gone += 1
                reasons.append(f"its {codec} payload is gone")
            except Unreadable as error:
                is_damaged = True
                reasons.append(f"its {codec} payload cannot be read: {error}")
            except format.TooLarge as error:
                reasons.append(f"its {codec} payload may be good, but {error}")
            except (compression.CorruptPayload, format.CorruptFile) as error:
                is_damaged = True
                reasons.append(f"its {codec} payload is damaged: {error}")
    raise (GoneBackup if gone == len(backup.payloads) else BadBackup)("; ".join(reasons), is_damaged)


def look_again(driver: Driver, storage_path: str, name: str, backup: Backup) -> Metric | None:
    """The metric `name` as it is now in the store, if another run deleted `backup` after it was listed.

    None if no run did; then the missing objects are a loss.  A payload without its mark counts as a deletion in
    progress, or interrupted, if retention or purge had a reason for it: a newer complete backup, or a tombstone.
    Raises StorageError.
    """
    metric = look_up(driver, storage_path, name)
    if any(left.stamp == backup.stamp for left in metric.backups):
        return None
    halves = [half for half in metric.orphans if half.stamp == backup.stamp and not half.is_temporary]
    if any(f"{backup.stamp}.sha1" in half.suffixes for half in halves):
        return None
    had_a_reason = metric.missing_since or any(left.stamp > backup.stamp for left in metric.backups)
    return metric if had_a_reason or not halves else None


def proven_size(codec: str, payload: bytes, limit: int, is_right: Callable[[str], bool]) -> int:
    """The content's size in bytes; `is_right` verifies its SHA-1.  Raises what `load` treats as damage."""
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    for piece in compression.Expansion(codec, payload).pieces(limit):
        digest.update(piece)
        size += len(piece)
    if not is_right(digest.hexdigest()):
        raise format.CorruptFile(NOT_ITS_SHA1)
    return size


def _check(content: bytes, mark: _Mark) -> None:
    if not mark.is_of(sha1_of(content)):
        raise format.CorruptFile(NOT_ITS_SHA1)
    format.check(content)

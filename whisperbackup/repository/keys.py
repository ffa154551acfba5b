"""The keys of a metric's objects; only this module builds them.

    <storage path><name>/<stamp>.wsp.<codec>     the payload: the whisper file, compressed
    <storage path><name>/<stamp>.sha1            the mark: SHA-1 of the uncompressed file, written last
    <storage path><name>/<stamp>.recreated       empty: this backup is the first of a file that was recreated
    <storage path><name>/<stamp>.missing         the tombstone
    <storage path>.increments/, .runs/           whisperbackup/increments/manifest.py

The storage path is empty or ends in a slash.  A metric's key is the prefix of the keys of all its objects.
"""

from __future__ import annotations

import re

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
TEMPORARY = rf"\.whisper-backup-({STAMP})-[0-9a-f]+"
AFTER_RECORDS = ".runs0"
"""Greater than every key of an increment or run's record, below the storage path.  Metrics begin with no dot, but may
begin with a character that sorts before it."""
_RECORD = re.compile(
    rf"\.(increments/{STAMP}/(\d{{6}}\.wbi|manifest\.json|{TEMPORARY})|runs/({STAMP}\.json|{TEMPORARY}))", re.ASCII
)


def is_record(key: str) -> bool:
    """Whether a key below the storage path is of an increment, or of a run's record."""
    return key.startswith((".increments/", ".runs/")) and _RECORD.fullmatch(key) is not None


def metric_key(storage_path: str, name: str) -> str:
    """The prefix of the keys of a metric's objects."""
    return f"{storage_path}{name}/"


def payload(metric_key: str, stamp: str, codec: str) -> str:
    """The key of a backup's payload."""
    return f"{metric_key}{stamp}.wsp.{codec}"


def mark(metric_key: str, stamp: str) -> str:
    """The key of a backup's mark."""
    return f"{metric_key}{stamp}.sha1"


def recreated(metric_key: str, stamp: str) -> str:
    """The key of what says that a backup is the first of a file that was recreated."""
    return f"{metric_key}{stamp}.recreated"


def tombstone(metric_key: str, stamp: str) -> str:
    """The key of a tombstone."""
    return f"{metric_key}{stamp}.missing"

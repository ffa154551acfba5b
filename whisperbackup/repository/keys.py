"""The keys of a metric's objects; nothing else puts them together.

    <storage path><name>/<stamp>.wsp.<codec>     the payload: the whisper file, compressed
    <storage path><name>/<stamp>.sha1            the mark: SHA-1 of the uncompressed file, written last
    <storage path><name>/<stamp>.missing         the tombstone

The storage path is empty or ends in a slash.  A metric's key is what the keys of all its objects begin with.
"""

from __future__ import annotations


def metric_key(storage_path: str, name: str) -> str:
    """What the keys of a metric's objects begin with."""
    return f"{storage_path}{name}/"


def payload(metric_key: str, stamp: str, codec: str) -> str:
    """The key of a backup's payload."""
    return f"{metric_key}{stamp}.wsp.{codec}"


def mark(metric_key: str, stamp: str) -> str:
    """The key of a backup's mark."""
    return f"{metric_key}{stamp}.sha1"


def tombstone(metric_key: str, stamp: str) -> str:
    """The key of a tombstone."""
    return f"{metric_key}{stamp}.missing"

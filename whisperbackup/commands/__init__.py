"""The verbs, one a module; each has a `run(options)` that returns the exit status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from whisperbackup import storage
from whisperbackup.options import Options
from whisperbackup.storage.base import Driver

NOTHING_MATCHES = (
    "no metric in {bucket} matches; see what is there with list "
    "(an older whisper-backup wrote to Swift and GCS below --storage-path /)"
)


@contextlib.contextmanager
def open_store(options: Options, create: bool = False) -> Iterator[Driver]:
    """The bucket that the command line names, open; with --noop nothing in it will change."""
    driver = storage.open_bucket(options.driver, options.bucket, options.storage_arguments, create, options.noop)
    with contextlib.closing(driver):
        yield driver

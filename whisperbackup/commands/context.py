"""The objects that all jobs of a worker share, and the pool of workers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from whisperbackup.commands import open_driver
from whisperbackup.increments.overlay import NO_OVERLAY, Overlay
from whisperbackup.options import Options
from whisperbackup.repository import compression
from whisperbackup.repository.outcome import Outcome, failed
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.pool import Job, Pool
from whisperbackup.storage.base import Driver
from whisperbackup.whisper.throttle import Throttle

if TYPE_CHECKING:  # it brings numpy, which only restore needs
    from whisperbackup.tree.restore_file import Placer


class Context:
    """One worker's driver, memory budget and throttle, and the options of the run; used from all its threads."""

    driver: Driver
    noop: bool

    def __init__(self, options: Options, overlay: Overlay = NO_OVERLAY) -> None:
        """Raises StorageError."""
        self.options = options
        self.overlay = overlay
        self.noop = options.noop
        # The parent has already created the bucket, except in a dry run, where an absent bucket counts as empty.
        self.driver = open_driver(options, create=options.noop and options.command == "backup")
        self.budget = Budget()
        self.throttle = Throttle(options.bandwidth and options.bandwidth / options.processes, options.nice)

    @functools.cached_property
    def compress(self) -> compression.Compress:
        """The codec that --algorithm names."""
        return compression.compressor(self.options.algorithm)

    @functools.cached_property
    def placer(self) -> Placer:
        """Writes restored files into the tree."""
        from whisperbackup.tree.restore_file import Placer

        options = self.options
        span = (options.since, options.until)
        return Placer(options.prefix, options.overwrite, options.noop, options.max_file_size, span)


WorkerPool = Pool[Context, Outcome]
MetricJob = Job[Context, Outcome]


def open_pool(options: Options, driver: Driver, overlay: Overlay = NO_OVERLAY) -> WorkerPool:
    """Start the worker processes of a run; `driver.threads` is the default number of threads in each."""
    threads = options.threads or driver.threads
    return Pool(options.processes, threads, functools.partial(Context, options, overlay.without_frames()), failed)

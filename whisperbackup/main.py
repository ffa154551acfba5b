"""Run the command that the command line names, and turn its result into an exit status."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys

from whisperbackup import __version__, options, storage, util
from whisperbackup.errors import CannotRun, StorageError, UsageError
from whisperbackup.options import Options
from whisperbackup.report import carbon
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import dates
from whisperbackup.repository.stamps import stamp_at, stamp_of
from whisperbackup.runtime import clock, files, logs, signals

logger = logging.getLogger(__name__)

NO_STORE = "noop"
"""The driver that stores nothing: a run with it never counts as a successful backup."""


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Run a command line; the exit status (0 done, 1 could not run, 2 usage, 3 failures, 128+N signal)."""
    files.occupy_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal can show every metric name
    settings = options.parse(words)
    signals.install()
    stats = RunStats(_name(settings), settings.json, settings.noop) if settings.command in options.WORKING else None
    try:
        status, error = _attempt(settings, stats)
        signals.disregard()
        if stats:
            _report(settings, stats, status, error)
        return status
    finally:
        logging.shutdown()


def _name(settings: Options) -> str:
    """The name of the run in its last line."""
    return "verify --tree" if settings.compares_tree else settings.command


def _attempt(settings: Options, stats: RunStats | None) -> tuple[int, str | None]:
    """The exit status, and the reason if the run ended early."""
    try:
        return _run(settings, stats), None
    except (CannotRun, StorageError) as error:
        status, reason = 1, str(error)
    except UsageError as error:
        status, reason = 2, f"{error}; see whisper-backup --help"
    except signals.Stopped as stop:
        status, reason = 128 + stop.number, str(stop)
    except OSError as error:
        status, reason = 1, f"{error.filename or 'system error'}: {error.strerror}"
        logger.debug("traceback", exc_info=True)
    except Exception as error:
        status, reason = 1, f"unexpected {type(error).__name__}: {error}; run again with --debug for a traceback"
        logger.debug("traceback", exc_info=True)
    logger.error("%s", reason)
    return status, reason


def _report(settings: Options, stats: RunStats, status: int, error: str | None) -> None:
    """Report how the run ended, to --json, --prometheus and --carbon."""
    counters = stats.by_key()
    stats.emit({"command": stats.key, "status": status, "error": error, "noop": settings.noop, **counters})
    if settings.noop:
        return
    is_success = status == 0 and settings.driver != NO_STORE
    now = int(clock.utc_now().timestamp())
    if settings.prometheus:
        from whisperbackup.report import prometheus

        ours = prometheus.labels(command=stats.key, bucket=settings.bucket, storage_path=settings.storage_path)
        prometheus.write(settings.prometheus, ours, counters, status, is_success, now)
    if settings.carbon:
        node = settings.carbon_node or carbon.node_name(os.uname().nodename)
        path = f"{settings.carbon_prefix}.{node}.{stats.key}"
        text = carbon.lines(path, counters, status, is_success, now)
        carbon.send(settings.carbon, text, min(carbon.TIMEOUT, signals.left_of(signals.STOP_LIMIT)))


def _about(settings: Options) -> str:
    """The tree and store of the run, so that the logs of two nodes can be distinguished."""
    reads_tree = settings.command in options.TREE or settings.compares_tree
    endpoint = storage.endpoint(settings.driver, settings.storage_arguments)
    parts = [
        _name(settings),
        os.fsdecode(settings.prefix) if reads_tree else "",
        f"{settings.driver} '{settings.bucket}'",
        f"storage path '{settings.storage_path}'" if settings.storage_path else "",
        f"at {endpoint}" if endpoint else "",
        f"{settings.processes} processes",
        "nothing will be changed" if settings.noop else "",
        f"settings of {settings.config}" if settings.config else "",
    ]
    return ", ".join(filter(None, parts))


def _run(settings: Options, stats: RunStats | None) -> int:
    writes = settings.command in options.LOCKING
    is_logged = settings.command in options.WORKING
    logfile = settings.logfile if is_logged or not settings.logfile_is_default else None
    logs.configure_logging(
        settings.debug, settings.quiet, logfile, settings.logfile_is_default, settings.syslog, settings.noop,
        # Any user may run verify; without permission to write the log, stderr is enough.
        needs_logfile=writes,
    )  # fmt: skip
    if is_logged:
        logger.info("whisper-backup %s: %s", __version__, _about(settings))
    if settings.date and settings.command == "backup":
        logger.warning("-c is ignored: backup stores current files")
    elif settings.date:
        logger.info("using the newest backups at or before %s", dates.shown(settings.date))
        if settings.date > stamp_of(clock.utc_now()):
            logger.warning("-c %s is in the future, so the newest backups are used", settings.date)
    bounds = (("from", settings.since), ("until", settings.until))
    if span := [f"{word} {dates.shown(stamp_at(moment))}" for word, moment in bounds if moment is not None]:
        logger.info("using only points %s", " ".join(span))
    verb = importlib.import_module(f"whisperbackup.commands.{settings.command}")
    with contextlib.ExitStack() as held:
        if writes:
            if settings.command != "restore":  # the configuration file's splay is for cron, not for an emergency
                clock.splay(settings.splay)
            if settings.lockfile:
                held.enter_context(util.run_lock(settings.lockfile, settings.lock_timeout))
        status: int
        if stats is None:
            status = verb.run(settings)
        else:
            stats.start()
            status = verb.run(settings, stats)
        if status == 0 and writes and settings.stampfile and not settings.noop and settings.driver != NO_STORE:
            util.touch_stamp(settings.stampfile)
    return status

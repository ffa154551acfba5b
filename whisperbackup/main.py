"""Dispatch a command line to its verb, and turn what comes back into an exit status."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys

from whisperbackup import __version__, options, signals, util
from whisperbackup.options import Options
from whisperbackup.storage.base import StorageError, UsageError
from whisperbackup.tree import NoTree
from whisperbackup.workers import WorkerLost

logger = logging.getLogger(__name__)

WRITING = ("backup", "restore", "purge")
"""The commands that take the lock, write the default log and touch the stamp."""


def run() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(words: list[str]) -> int:
    """Do what the command line says; the exit status (0 done, 1 could not run, 2 usage, 3 failures, 128+N signal)."""
    util.occupy_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # metrics have names that not every terminal can show
    settings = options.parse(words)
    signals.install()
    try:
        return _run(settings)
    except (util.CannotRun, StorageError, NoTree, WorkerLost) as error:
        logger.error("%s", error)
        return 1
    except UsageError as error:
        logger.error("%s; see whisper-backup --help", error)
        return 2
    except signals.Stopped as stop:
        logger.error("%s", stop)
        return 128 + stop.number
    except OSError as error:
        logger.error("%s: %s", error.filename or "system error", error.strerror)
        logger.debug("where it came from", exc_info=True)
        return 1
    except Exception as error:
        logger.error("unexpected %s: %s; run again with --debug to see where", type(error).__name__, error)
        logger.debug("where it came from", exc_info=True)
        return 1
    finally:
        logging.shutdown()


def _run(settings: Options) -> int:
    writes = settings.command in WRITING
    logfile = settings.logfile if writes or not settings.logfile_is_default else None
    util.configure_logging(settings.debug, settings.quiet, logfile, settings.logfile_is_default, settings.syslog)
    if writes:
        logger.info(
            "whisper-backup %s: %s, %s, %s '%s', %d processes%s",
            __version__, settings.command, os.fsdecode(settings.prefix), settings.driver, settings.bucket,
            settings.processes, ", noop: nothing will be changed" if settings.noop else "",
        )  # fmt: skip
    if settings.date:
        logger.info("as of %s", settings.date)
    verb = importlib.import_module(f"whisperbackup.commands.{settings.command}")
    with contextlib.ExitStack() as held:
        if writes:
            util.splay(settings.splay)
            if settings.lockfile:
                held.enter_context(util.run_lock(settings.lockfile, settings.lock_timeout))
        status: int = verb.run(settings)
        if status == 0 and writes and settings.stampfile and not settings.noop:
            util.touch_stamp(settings.stampfile)
    return status

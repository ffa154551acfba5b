"""Where a run's messages are written, and in what form."""

from __future__ import annotations

import logging
import os
import re
import sys

from whisperbackup.errors import CannotRun

logger = logging.getLogger(__name__)


def configure_logging(
    debug: bool,
    quiet: bool,
    logfile: str | None,
    is_default: bool,
    syslog: bool,
    noop: bool = False,
    needs_logfile: bool = True,
) -> None:
    """Send the run's story to stderr, `logfile` (None: nowhere) and syslog; with `noop` each line says so.

    Raises CannotRun if a log file that was asked for cannot be opened; for the default one that is a warning, or
    nothing if `needs_logfile` is false.
    """
    logging.raiseExceptions = False  # a full disk under the log is no reason for a traceback a line
    root = logging.getLogger()
    root.handlers[:] = []
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("filelock").setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING if quiet else logging.DEBUG)
    story = "noop: %(message)s" if noop else "%(message)s"
    console.setFormatter(_ConsoleFormatter(story))
    root.addHandler(console)
    if syslog:
        from logging.handlers import SysLogHandler

        address = "/dev/log" if os.path.exists("/dev/log") else ("localhost", 514)
        to_syslog = SysLogHandler(address, SysLogHandler.LOG_DAEMON)
        to_syslog.setFormatter(_Formatter(f"whisper-backup[%(process)d]: %(levelname)s {story}"))
        root.addHandler(to_syslog)
    if logfile:
        from whisperbackup.runtime.logfile import LogFile

        try:
            to_file = LogFile(logfile)
        except OSError as error:
            if not is_default:
                raise CannotRun(
                    f"cannot open the log file {logfile}: {error.strerror}; name another with --logfile"
                ) from error
            level = logging.WARNING if needs_logfile else logging.DEBUG
            logger.log(level, "cannot open the log file %s: %s; see --logfile", logfile, error.strerror)
        else:
            formatter = _Formatter(f"%(asctime)s %(process)d %(levelname)s {story}", "%Y-%m-%dT%H:%M:%S%z")
            to_file.setFormatter(formatter)
            root.addHandler(to_file)


def printable(text: str) -> str:
    """`text` without what would move a terminal's cursor or forge a line of the log: a store may hold any name."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


_PASSWORD = re.compile(r"://[^/@\s]+@")


class _Formatter(logging.Formatter):
    """Makes one line of each message; indents a traceback, none of whose lines can look like a message then.

    A traceback shows errors of the services' clients as they are, and these may name a proxy with its password.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = _PASSWORD.sub("://***@", super().format(record))
        message, *traceback = text.split("\n")
        return "\n".join([message, *(f"    {printable(line)}" for line in traceback)])

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


class _ConsoleFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname}: {text}"

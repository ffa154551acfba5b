"""The log file: it rotates itself, and refuses files that another user can have planted."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler

from whisperbackup.runtime.files import open_untampered

SIZE = 10 * 1024 * 1024  # bytes before it is rotated
COUNT = 5


class LogFile(RotatingFileHandler):
    """A rotating log file that nobody can have planted; an error with it is a warning, once, and ends no run."""

    _is_reported = False

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        super().__init__(path, maxBytes=SIZE, backupCount=COUNT)

    def doRollover(self) -> None:
        """Rotate; if that is forbidden, for example in /var/log without root, the file continues to grow."""
        try:
            super().doRollover()
        except OSError:
            self.handleError(logging.makeLogRecord({}))
            self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """Print on stderr, once, why the log file cannot be written or rotated."""
        if not self._is_reported:
            self._is_reported = True
            error = sys.exc_info()[1]
            reason = error.strerror if isinstance(error, OSError) else error
            print(
                f"WARNING: cannot write or rotate the log file {self.baseFilename}: {reason}; see --logfile",
                file=sys.stderr,
            )

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=open_untampered)

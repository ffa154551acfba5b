"""The log file: it rotates itself, and is never what somebody planted there."""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler

from whisperbackup.runtime.files import open_plainly

SIZE = 10 * 1024 * 1024  # bytes before it is rotated
COUNT = 5


class LogFile(RotatingFileHandler):
    """A rotating log file that nobody can have planted; trouble with it is told once, and ends no run."""

    _is_told = False

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        super().__init__(path, maxBytes=SIZE, backupCount=COUNT)

    def doRollover(self) -> None:
        """Rotate; where that is forbidden, as in /var/log to another user than root, the file grows on."""
        try:
            super().doRollover()
        except OSError:
            self.handleError(logging.makeLogRecord({}))
            self.stream = self._open()

    def handleError(self, record: logging.LogRecord) -> None:
        """Say on stderr, once, why the log is not what it should be."""
        if not self._is_told:
            self._is_told = True
            error = sys.exc_info()[1]
            reason = error.strerror if isinstance(error, OSError) else error
            print(f"WARNING: trouble with the log file {self.baseFilename}: {reason}", file=sys.stderr)

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding="utf-8", errors="backslashreplace", opener=open_plainly)

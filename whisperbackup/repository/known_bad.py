"""The backups that `verify` found damaged.  The next `backup` replaces them, even if their files did not change.

    <folder of the state file>/<identity of the store>.bad, or <--statefile>.bad
    line = metric TAB stamp

The file is only a hint: if it is lost, damaged or out of date, that costs at most an upload, or the next verify adds
the line again.  verify adds lines, and backup removes those of backups that are no longer the newest.  Neither needs a
lock: if one overwrites the other's lines, the next verify finds the damage again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile

from whisperbackup.runtime.files import open_own, open_untampered

logger = logging.getLogger(__name__)

MAX_LINES = 10_000  # in memory at once; a later verify finds the others again
MAX_BYTES = 10_000_000
TAB = "\t"


class KnownBad:
    """The damaged backups of one store: `stamps` has the newest of each metric."""

    def __init__(self, path: str | None) -> None:
        """Read the file; without a path nothing is read or written."""
        self._path = path
        self.stamps: dict[str, str] = {}
        if self._path is None:
            return
        try:
            with os.fdopen(open_own(self._path), encoding="utf-8", newline="\n") as file:
                for line in file.read(MAX_BYTES).split("\n")[:MAX_LINES]:  # names may hold other ends of lines
                    metric, tab, stamp = line.partition(TAB)
                    if tab:
                        self.stamps[metric] = max(stamp, self.stamps.get(metric, ""))
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            logger.info("cannot read the list of damaged backups %s: %s", self._path, error)

    def add(self, found: list[tuple[str, str]]) -> None:
        """Add metrics and the stamps of their damaged backups.  A file that cannot be written is a warning."""
        new = [(metric, stamp) for metric, stamp in found if self.stamps.get(metric, "") < stamp]
        room = MAX_LINES - len(self.stamps)
        if self._path is None or not new:
            return
        text = "".join(f"{metric}{TAB}{stamp}\n" for metric, stamp in new[: max(0, room)])
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), mode=0o755, exist_ok=True)
            with os.fdopen(open_untampered(self._path, os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            logger.warning(
                "cannot write the list of damaged backups %s: %s; make it writable, or the next backup does not "
                "replace them until their files change",
                self._path, error.strerror,
            )  # fmt: skip

    def keep(self, still_bad: dict[str, str]) -> None:
        """Replace the list by `still_bad`, after a backup that completed."""
        if self._path is None or still_bad == self.stamps:
            return
        folder, name = os.path.split(os.path.abspath(self._path))
        with contextlib.suppress(OSError):
            if not still_bad:
                os.unlink(self._path)
                return
            fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as file:
                    file.writelines(f"{metric}{TAB}{stamp}\n" for metric, stamp in still_bad.items())
                os.rename(temporary, self._path)
            except OSError:  # a full disk, for example
                os.unlink(temporary)

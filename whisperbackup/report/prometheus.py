"""Write a run's counters to a file for the textfile collector of Prometheus' node_exporter.

    whisper_backup_last_success_timestamp_seconds{command="backup",bucket="b",storage_path="node1/"} 1795000000

A file holds the last run of each command and store that wrote to it.  The time of the last success stays in it while
runs fail.  The names in this file are an interface: alerts use them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping

from whisperbackup.runtime.files import open_own

logger = logging.getLogger(__name__)

PREFIX = "whisper_backup_"
LAST_SUCCESS = f"{PREFIX}last_success_timestamp_seconds"
HELP = {
    LAST_SUCCESS: "Unix time of the last run that did all its work.",
    f"{PREFIX}last_run_timestamp_seconds": "Unix time of the end of the last run.",
    f"{PREFIX}status": "Exit status of the last run.",
    f"{PREFIX}seconds": "Duration of the last run.",
    f"{PREFIX}failed": "Failures of the last run.",
}
MAX_SIZE = 1 << 20  # bytes
_SAMPLE = re.compile(rf"({PREFIX}\w+)(\{{.*\}}) (-?[0-9.e+]+)", re.ASCII)


def labels(**values: str) -> str:
    """Labels in braces."""
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in values.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def text(earlier: str, ours: str, counters: Mapping[str, float], status: int, is_success: bool, when: int) -> str:
    """The new content of a file with the content `earlier`, after a run with the labels `ours` that ended at `when`."""
    families: dict[str, dict[str, str]] = {name: {} for name in HELP}
    for line in earlier.splitlines():
        sample = _SAMPLE.fullmatch(line)
        if sample and (sample[2] != ours or sample[1] == LAST_SUCCESS):
            families.setdefault(sample[1], {})[sample[2]] = sample[3]
    values = {f"{PREFIX}{name}": value for name, value in counters.items()}
    values |= {f"{PREFIX}status": status, f"{PREFIX}last_run_timestamp_seconds": when}
    values |= {LAST_SUCCESS: when} if is_success else {}
    for name, value in values.items():
        families.setdefault(name, {})[ours] = str(value)
    return "".join(_family(name, samples) for name, samples in families.items() if samples)


def _family(name: str, samples: Mapping[str, str]) -> str:
    about = HELP.get(name) or f"Counter {name.removeprefix(PREFIX)} of the last run."
    head = f"# HELP {name} {about}\n# TYPE {name} gauge\n"
    return head + "".join(f"{name}{label} {value}\n" for label, value in sorted(samples.items()))


def write(path: str, ours: str, counters: Mapping[str, float], status: int, is_success: bool, when: int) -> None:
    """Put the new file in place whole; a failure is a warning."""
    try:
        _replace(path, text(_earlier(path), ours, counters, status, is_success, when))
    except OSError as error:
        logger.warning("cannot write the counters to %s: %s; check --prometheus", path, error.strerror)


def _earlier(path: str) -> str:
    try:
        with open(open_own(path), "rb") as file:
            return file.read(MAX_SIZE).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _replace(path: str, content: str) -> None:
    import tempfile

    folder, name = os.path.split(os.path.abspath(path))
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)  # node_exporter reads only *.prom
    try:
        with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise

"""list: the metrics in the store and their backups."""

from __future__ import annotations

import logging
import os
import sys
from typing import NamedTuple

from whisperbackup.commands import WrongStoragePath, nothing_matches, open_catalog, open_store
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.report import json_lines
from whisperbackup.report.run_stats import shown_size
from whisperbackup.repository.catalog import Metric, newest_at
from whisperbackup.runtime.logs import printable
from whisperbackup.storage.base import Driver, is_marked

logger = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Print one line a backup, or with --json one object a metric; with -c only what restore would take."""
    if sys.stdout is None:
        raise CannotRun("standard output is closed")
    try:
        return _print(options)
    except OutputLost as lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again as it exits
        if isinstance(lost.reason, BrokenPipeError):
            return 0  # `list | head` has seen enough
        raise CannotRun(f"cannot write to standard output: {lost.reason.strerror}") from lost


class OutputLost(Exception):
    """What we print does not reach anybody any more."""

    def __init__(self, reason: OSError) -> None:
        super().__init__()
        self.reason = reason


def _say(line: str) -> None:
    try:
        print(line)
    except OSError as error:
        raise OutputLost(error) from None


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputLost(error) from None


def _print(options: Options) -> int:
    seen = metrics = missing = count = total = 0
    with open_store(options) as driver:
        catalog = open_catalog(options, driver)
        for metric in catalog:
            seen += 1
            shown = _debris(metric) if options.debris else _backups(metric, options.date)
            if not shown:
                continue
            since = "" if options.debris or options.date else metric.missing_since
            if options.json:
                objects = [{"stamp": item.stamp, item.label: item.kind, "size": item.size} for item in shown]
                kind = "debris" if options.debris else "backups"
                fields = {"metric": metric.name, kind: objects} | ({"missing_since": since} if since else {})
                _say(json_lines.line(fields))
            else:
                for item in shown:
                    _say(f"{item.stamp}  {item.kind:<3}  {item.size:>10}  {printable(metric.name)}")
                if since:
                    _say(f"{since}  -       missing  {printable(metric.name)}")
            missing += bool(since)
            metrics += 1
            count += len(shown) if options.debris else len({item.stamp for item in shown})
            total += sum(item.size for item in shown)
        catalog.report_foreign()
        if not metrics and not (options.debris and seen):
            _explain(options, driver, seen, catalog.foreign)
    if not options.json:
        what = "pieces of debris" if options.debris else "backups"
        gone = f", {missing} missing from the tree" if missing else ""
        _say(f"{metrics} metrics, {count} {what}, {shown_size(total)}{gone}")
    _flush()
    return 0


def _explain(options: Options, driver: Driver, seen: int, foreign: int) -> None:
    """Say why nothing was shown.  Raises CannotRun where something was asked for by name or is elsewhere."""
    if seen:
        date = f" as old as {options.date}" if options.date else ""
        nothing = CannotRun(f"none of the {seen} metrics has a complete backup{date}")
    else:
        nothing = nothing_matches(options, driver)
    if options.selection.wanted is not None or isinstance(nothing, WrongStoragePath):
        raise nothing
    if seen or foreign or options.storage_path or not is_marked(driver):  # an empty bucket explains itself
        logger.warning("%s", nothing)


class Item(NamedTuple):
    """One stored object worth showing; `label` is what `kind` is called in JSON, `size` is in bytes."""

    stamp: str
    label: str
    kind: str
    size: int


def _backups(metric: Metric, date: str | None) -> list[Item]:
    backups = list(metric.backups) if date is None else newest_at(metric, date)[:1]
    return [Item(b.stamp, "codec", payload.codec, payload.size) for b in backups for payload in b.payloads]


def _debris(metric: Metric) -> list[Item]:
    return [
        Item(half.stamp, "left", "temporary" if half.is_temporary else half.suffixes[0].partition(".")[2], half.size)
        for half in metric.debris
    ]

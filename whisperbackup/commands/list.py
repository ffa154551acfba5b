"""list: the metrics in the store and their backups."""

from __future__ import annotations

import functools
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whisperbackup.commands import (
    WrongStoragePath,
    fail_unmatched,
    list_runs,
    list_summary,
    nothing_matches,
    open_catalog,
    open_store,
)
from whisperbackup.errors import CannotRun
from whisperbackup.increments import history
from whisperbackup.options import Options
from whisperbackup.report import json_lines
from whisperbackup.report.progress import advance, bar, make_room
from whisperbackup.report.run_stats import shown_size
from whisperbackup.repository.catalog import Metric, newest_at
from whisperbackup.runtime.logs import printable
from whisperbackup.storage.base import Driver, is_marked
from whisperbackup.tree.selection import Unmatched

logger = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Print one line per backup, or with --json one object per metric; with -c only what restore would use."""
    if sys.stdout is None:
        raise CannotRun("standard output is closed")
    try:
        return _run(options)
    except OutputLost as lost:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush again at exit
        if isinstance(lost.reason, BrokenPipeError):
            return 0  # `list | head` closed the pipe
        raise CannotRun(f"cannot write to standard output: {lost.reason.strerror}") from lost


class OutputLost(Exception):
    """Standard output can no longer be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__()
        self.reason = reason


def _print_line(line: str) -> None:
    if sys.stdout.isatty():
        make_room()
    try:
        print(line)
    except OSError as error:
        raise OutputLost(error) from None


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputLost(error) from None


def _run(options: Options) -> int:
    is_terminal = sys.stdout.isatty() and not options.json
    if options.summary:
        for line in list_summary.lines(options, is_terminal):
            _print_line(line)
        _flush()
        return 0
    width = 5 if is_terminal else 3  # of the codec; what scripts read stays as it was
    if options.runs:
        with open_store(options) as driver:
            for line in list_runs.lines(driver, options.storage_path, options.json):
                _print_line(line)
        _flush()
        return 0
    unmatched = Unmatched(options.selection)
    seen = metrics = missing = count = total = 0
    with open_store(options) as driver:
        catalog = open_catalog(options, driver)
        for metric in _with_progress(catalog, options, driver):
            seen += 1
            unmatched.see(metric.name)
            shown = _orphans(metric) if options.debris else _backups(metric, options.date)
            if not shown:
                continue
            if is_terminal and not metrics:
                _print_line(f"{'stamp':<25}  {'left' if options.debris else 'codec':<5}  {'size':>10}  metric")
            since = "" if options.debris or options.date else metric.missing_since
            if options.json:
                objects = [{"stamp": item.stamp, item.label: item.kind, "size": item.size} for item in shown]
                kind = "debris" if options.debris else "backups"
                fields = {"metric": metric.name, kind: objects} | ({"missing_since": since} if since else {})
                _print_line(json_lines.line(fields))
            else:
                for item in shown:
                    size = shown_size(item.size) if is_terminal else item.size
                    _print_line(f"{item.stamp}  {item.kind:<{width}}  {size:>10}  {printable(metric.name)}")
                if since:
                    _print_line(f"{since}  {'-':<{width}}  {'missing':>10}  {printable(metric.name)}")
            missing += bool(since)
            metrics += 1
            count += len(shown) if options.debris else len({item.stamp for item in shown})
            total += sum(item.size for item in shown)
        catalog.report_foreign()
        found = history.look_at_all(driver, options.storage_path)
        if options.debris:
            for key, size in found.debris:
                count, total = count + 1, total + size
                fields = {"increment": key, "debris": [{"left": "part", "size": size}]}
                _print_line(json_lines.line(fields) if options.json else f"{size:>40}  {printable(key)}")
        if not metrics and not (options.debris and (seen or found.debris)):
            _explain(options, driver, seen, catalog.foreign)
    if not options.json:
        what = "pieces of debris" if options.debris else "backups"
        gone = f", {missing} missing from the tree" if missing else ""
        sizes = [size for _, size in found.increments]
        more = f", {len(sizes)} increments, {shown_size(sum(sizes))}" if sizes and not options.debris else ""
        _print_line(f"{metrics} metrics, {count} {what}, {shown_size(total)}{gone}{more}")
    _flush()
    fail_unmatched(unmatched, functools.partial(logger.error, "%s: %s"))
    return 3 if unmatched.left else 0


def _with_progress(metrics: Iterable[Metric], options: Options, driver: Driver) -> Iterator[Metric]:
    """Yield `metrics`; show a bar, unless another program reads the list: that may use the same terminal."""
    is_read = not sys.stdout.isatty() and not stat.S_ISREG(os.fstat(sys.stdout.fileno()).st_mode)

    def about() -> int:
        from whisperbackup.commands import expected  # and all that it imports, for a bar alone

        return expected.metrics(options, driver)

    with bar("list", "metrics", options.quiet or is_read, about):
        for number, metric in enumerate(metrics, 1):
            yield metric
            advance(number)


def _explain(options: Options, driver: Driver, seen: int, foreign: int) -> None:
    """Log why the list is empty.  Raises CannotRun if metrics were named with -m, or are under another storage path."""
    if seen:
        date = f" as old as {options.date}" if options.date else ""
        nothing = CannotRun(f"none of the {seen} metrics has a complete backup{date}")
    else:
        nothing = nothing_matches(options, driver)
    if options.selection.wanted is not None or isinstance(nothing, WrongStoragePath):
        raise nothing
    if seen or foreign or options.storage_path or not is_marked(driver):  # an empty new store needs no explanation
        logger.warning("%s", nothing)


class Item(NamedTuple):
    """One stored object to show; `label` is the JSON key of `kind`, `size` is in bytes."""

    stamp: str
    label: str
    kind: str
    size: int


def _backups(metric: Metric, date: str | None) -> list[Item]:
    backups = list(metric.backups) if date is None else newest_at(metric, date)[:1]
    return [Item(b.stamp, "codec", payload.codec, payload.size) for b in backups for payload in b.payloads]


def _orphans(metric: Metric) -> list[Item]:
    return [
        Item(half.stamp, "left", "temporary" if half.is_temporary else half.suffixes[0].partition(".")[2], half.size)
        for half in metric.orphans
    ]

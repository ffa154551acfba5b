"""list --summary: one line for each storage path below the given one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

from whisperbackup.commands import list_runs, nothing_matches, open_store
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.report import json_lines
from whisperbackup.report.run_stats import shown_size
from whisperbackup.repository.summary import Summaries, Summary
from whisperbackup.runtime import clock
from whisperbackup.runtime.logs import printable
from whisperbackup.runtime.terminal import columns
from whisperbackup.storage.windows import list_in_windows

logger = logging.getLogger(__name__)

NO_PATH = "(none)"
COLUMNS = ("path", "metrics", "backups", "miss.", "orph.", "incr.", "oldest", "newest", "last", "end", "stored")


def lines(options: Options, is_terminal: bool) -> Iterator[str]:
    """Yield the lines to print; ages and human sizes on a terminal, else whole stamps and bytes."""
    with open_store(options) as driver:
        found = Summaries(list_in_windows(driver, options.storage_path, iter(())), options.selection)
        if not found.by_path:
            nothing = nothing_matches(options, driver)
            if options.storage_path or options.selection.wanted is not None:
                raise CannotRun(str(nothing))
            logger.warning("%s", nothing)
        for path, summary in found.by_path.items():
            summary.increments, summary.increment_bytes, summary.last_run = list_runs.newest(driver, path)
    if found.foreign:
        logger.info("skipped %d unrecognized objects", found.foreign)
    summaries = [found.by_path[path] for path in sorted(found.by_path)]
    if options.json:
        yield from (json_lines.line(summary.fields()) for summary in summaries)
        return
    table = list(_table([COLUMNS, *(_row(summary, is_terminal) for summary in summaries)]))
    if is_terminal and max(map(len, table)) > columns():
        table = list(_table([COLUMNS, *(_row(summary, is_terminal, in_total=True) for summary in summaries)]))
    yield from table


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    for path, *numbers, stored in rows:
        cells = [f"{path:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))]
        yield " ".join([*cells, stored])


def _row(summary: Summary, is_terminal: bool, in_total: bool = False) -> tuple[str, ...]:
    def shown(stamp: str) -> str:
        return _age(stamp, clock.utc_now()) if is_terminal and stamp else stamp or "-"

    sizes = [
        f"{codec} {shown_size(size) if is_terminal else size}" for codec, size in sorted(summary.bytes_by_codec.items())
    ]
    if summary.increment_bytes:
        size = shown_size(summary.increment_bytes) if is_terminal else summary.increment_bytes
        sizes.append(f"increments {size}")
    if in_total:
        sizes = [shown_size(sum(summary.bytes_by_codec.values()) + summary.increment_bytes)]
    last = summary.last_run
    return (
        printable(summary.storage_path) or NO_PATH,
        *(
            str(number)
            for number in (summary.metrics, summary.backups, summary.missing, summary.orphans, summary.increments)
        ),
        shown(summary.oldest),
        shown(summary.newest),
        shown(str(last["begin"]) if last else ""),
        "-" if last is None else "no end" if last["status"] is None else str(last["status"]),
        ", ".join(sizes) or "-",
    )


def _age(stamp: str, now: datetime) -> str:
    hours = (now - datetime.fromisoformat(stamp)) // timedelta(hours=1)
    return f"{hours} h" if hours < 100 else f"{hours // 24} d"

"""list --runs: what each backup run and increment recorded of itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from whisperbackup.increments import history
from whisperbackup.increments.manifest import Manifest, Run
from whisperbackup.report import json_lines
from whisperbackup.runtime.logs import printable
from whisperbackup.runtime.terminal import folded
from whisperbackup.storage.base import Driver

Fields = dict[str, object]


def lines(driver: Driver, storage_path: str, as_json: bool) -> Iterator[str]:
    """A line for each run, the oldest first.  Raises StorageError.

    Those of another host or tree than the last complete backup run say so: no run deletes their increments.
    """
    found = history.look_at_all(driver, storage_path)
    sizes = dict(found.increments)
    runs: dict[str, Run] = {}
    begun: dict[tuple[object, ...], str] = {}
    usual: tuple[str, str] | None = None
    for run in history.runs_of(driver, storage_path, found.runs):
        # Where the record of its begin could not be replaced, a run has two.
        same = (run.node, run.prefix, run.begin, run.boot, run.uptime)
        if run.is_complete:
            runs.pop(begun.pop(same, ""), None)
        else:
            begun[same] = run.stamp
        runs[run.stamp] = run
        if run.is_complete and not run.is_partial:
            usual = run.node, run.prefix
    for stamp, kind in sorted([*((s, "backup") for s in found.runs), *((s, "increment") for s in found.complete)]):
        if kind == "backup":
            if stamp in runs:
                yield _line(runs[stamp], _of_run(runs[stamp]), as_json, usual)
        else:
            for made in history.manifests(driver, storage_path, [stamp]):
                yield _line(made, _of_increment(made, sizes[stamp]), as_json, usual)


def newest(driver: Driver, storage_path: str) -> tuple[int, int, Fields | None]:
    """The number of complete increments, their bytes, and the last run: its fields in JSON.  Raises StorageError."""
    found = history.look_at_all(driver, storage_path)
    sizes = dict(found.increments)
    last: Fields | None = None
    if found.newest and found.newest > found.newest_run:
        for made in history.manifests(driver, storage_path, [found.newest]):
            last = _fields(made, _of_increment(made, sizes[found.newest]))
    elif found.newest_run:
        for run in history.runs_of(driver, storage_path, [found.newest_run]):
            last = _fields(run, _of_run(run))
    return len(sizes), sum(sizes.values()), last


def _of_run(run: Run) -> Fields:
    return {
        "command": "backup",
        "status": run.status if run.is_complete else None,
        "partial": run.is_partial,
        "unconfirmed": None if run.unconfirmed is None else len(run.unconfirmed),
    }


def _of_increment(made: Manifest, size: int) -> Fields:
    return {
        "command": "increment",
        "status": 3 if made.counters.get("failed") else 0,
        "since": _moment(made.since),
        "records": made.records,
        "points": made.points,
        "size": size,
        "owed": None if made.owed is None else len(made.owed),
    }


def _fields(one: Run | Manifest, fields: Fields) -> Fields:
    end = _moment(one.end) if fields["status"] is not None else None
    about = {"node": one.node, "prefix": one.prefix, "files": one.files}
    return {"run": one.stamp, "begin": _moment(one.begin), "end": end, **fields, **about, "counters": one.counters}


def _line(one: Run | Manifest, fields: Fields, as_json: bool, usual: tuple[str, str] | None) -> str:
    whole = _fields(one, fields)
    if as_json:
        return json_lines.line(whole)
    status = "no end" if fields["status"] is None else f"status {fields['status']}"
    shown = [f"{name} {number}" for name, number in one.counters.items() if number]
    if isinstance(one, Manifest) and one.records < one.all_records:
        shown.append(f"{one.records} records kept")
    if usual and (one.node, one.prefix) != usual:
        shown.append(f"of {one.prefix} on {one.node}")
    end = whole["end"] or "-"
    return folded(printable(f"{whole['begin']}  {end:<25}  {fields['command']:<9}  {status}  {', '.join(shown)}"), 4)


def _moment(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()

"""list --runs: what each backup run and increment recorded of itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from whisperbackup.increments import history
from whisperbackup.increments.manifest import Manifest, Run
from whisperbackup.report import json_lines
from whisperbackup.runtime.logs import printable
from whisperbackup.storage.base import Driver

Fields = dict[str, object]


def lines(driver: Driver, storage_path: str, as_json: bool) -> Iterator[str]:
    """A line for each run, the oldest first.  Raises StorageError."""
    found = history.look_at_all(driver, storage_path)
    sizes = dict(found.increments)
    for stamp, kind in sorted([*((s, "backup") for s in found.runs), *((s, "increment") for s in found.complete)]):
        if kind == "backup":
            for run in history.runs_of(driver, storage_path, [stamp]):
                yield _line(run, _of_run(run), as_json)
        else:
            for made in history.manifests(driver, storage_path, [stamp]):
                yield _line(made, _of_increment(made, sizes[stamp]), as_json)


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


def _line(one: Run | Manifest, fields: Fields, as_json: bool) -> str:
    begin, end = _moment(one.begin), _moment(one.end) if fields["status"] is not None else None
    about = {"node": one.node, "prefix": one.prefix, "files": one.files}
    if as_json:
        first = {"run": one.stamp, "begin": begin, "end": end}
        return json_lines.line({**first, **fields, **about, "counters": one.counters})
    status = "no end" if fields["status"] is None else f"status {fields['status']}"
    shown = [f"{name} {number}" for name, number in one.counters.items() if number]
    return printable(f"{begin}  {end or '-':<25}  {fields['command']:<9}  {status}  {', '.join(shown)}")


def _moment(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()

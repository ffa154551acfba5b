"""What an increment and a backup run tell of themselves, as dataclasses and as JSON.

    <storage path>.increments/<stamp>/manifest.json      Manifest; written last: the increment is complete
    <storage path>.increments/<stamp>/<number>.wbi       its parts
    <storage path>.runs/<stamp>.json                     Run; written at the end of each backup

Moments are whole seconds of Unix time; a begin is rounded down, an end up.  What is read is foreign: every type, name
and bound is checked, and CorruptIncrement is the only error.  Names that this version does not know are left out.  The
last name is the SHA-256 of what is before it; what has none is read all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from whisperbackup.increments.names import Names
from whisperbackup.increments.record import CorruptIncrement
from whisperbackup.tree.places import Place
from whisperbackup.tree.selection import BadGlob, Selection, select

FORMAT = 1
INCREMENTS = ".increments/"
RUNS = ".runs/"
MANIFEST = "manifest.json"
DAYS = 7  # of --keep-increments, where a record does not tell
SUM, END = b',"sha256":"', b'"}'
"""Before and behind the SHA-256 of all that is before; no string has quotes that are not escaped."""
_PART = re.compile(r"\d{6}\.wbi", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Frame(NamedTuple):
    """Where a frame is in its part, the first key in it, and how many records it has."""

    first: str
    offset: int
    length: int
    records: int


class Part(NamedTuple):
    """One object of an increment; its frames follow one another without a gap."""

    name: str
    size: int
    sha256: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What tells whose run it was and when.

    `boot` is the kernel's boot id and `uptime` its seconds since then when the run began: between two runs with the
    same boot id they tell the time that passed, whatever was done to the clock.  `places` are where its files were.
    """

    stamp: str
    node: str
    prefix: str
    exclude: tuple[str, ...] = ()
    version: str = ""
    begin: int
    end: int
    boot: str = ""
    uptime: int = 0
    files: int = 0
    places: tuple[Place, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest(Origin):
    """One increment.

    `since` is where its window begins; `reference` the stamp of the increment or run that this was taken from, and
    `reference_files` how many files that one saw.  `after_run` is the stamp of the newest backup run that had come to
    its end when this one began.  `owed` has keys, or beginnings of keys that end in ".", that could not be read, and
    since when; None if there were too many.  `places` has also those that are gone, until a backup run has done
    without.  The newest backups may not be of the files of what is `away`, until a backup run has them.  `waiting` are
    places that are not there, with when a run began that had all of them.  `known_run` is the newest backup run that
    all this knows of.  `all_records` are the records that it had before retention took some out.
    """

    since: int
    lag: int
    reference: str = ""
    reference_files: int = 0
    after_run: str = ""
    records: int = 0
    all_records: int = 0
    points: int = 0
    owed: dict[str, int] | None = field(default_factory=dict)
    away: tuple[Place, ...] = ()
    waiting: tuple[tuple[Place, int], ...] = ()
    known_run: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()

    def to_json(self) -> bytes:
        """What is stored."""
        return _dump(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Run(Origin):
    """One backup run; `first_stamp` and `last_stamp` are of those that it gave to backups, as Unix time; 0: none.

    `after_increment` is the stamp of the newest complete increment in the store when it began.  `unconfirmed` has keys,
    or beginnings of keys that end in ".", of which it is not sure that the store now has what the file had; None if
    there were too many to name.  `metrics` are the globs of `-m`; empty for all.  Retention deletes increments
    after `keep_increments` days.  `steady_since` and `pause` are those of `repository.steady`.
    """

    status: int
    is_complete: bool
    is_partial: bool = False
    metrics: tuple[str, ...] = ()
    first_stamp: int = 0
    last_stamp: int = 0
    after_increment: str = ""
    keep_increments: int = DAYS
    unconfirmed: tuple[str, ...] | None = ()
    steady_since: int = 0
    pause: int = 0
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def earliest(self) -> int:
        """The earliest moment that a backup of it can be stamped with."""
        return min(self.begin, self.end, self.first_stamp or self.begin)

    @property
    def was_set_back(self) -> bool:
        """Whether the clock was set back while it went on."""
        return self.earliest < self.begin

    @cached_property
    def names(self) -> Names:
        """What it names as unconfirmed."""
        return Names(self.unconfirmed or ())

    def doubts(self, key: str) -> bool:
        """Whether it does not confirm a metric, or all of a folder."""
        return self.unconfirmed is None or self.names.touch(key)

    @cached_property
    def _selection(self) -> Selection:
        try:
            return select(self.metrics or ("*",), self.exclude)
        except BadGlob:
            return select(("*",))

    def may_hold(self, folder: str) -> bool:
        """Whether it looked into a folder, or would have."""
        return not folder or self._selection.may_hold(folder)

    def selects(self, key: str) -> bool:
        """Whether it looked at the metric with this key at all, or would have."""
        return key[:-1] in self._selection

    def confirms(self, key: str) -> bool:
        """Whether the store had what the file held when it looked at it; for one that did not end, if it did look."""
        return self.selects(key) and not self.doubts(key)

    def to_json(self) -> bytes:
        """What is stored."""
        return _dump(asdict(self))


def increment_key(stamp: str, name: str = MANIFEST) -> str:
    """Where an increment's manifest or part is, below the storage path."""
    return f"{INCREMENTS}{stamp}/{name}"


def run_key(stamp: str) -> str:
    """Where a run's record is, below the storage path."""
    return f"{RUNS}{stamp}.json"


def read_manifest(content: bytes) -> Manifest:
    """The manifest that `content` is.  Raises CorruptIncrement."""
    values = _load(content, "manifest")
    values["parts"] = tuple([_part(part) for part in _list(values, "parts")])
    values["exclude"] = _strings(values, "exclude")
    values["places"], values["away"] = _places(values, "places"), _places(values, "away")
    values["waiting"] = _waiting(values)
    if values.get("owed") is not None:
        values["owed"] = _counts(values, "owed")
    values["counters"] = _counts(values, "counters")
    manifest = _make(Manifest, values)
    last = ""
    names = set()
    for part in manifest.parts:
        names.add(part.name)
        for frame in part.frames:
            if frame.first <= last:
                raise CorruptIncrement(f"manifest: '{frame.first}' comes after '{last}'")
            last = frame.first
    if len(names) != len(manifest.parts):
        raise CorruptIncrement("manifest: a part is named twice")
    if sum(frame.records for part in manifest.parts for frame in part.frames) != manifest.records:
        raise CorruptIncrement(f"manifest: its frames do not add up to {manifest.records} records")
    return manifest


def read_run(content: bytes) -> Run:
    """The run that `content` tells of.  Raises CorruptIncrement."""
    values = _load(content, "run")
    values["exclude"], values["places"] = _strings(values, "exclude"), _places(values, "places")
    values["metrics"] = _strings(values, "metrics")
    if values.get("unconfirmed") is not None:
        values["unconfirmed"] = _strings(values, "unconfirmed")
    values["counters"] = _counts(values, "counters")
    return _make(Run, values)


def _dump(values: dict[str, Any]) -> bytes:
    text = json.dumps({"format": FORMAT, **values}, separators=(",", ":")).encode()[:-1]
    return text + b"".join((SUM, hashlib.sha256(text).hexdigest().encode(), END))


def _load(content: bytes, kind: str) -> dict[str, Any]:
    text, name, found = content.rpartition(SUM)
    if name and found != hashlib.sha256(text).hexdigest().encode() + END:
        raise CorruptIncrement(f"{kind}: its content is not that of its SHA-256")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptIncrement(f"{kind}: no JSON: {error}") from None
    if not isinstance(values, dict):
        raise CorruptIncrement(f"{kind}: no JSON object")
    if values.get("format") != FORMAT:
        raise CorruptIncrement(f"{kind}: format {values.get('format')!r}, this version reads {FORMAT}; use a newer one")
    return values


def _list(values: dict[str, Any], name: str) -> list[Any]:
    found = values.get(name, [])
    if not isinstance(found, list):
        raise CorruptIncrement(f"'{name}' is no list")
    return found


def _strings(values: dict[str, Any], name: str) -> tuple[str, ...]:
    found = _list(values, name)
    if not all(isinstance(text, str) for text in found):
        raise CorruptIncrement(f"'{name}' is no list of strings")
    return tuple(found)


def _places(values: dict[str, Any], name: str) -> tuple[Place, ...]:
    return tuple([_place(found) for found in _list(values, name)])


def _place(found: object) -> Place:
    if not isinstance(found, list) or len(found) != 2 or not all(isinstance(text, str) for text in found):
        raise CorruptIncrement(f"a place {found!r}")
    return Place(*found)


def _waiting(values: dict[str, Any]) -> tuple[tuple[Place, int], ...]:
    waiting = []
    for found in _list(values, "waiting"):
        if not isinstance(found, list) or len(found) != 2 or not (_is_count(found[1]) and found[1] < ENORMOUS):
            raise CorruptIncrement(f"'waiting' has {found!r}")
        waiting.append((_place(found[0]), found[1]))
    return tuple(waiting)


def _counts(values: dict[str, Any], name: str) -> dict[str, int]:
    found = values.get(name, {})
    if not isinstance(found, dict) or not all(_is_count(number) for number in found.values()):
        raise CorruptIncrement(f"'{name}' is no table of numbers")
    return found


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**63


def _part(values: object) -> Part:
    if not isinstance(values, list) or len(values) != 4:
        raise CorruptIncrement("manifest: a part is no list of four")
    name, size, sha256, frames = values
    if not isinstance(name, str) or not _PART.fullmatch(name) or not isinstance(frames, list) or not _is_count(size):
        raise CorruptIncrement(f"manifest: a part {name!r}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise CorruptIncrement(f"manifest: a SHA-256 {sha256!r}")
    offset = 0
    found = []
    for frame in frames:
        if not isinstance(frame, list) or len(frame) != 4:
            raise CorruptIncrement(f"manifest: a frame of part {name} is no list of four")
        first, begin, length, records = frame
        if not isinstance(first, str) or not all(_is_count(number) for number in (begin, length, records)):
            raise CorruptIncrement(f"manifest: a frame of part {name}")
        if begin != offset or not length or not records:
            raise CorruptIncrement(f"manifest: a frame of part {name} at byte {begin} instead of {offset}")
        found.append(Frame(first, begin, length, records))
        offset += length
    if offset != size:
        raise CorruptIncrement(f"manifest: part {name} has {size} bytes, its frames {offset}")
    return Part(name, size, sha256, tuple(found))


Kind = TypeVar("Kind", Manifest, Run)


ENORMOUS = 2**37  # no time, as seconds since 1970, and no number of anything


def _make(kind: type[Kind], values: dict[str, Any]) -> Kind:
    known = {}
    for each in fields(kind):
        if each.name not in values:
            continue
        value = values[each.name]
        if (
            (each.type == "int" and not (_is_count(value) and value < ENORMOUS))
            or (each.type == "str" and not isinstance(value, str))
            or (each.type == "bool" and not isinstance(value, bool))
        ):
            raise CorruptIncrement(f"'{each.name}' is {value!r}")
        known[each.name] = value
    try:
        return kind(**known)
    except TypeError as error:
        raise CorruptIncrement(f"something is missing: {error}") from None

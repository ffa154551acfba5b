"""doctor: check tree, carbon's locking, store, rights, clock, space and the last runs; each line with its remedy."""

from __future__ import annotations

import configparser
import itertools
import os
import pwd
import secrets
import shutil
import time
import tomllib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from whisperbackup.commands import open_store
from whisperbackup.commands.known_store import holds_nothing, state_of
from whisperbackup.errors import NotDeleted, NotFound, NoTree, StorageError
from whisperbackup.increments import history
from whisperbackup.increments.manifest import RUNS, Run
from whisperbackup.options import Options
from whisperbackup.report import json_lines
from whisperbackup.report.run_stats import shown_size
from whisperbackup.repository.stamps import seconds, stamp_at
from whisperbackup.repository.state import EMPTY, MARKED, State
from whisperbackup.runtime.defaults import on_this_machine
from whisperbackup.runtime.logs import printable
from whisperbackup.runtime.terminal import folded
from whisperbackup.storage.base import Driver, is_marked, modified
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, Skipped, check_tree, walk

INDENT = 9  # of what belongs to the line before
NO_TREE = b"/dev/null"
OK, WARNING, FAILURE = "ok", "warning", "failure"
CARBON = ("/opt/graphite/conf/carbon.conf", "/etc/carbon/carbon.conf")
GO_CARBON = ("/etc/go-carbon/go-carbon.conf", "/etc/go-carbon.conf")
SAMPLE = 200  # files
RUNS_READ = 10
HOUR = 3600
LATE, LOST = 36 * HOUR, 8 * 24 * HOUR
SKEW, MUCH_SKEW = 60, 900  # seconds; S3 refuses requests that are 15 minutes off
LOG_SIZE = 60 << 20  # with the rotated ones
STATE_SIZE = 10 << 20
BODY = b"whisper-backup doctor\n"


class Line(NamedTuple):
    """The result of one check; `remedy` is empty if it is ok."""

    check: str
    result: str
    text: str
    remedy: str = ""


def run(options: Options) -> int:
    """Print a line for each check; 3 if one of them failed."""
    results = []
    for line in _checks(options, time.time()):
        results.append(line.result)
        if options.json:
            print(json_lines.line(line._asdict()), flush=True)
            continue
        if options.quiet and line.result == OK:
            continue
        print(folded(printable(f"{line.result:<7}  {line.check}: {line.text}"), INDENT), flush=True)
        if line.remedy:
            print(folded(printable(f"{'':{INDENT}}{line.remedy}"), INDENT), flush=True)
    status = 3 if FAILURE in results else 0
    if options.json:
        counts = {"warnings": results.count(WARNING), "failures": results.count(FAILURE)}
        print(json_lines.line({"command": "doctor", "status": status, "error": None, **counts}), flush=True)
    return status


def _checks(options: Options, now: float) -> Iterator[Line]:
    if options.prefix == NO_TREE:
        yield Line("tree", OK, "not checked, because of -p /dev/null: a machine without a tree")
    else:
        yield tree(options.prefix)
        yield from locking()
    state = state_of(options)
    yield from _store(options, state, now)
    if state.path:  # none with --nostate, or for noop
        yield space("state", state.path, STATE_SIZE)
    if options.logfile is not None:
        yield space("log", options.logfile, LOG_SIZE)
    if options.stampfile is not None:
        yield stamp(options.stampfile, now)


# -- this machine


def tree(prefix: bytes) -> Line:
    """Whether this user can read the tree: its first files are opened."""
    try:
        check_tree(prefix)
    except NoTree as error:
        return Line("tree", FAILURE, str(error), "mount its disk, correct -p, or run as a user allowed to read it")
    owners: set[int] = set()
    refused: list[str] = []
    sampled = 0
    for item in itertools.islice(walk(prefix, select(["*"])), SAMPLE):
        if isinstance(item, Skipped):
            if item.is_error:
                refused.append(f"{os.fsdecode(item.path)}: {item.reason}")
            continue
        assert isinstance(item, LocalFile)
        sampled += 1
        try:
            fd = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            owners.add(os.fstat(fd).st_uid)
            os.close(fd)
        except FileNotFoundError:
            continue  # deleted meanwhile
        except OSError as error:
            refused.append(f"{os.fsdecode(item.path)}: {error.strerror}")
    user = _user(os.geteuid())
    if refused:
        text = f"{user} cannot read {len(refused)} of the first {sampled + len(refused)}, for example {refused[0]}"
        return Line("tree", FAILURE, text, "run as root, or as the user to whom the files belong")
    named = ", ".join(_user(uid) for uid in sorted(owners)) or "nobody"
    text = f"{user} can read the first {sampled} files of {os.fsdecode(prefix)}; they belong to {named}"
    if os.geteuid() != 0 and owners - {os.geteuid()}:
        return Line("tree", WARNING, text, f"backups work; to restore, run as root or as {named}")
    return Line("tree", OK, text)


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def locking() -> Iterator[Line]:
    """Whether carbon locks the files that it writes; a line for each configuration that is found."""
    found = False
    for kind, names in (("carbon", CARBON), ("go-carbon", GO_CARBON)):
        for path in map(on_this_machine, names):
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read()
            except FileNotFoundError:
                continue
            except OSError as error:
                yield Line("locking", WARNING, f"cannot read {path}: {error.strerror}", "run doctor as root")
                found = True
                continue
            found = True
            yield carbon_locking(path, text) if kind == "carbon" else go_carbon_locking(path, text)
    if not found:
        text = "no configuration of carbon or go-carbon was found in the usual places"
        yield Line("locking", WARNING, text, "see that carbon has WHISPER_LOCK_WRITES = True, go-carbon flock = true")


def carbon_locking(path: str, text: str) -> Line:
    """What carbon.conf sets for its caches; an instance such as [cache:b] inherits from [cache]."""
    remedy = f"set WHISPER_LOCK_WRITES = True in [cache] of {path}, and restart carbon"
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
        usual = parser.getboolean("cache", "WHISPER_LOCK_WRITES", fallback=False)
        caches = [name for name in parser.sections() if name == "cache" or name.startswith("cache:")]
        off = [name for name in caches if not parser.getboolean(name, "WHISPER_LOCK_WRITES", fallback=usual)]
    except (configparser.Error, ValueError) as error:
        return Line("locking", WARNING, f"{path} cannot be understood: {' '.join(str(error).split())}", remedy)
    if off or not caches:
        return Line("locking", WARNING, f"carbon does not lock files ({path}): a restore may overwrite a point", remedy)
    return Line("locking", OK, f"carbon locks the files that it writes ({path})")


def go_carbon_locking(path: str, text: str) -> Line:
    """What go-carbon.conf sets in [whisper]."""
    remedy = f"set flock = true in [whisper] of {path}, and restart go-carbon"
    try:
        whisper = tomllib.loads(text).get("whisper")
    except tomllib.TOMLDecodeError as error:
        return Line("locking", WARNING, f"{path} cannot be understood: {error}", remedy)
    if isinstance(whisper, dict) and whisper.get("flock") is True:
        return Line("locking", OK, f"go-carbon locks the files that it writes ({path})")
    return Line("locking", WARNING, f"go-carbon does not lock files ({path}): a restore may overwrite a point", remedy)


def space(check: str, path: str, needed: int) -> Line:
    """Whether the file at `path` can be written, and `needed` bytes or twice its size are free for it."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        target = path if os.path.lexists(path) else folder
        if not os.access(target, os.W_OK):
            text = f"this user cannot write {path}"
            return Line(check, FAILURE, text, f"run as another user, or name another file with --{check}file")
        free = shutil.disk_usage(folder).free
        needed = max(needed, 2 * os.path.getsize(path) if os.path.exists(path) else 0)
    except OSError as error:
        return Line(check, FAILURE, f"{path}: {error.strerror}", f"name another file with --{check}file")
    text = f"{shown_size(free)} are free for {path}"
    if free < needed:
        return Line(check, WARNING, text, f"free {shown_size(needed)}, or name another file with --{check}file")
    return Line(check, OK, text)


def stamp(path: str, now: float) -> Line:
    """The age of the last success that the stamp file records."""
    try:
        return aged("stamp", f"the last success by {path}", now - os.stat(path).st_mtime)
    except FileNotFoundError:
        return Line("stamp", WARNING, f"{path} does not exist: no run succeeded here", "run backup")
    except OSError as error:
        return Line("stamp", FAILURE, f"{path}: {error.strerror}", "name another file with --stampfile")


def aged(check: str, what: str, age: float) -> Line:
    """Judge the age in seconds of the last success."""
    text = f"{what} is {age / HOUR:.0f} hours old"
    remedy = "see that cron or the systemd timer runs backup, and what its log reports"
    if age < -SKEW:
        return Line(check, WARNING, f"{what} is {-age / HOUR:.1f} hours in the future", "correct this machine's clock")
    return Line(check, OK, text) if age <= LATE else Line(check, FAILURE if age > LOST else WARNING, text, remedy)


# -- the store


def _store(options: Options, state: State, now: float) -> Iterator[Line]:
    try:
        with open_store(options) as driver:
            is_empty = holds_nothing(driver, options)
            if not is_marked(driver) and (state.store == MARKED or (is_empty and state.store != EMPTY)):
                text = f"{options.bucket} is not the store that earlier runs used: its marker is missing"
                yield Line("store", FAILURE, text, "mount its disk, or correct -b")
                return
            if is_empty and state.store != EMPTY:
                text = f"{options.bucket} holds nothing below '{options.storage_path}', but there were backups"
                yield Line("store", FAILURE, text, "check -b, --storage-path and the storage arguments")
                return
            yield Line("store", OK, f"{options.driver} '{options.bucket}' can be listed")
            yield from rights(driver, options, now)
            yield runs(driver, options.storage_path, now)
    except NotFound as error:
        yield Line("store", FAILURE, str(error), "run backup once, which creates it, or correct -b")
    except StorageError as error:
        yield Line("store", FAILURE, str(error), "check the network, the credentials and the storage arguments")


def rights(driver: Driver, options: Options, now: float) -> Iterator[Line]:
    """Try a probe object.  If it stays, it is debris of a run, which backup and prune delete after a day."""
    if options.noop or options.driver == "noop":
        yield Line("rights", WARNING, "not tried: nothing may be written", "run doctor without -n, on a real store")
        return
    key = f"{options.storage_path}{RUNS}.whisper-backup-{stamp_at(now)}-{secrets.token_hex(8)}"
    doing = "put"
    try:
        before = time.time()
        driver.put(key, BODY)
        after = time.time()
        doing = "get"
        is_same = driver.get(key) == BODY
        doing = "list"
        is_listed = any(found.key == key for found in driver.list(key))
        written = modified(driver, key)
    except StorageError as error:
        yield Line("rights", FAILURE, f"cannot {doing} a probe object: {error}", f"give these credentials '{doing}'")
        if doing != "put":
            yield _delete(driver, key, options.no_delete)
        return
    if is_same and is_listed:
        yield Line("rights", OK, "a probe object could be put, read and listed")
    else:
        wrong = "is not listed" if is_same else "has another content"
        yield Line("rights", FAILURE, f"the probe object {key} {wrong}", "check the endpoint, and proxies before it")
    yield _delete(driver, key, options.no_delete)
    yield clock(before, after, written)


def _delete(driver: Driver, key: str, no_delete: bool) -> Line:
    if no_delete:
        return Line("delete", OK, f"not tried, because of --no-delete; prune deletes the probe object {key}")
    try:
        driver.delete([key])
        driver.get(key)
    except NotFound:
        return Line("delete", OK, "the probe object could be deleted")
    except StorageError as error:
        remedy = "give them the right to delete, or run backup with --no-delete and prune on another machine"
        is_denied = isinstance(error, NotDeleted) and error.is_denied
        return Line("delete", FAILURE, f"{'not allowed' if is_denied else 'failed'}: {error}", remedy)
    return Line(
        "delete", FAILURE, f"the store confirmed the deletion of {key}, which is still there", "check the store"
    )


def clock(before: float, after: float, written: float | None) -> Line:
    """Compare when the store dates an object with when it was put here; the store may know whole seconds only."""
    if written is None:
        return Line("clock", WARNING, "the store does not tell its time", "see that NTP runs on this machine")
    ahead = min(0.0, after - (written - 1)) + max(0.0, before - (written + 1))
    if abs(ahead) < SKEW:
        return Line("clock", OK, "this machine and the store have the same time")
    text = f"this machine's clock is {abs(ahead):.0f} seconds {'ahead of' if ahead > 0 else 'behind'} the store's"
    return Line("clock", FAILURE if abs(ahead) >= MUCH_SKEW else WARNING, text, "synchronize both with NTP")


def runs(driver: Driver, storage_path: str, now: float) -> Line:
    """The last runs that the store has records of.  Raises StorageError."""
    found = history.look_at_all(driver, storage_path)
    recent = list(history.runs_of(driver, storage_path, reversed(found.runs[-RUNS_READ:])))
    return judged_runs(recent, len(found.runs), found.newest, now)


def judged_runs(recent: Sequence[Run], number: int, increment: str, now: float) -> Line:
    """Judge the last runs of backup, the newest first; `increment` is the stamp of the newest increment, or empty."""
    good = next((run for run in recent if run.is_complete and not run.status and not run.is_partial), None)
    if not number:
        return Line("runs", WARNING, "the store has no record of a backup run", "run backup")
    if good is None:
        text = f"none of the last {len(recent)} backups of the whole tree succeeded"
        return Line("runs", FAILURE, text, "see the log, and list --runs")
    line = aged("runs", "the last successful backup", now - good.end)
    if increment:
        line = line._replace(text=f"{line.text}, the last increment {(now - seconds(increment)) / HOUR:.0f}")
    last = recent[0]
    if last is not good and line.result == OK:
        ended = (
            f"ended with status {last.status}" if last.is_complete else "has not ended: it is running, or was killed"
        )
        if not (last.is_partial and last.is_complete and not last.status):
            text = f"{line.text}; a later one {ended}"
            return Line("runs", WARNING, text, "see the log, and list --runs")
    return line

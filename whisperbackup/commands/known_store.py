"""Check that the store is the one that earlier runs wrote to, before backup or purge writes to it.

The state file, and for a directory the marker in it, record whether the store had backups.  If it had some and has none
now, its disk is probably not mounted, or its name is misspelt: the run stops before it writes anything.
"""

from __future__ import annotations

import hashlib
import logging
import os

from whisperbackup.commands import open_driver
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.repository import storage_paths
from whisperbackup.repository.keys import AFTER_RECORDS, is_record
from whisperbackup.repository.known_bad import KnownBad
from whisperbackup.repository.purge import Rules
from whisperbackup.repository.state import EMPTY, MARKED, State
from whisperbackup.runtime import defaults
from whisperbackup.storage.base import (
    AccessDenied,
    Driver,
    NotFound,
    StartAfterUnsupported,
    Unavailable,
    is_marked,
    list_range,
    mark,
)

logger = logging.getLogger(__name__)

BARE, STRANGE = "is empty", "shows nothing of whisper-backup"


def state_of(options: Options) -> State:
    """The state file of this tree and this store."""
    identity = (options.prefix, options.driver, options.bucket, options.storage_path, options.storage_arguments)
    path = None if options.driver == "noop" else options.statefile  # it stores nothing
    return State(path, identity, options.selection, options.noop)


def known_bad_of(options: Options) -> KnownBad:
    """The backups in this store that `verify` found damaged."""
    if options.statefile is None or _is_device(options.statefile):
        return KnownBad(None)
    if options.statefile:
        return KnownBad(f"{options.statefile}.bad")
    # The prefix is not part of the name: verify reads no tree and usually runs without -p.
    store = (options.driver, options.bucket, options.storage_path, options.storage_arguments)
    digest = hashlib.sha1(repr(store).encode(), usedforsecurity=False).hexdigest()
    return KnownBad(os.path.join(defaults.state_folder(), f"{digest}.bad"))


def _is_device(path: str) -> bool:
    """Whether it is /dev/null, for example: that folder is no place for files."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def purge_rules(options: Options) -> Rules:
    """The rules for purge in this run."""
    return Rules(
        *(options.prefix, options.storage_path, options.purge_days, options.purge_anyway),
        *(options.noop, not options.no_delete),
    )


def open_for_backup(options: Options, state: State) -> Driver:
    """Open the store.  Create it, or start it in an empty place, only if no earlier run used it.  Raises CannotRun.

    Update what `state` records about the store.
    """
    begins = "would begin" if options.noop else "begins"
    warning = ""
    try:
        driver = open_driver(options)
        is_new = _is_empty(driver, options, state)
        what = _unknown(driver, options, state)
        if what:
            if what == BARE and state.is_foreign and not options.new_store:
                raise _lost(options, state, BARE)
            warning = f"{what}, and no earlier backup in it is known: a new store {begins} there; {_doubt(options)}"
    except NotFound:
        if (state.store != EMPTY or state.is_foreign) and not options.new_store:
            raise _lost(options, state, "does not exist") from None
        warning = (
            f"does not exist: a new store {begins} there; if that is wrong, remove it and correct -b or mount its disk"
        )
        driver = open_driver(options, create=True)
        is_new = True
    try:
        mark(driver)
    except (AccessDenied, Unavailable) as error:
        # Some nodes are allowed to write only below their own storage path.
        if not options.storage_path if isinstance(error, AccessDenied) else is_new:
            raise
        if not is_marked(driver):
            logger.warning("cannot mark %s as a store: %s", _named(options), error)
    if warning:
        logger.warning("%s %s", _named(options), warning)
    if state.store != EMPTY and is_marked(driver):
        state.store = MARKED
    return driver


def open_for_purge(options: Options, state: State) -> Driver:
    """Open the store; it must be the one that earlier runs used.  Raises CannotRun."""
    driver = open_driver(options)
    _is_empty(driver, options, state)
    if what := _unknown(driver, options, state):
        named, doubt = _named(options), _doubt(options)
        logger.warning("%s %s, and no earlier backup in it is known; %s", named, what, doubt)
    return driver


def open_for_increment(options: Options, state: State) -> Driver:
    """Open the store; it must be the one that earlier backup runs used.  Raises CannotRun, StorageError."""
    try:
        driver = open_driver(options)
    except NotFound:
        if state.store != EMPTY:
            raise _lost(options, state, "does not exist") from None
        raise
    if state.store == MARKED and not is_marked(driver):
        raise _lost(options, state, "has no file .whisper-backup-store")
    return driver


def check_store(driver: Driver, options: Options, state: State) -> None:
    """Raises CannotRun if earlier backup runs stored something, and there is nothing now."""
    if state.store != EMPTY and holds_nothing(driver, options):
        raise _lost(options, state, "holds no backups" + _below(options))


def holds_nothing(driver: Driver, options: Options) -> bool:
    """Whether there is no object below the storage path but records of runs and increments, which are no backups."""
    path = options.storage_path
    first = next(driver.list(path), None)
    if first is None:
        return True
    if not first.key.startswith(f"{path}."):
        return False  # names may begin with a character that sorts before the dot of the records
    try:
        return next(list_range(driver, path, f"{path}{AFTER_RECORDS}", ""), None) is None
    except StartAfterUnsupported:
        return all(is_record(found.key.removeprefix(path)) for found in driver.list(path))


def _is_empty(driver: Driver, options: Options, state: State) -> bool:
    """Whether the storage path is empty.  Raises CannotRun if it should not be, NotFound if there is no store."""
    is_empty = holds_nothing(driver, options)
    if not options.new_store:
        if state.store == MARKED and not is_marked(driver):
            raise _lost(options, state, "has no file .whisper-backup-store")
        if is_empty and state.store != EMPTY:
            raise _lost(options, state, "holds no objects" + _below(options))
    return is_empty


def _unknown(driver: Driver, options: Options, state: State) -> str:
    """What is wrong with a place of which no run knows anything: it is bare, or shows nothing of ours; empty if fine.

    It may be a mount point without its disk, or another bucket.  One page of a listing must do.
    """
    if (
        (state.store != EMPTY and not options.new_store)
        or options.driver == "noop"
        or (options.driver == "disk" and is_marked(driver))
    ):
        return ""
    try:
        if storage_paths.has_ours(driver, options.storage_path) or storage_paths.has_ours(driver, ""):
            return ""
        return STRANGE if next(driver.list(""), None) else BARE
    except AccessDenied:  # some nodes may list only what is below their own storage path
        return ""


def _doubt(options: Options) -> str:
    return "is its disk mounted?" if options.driver == "disk" else "is -b right?"


def _lost(options: Options, state: State, what: str) -> CannotRun:
    remedy = "mount its disk, or correct -b" if options.driver == "disk" else "check -b and the storage arguments"
    anew = "; to start a new store there, run backup once with --new-store"
    if state.is_foreign:
        return CannotRun(
            f"{_named(options)} {what}, and the state file {state.path} is that of another store or prefix: {remedy}, "
            f"or name a state file of its own with --statefile{anew}"
        )
    return CannotRun(
        f"{_named(options)} {what}, but there were backups in it (the state file {state.path}): {remedy}{anew}"
    )


def _named(options: Options) -> str:
    return f"the directory {options.bucket}" if options.driver == "disk" else f"the bucket '{options.bucket}'"


def _below(options: Options) -> str:
    return f" below the storage path '{options.storage_path}'" if options.storage_path else ""

"""Is the store the one that earlier runs wrote to?  Decided for backup and purge before anything is written to it.

What earlier runs left there is known from the state file, and, for a directory, from the marker in it.  Where these
say that backups should be there and none is, the store is most likely not mounted, or misspelt: nothing is written.
"""

from __future__ import annotations

import hashlib
import logging
import os

from whisperbackup.commands import open_driver
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.repository.known_bad import KnownBad
from whisperbackup.repository.purge import Rules
from whisperbackup.repository.state import EMPTY, MARKED, State
from whisperbackup.runtime import defaults
from whisperbackup.storage.base import AccessDenied, Driver, NotFound, Unavailable, is_marked, mark

logger = logging.getLogger(__name__)


def state_of(options: Options) -> State:
    """The state file of this tree and this store."""
    identity = (options.prefix, options.driver, options.bucket, options.storage_path, options.storage_arguments)
    path = None if options.driver == "noop" else options.statefile  # what keeps nothing has nothing to recall
    return State(path, identity, options.selection, options.noop)


def known_bad_of(options: Options) -> KnownBad:
    """What `verify` found damaged in this store."""
    if options.statefile is None:
        return KnownBad(None)
    if options.statefile:
        return KnownBad(f"{options.statefile}.bad")
    # Not the prefix: verify reads no tree, and is mostly run without -p.
    store = (options.driver, options.bucket, options.storage_path, options.storage_arguments)
    digest = hashlib.sha1(repr(store).encode(), usedforsecurity=False).hexdigest()
    return KnownBad(os.path.join(defaults.state_folder(), f"{digest}.bad"))


def purge_rules(options: Options) -> Rules:
    """What this run is allowed to purge."""
    return Rules(options.prefix, options.storage_path, options.purge_days, options.purge_anyway, options.noop)


def open_for_backup(options: Options, state: State) -> Driver:
    """The store; it is made, or begun in an empty place, only where nothing is known of it.  Raises CannotRun.

    What `state` says of the store is brought up to date.
    """
    begins = "would begin" if options.noop else "begins"
    warning = ""
    try:
        driver = open_driver(options)
        is_new = _is_empty(driver, options, state)
        if is_new and _is_bare(driver):
            warning = (
                f"is empty, and no earlier backup in it is known: a new store {begins} there; is its disk mounted?"
            )
    except NotFound:
        if state.store != EMPTY and not options.new_store:
            raise _lost(options, state, "does not exist") from None
        warning = (
            f"does not exist: a new store {begins} there; if that is a mistake, remove it, and correct -b or mount it"
        )
        driver = open_driver(options, create=True)
        is_new = True
    try:
        mark(driver)
    except (AccessDenied, Unavailable) as error:
        # A node may be allowed to write below its own storage path only.
        if not options.storage_path if isinstance(error, AccessDenied) else is_new:
            raise
        if not is_marked(driver):
            logger.warning("%s cannot be marked as a store: %s", _named(options), error)
    if warning:
        logger.warning("%s %s", _named(options), warning)
    if state.store != EMPTY and is_marked(driver):
        state.store = MARKED
    return driver


def open_for_purge(options: Options, state: State) -> Driver:
    """The store, which must be the one that is known.  Raises CannotRun."""
    driver = open_driver(options)
    if _is_empty(driver, options, state) and _is_bare(driver):
        logger.warning("%s is empty, and nothing is known of earlier backups; is its disk mounted?", _named(options))
    return driver


def holds_nothing(driver: Driver, options: Options) -> bool:
    """Whether there is no object below the storage path."""
    return next(driver.list(options.storage_path), None) is None


def _is_empty(driver: Driver, options: Options, state: State) -> bool:
    """Whether there is nothing below the storage path.  Raises CannotRun where more is known, NotFound for no store."""
    is_empty = holds_nothing(driver, options)
    if not options.new_store:
        if state.store == MARKED and not is_marked(driver):
            raise _lost(options, state, "has no file .whisper-backup-store")
        if is_empty and state.store != EMPTY:
            raise _lost(options, state, "holds no objects" + _below(options))
    return is_empty


def _is_bare(driver: Driver) -> bool:
    """Whether this may be the folder on which a disk should be mounted."""
    return not is_marked(driver) and next(driver.list(""), None) is None


def _lost(options: Options, state: State, what: str) -> CannotRun:
    remedy = "mount its disk, or correct -b" if options.driver == "disk" else "check -b and the storage arguments"
    anew = "; if a new store is to begin there, run backup once with --new-store"
    return CannotRun(
        f"{_named(options)} {what}, but there were backups in it (the state file {state.path}): {remedy}{anew}"
    )


def _named(options: Options) -> str:
    return f"the directory {options.bucket}" if options.driver == "disk" else f"the bucket '{options.bucket}'"


def _below(options: Options) -> str:
    return f" below the storage path '{options.storage_path}'" if options.storage_path else ""

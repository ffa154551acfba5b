"""The commands, one per module; each has a `run` function that returns the exit status."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable

from whisperbackup import storage
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.repository import storage_paths
from whisperbackup.repository.catalog import Catalog
from whisperbackup.storage.base import AccessDenied, Driver, is_marked
from whisperbackup.storage.windows import is_ranged
from whisperbackup.tree import names
from whisperbackup.tree.selection import Unmatched

logger = logging.getLogger(__name__)


def open_driver(options: Options, create: bool = False) -> Driver:
    """Open the bucket that the command line names; with --noop nothing changes, with --no-delete nothing is deleted."""
    return storage.open_bucket(
        options.driver, options.bucket, options.storage_arguments, create, options.noop, not options.no_delete
    )


def open_store(options: Options, create: bool = False) -> contextlib.closing[Driver]:
    """Open the bucket in a context manager that closes it."""
    return contextlib.closing(open_driver(options, create))


class WrongStoragePath(CannotRun):
    """All backups are under other storage paths; the message names them."""


def open_catalog(options: Options, driver: Driver) -> Catalog:
    """The metrics in the store.  Other storage paths are not listed in full if the store holds nothing else."""

    def is_absent(prefix: str) -> bool:
        found = storage_paths.find(driver, prefix, options.storage_path)
        return found.is_complete and options.storage_path not in found.paths

    split_keys: Iterable[str] = ()
    if is_ranged(driver):
        from whisperbackup.commands.known_store import state_of  # and all that it imports, for long listings alone

        split_keys = state_of(options).split_keys()
    return Catalog(driver, options.storage_path, options.selection, split_keys, is_absent)


def nothing_matches(options: Options, driver: Driver) -> CannotRun:
    """The error for a store without any selected metric; a few listings look for the reason.  Raises StorageError."""
    for name in options.selection.exact:
        if next(driver.list(f"{options.storage_path}{name}."), None):
            return CannotRun(
                f"there is no metric '{name}' in {options.bucket}, but metrics exist below that name: {_all(name)}"
            )
    below = f" below the storage path '{options.storage_path}'" if options.storage_path else ""
    nothing = f"no metric in {options.bucket}{below} matches"
    try:
        others = storage_paths.find(driver, options.storage_path, options.storage_path)
        if options.storage_path not in others.paths:
            if options.storage_path:
                others = storage_paths.find(driver, "")
            if others.paths:
                return WrongStoragePath(f"{nothing}; it holds {others}")
        return CannotRun(f"{nothing}; {_first_object(driver)}")
    except AccessDenied:  # some nodes may list only what is below their own storage path
        return CannotRun(f"{nothing}; check -m, --exclude and --storage-path, or run list")


def check_excluded(options: Options, driver: Driver) -> None:
    """Warn of an --exclude that names a folder, and so excludes nothing.  Raises CannotRun before it costs something.

    Where the tree has a metric of that name beside the folder, it is in no backup, since it is excluded.  So may it be
    where there is no tree: then this is only a warning.  Raises StorageError.
    """
    for name in options.selection.excluded_names:
        key = f"{options.storage_path}{name}"
        try:
            path = os.path.join(options.prefix, names.metric_path(name))
        except names.ForeignName:
            continue  # no metric has such a name
        if os.path.lexists(path) or next(driver.list(f"{key}/"), None) or next(driver.list(f"{key}."), None) is None:
            continue
        nothing = (
            f"--exclude {name} excludes nothing: there is no metric of that name, but metrics exist below it: use "
            f"--exclude '{name}.*' if these are meant"
        )
        if options.command == "purge" or options.overwrite:
            raise CannotRun(nothing)
        logger.warning("%s", nothing)


def fail_unmatched(unmatched: Unmatched, fail: Callable[[str, str], None]) -> None:
    """Report each -m, of several, that no metric matched: a misspelt one must not look like a success."""
    for glob in unmatched.left:
        fail(glob, "no metric matches this -m: is it misspelt, excluded, a link, or only in increments?")


def check_storage_path(options: Options, driver: Driver) -> None:
    """Call this after a run that saw no metric in the store; raises WrongStoragePath if backups are elsewhere."""
    nothing = nothing_matches(options, driver)
    if isinstance(nothing, WrongStoragePath):
        raise nothing


def _first_object(driver: Driver) -> str:
    first = next(driver.list(""), None)
    if first is None:
        return "it holds no objects at all" + ("" if is_marked(driver) else "; is its disk mounted?")
    hint = " (written by an older whisper-backup: use --storage-path /)" if first.key.startswith("/") else ""
    return f"the first object there is '{first.key}'{hint}; check -m, --exclude and --storage-path, or run list"


def nothing_to_back_up(options: Options) -> CannotRun:
    """The error for a run that found no selected metric in the tree or in the store."""
    for name in options.selection.exact:
        folder = os.path.join(options.prefix, names.metric_path(name).removesuffix(names.SUFFIX))
        if os.path.isdir(folder):
            return CannotRun(f"there is no metric '{name}', but '{os.fsdecode(folder)}' is a directory: {_all(name)}")
    return CannotRun("no metric matches in the tree or in the store; check -m and --exclude")


def _all(name: str) -> str:
    return f"use -m '{name}.*'"

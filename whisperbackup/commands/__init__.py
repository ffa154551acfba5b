"""The verbs, one a module; each has a `run(options)` that returns the exit status."""

from __future__ import annotations

import contextlib
import os

from whisperbackup import storage
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.repository import storage_paths
from whisperbackup.repository.catalog import Catalog
from whisperbackup.storage.base import Driver, is_marked
from whisperbackup.tree import names


def open_driver(options: Options, create: bool = False) -> Driver:
    """The bucket that the command line names, open; with --noop nothing in it will change."""
    return storage.open_bucket(options.driver, options.bucket, options.storage_arguments, create, options.noop)


def open_store(options: Options, create: bool = False) -> contextlib.closing[Driver]:
    """The same, as a context manager that closes it."""
    return contextlib.closing(open_driver(options, create))


class WrongStoragePath(CannotRun):
    """All backups are of other storage paths; the text names them."""


def open_catalog(options: Options, driver: Driver) -> Catalog:
    """The metrics of the store; it is not listed as a whole to find that they are all of other storage paths."""

    def is_absent(prefix: str) -> bool:
        found = storage_paths.find(driver, prefix, options.storage_path)
        return found.is_complete and options.storage_path not in found.paths

    return Catalog(driver, options.storage_path, options.selection, is_absent=is_absent)


def nothing_matches(options: Options, driver: Driver) -> CannotRun:
    """That the store has no metric that is meant, and why, as far as a few looks can tell.  Raises StorageError."""
    for name in options.selection.exact:
        if next(driver.list(f"{options.storage_path}{name}."), None):
            return CannotRun(
                f"there is no metric '{name}' in {options.bucket}, but there are some below it: {_all(name)}"
            )
    below = f" below the storage path '{options.storage_path}'" if options.storage_path else ""
    others = storage_paths.find(driver, options.storage_path, options.storage_path)
    if options.storage_path not in others.paths:
        if options.storage_path:
            others = storage_paths.find(driver, "")
        if others.paths:
            return WrongStoragePath(f"no metric in {options.bucket}{below} matches; it holds {others}")
    return CannotRun(f"no metric in {options.bucket}{below} matches; {_first_object(driver)}")


def check_storage_path(options: Options, driver: Driver) -> None:
    """For a run that saw no metric in the store: raises WrongStoragePath if there are backups, but elsewhere."""
    nothing = nothing_matches(options, driver)
    if isinstance(nothing, WrongStoragePath):
        raise nothing


def _first_object(driver: Driver) -> str:
    first = next(driver.list(""), None)
    if first is None:
        return "it holds no objects at all" + ("" if is_marked(driver) else "; is its disk mounted?")
    hint = " (an older whisper-backup wrote that: --storage-path / reaches it)" if first.key.startswith("/") else ""
    return f"the first object there is '{first.key}'{hint}; see -m, --exclude, --storage-path, and what list shows"


def nothing_to_back_up(options: Options) -> CannotRun:
    """That neither tree nor store has a metric that is meant, and why, as far as a look can tell."""
    for name in options.selection.exact:
        folder = os.path.join(options.prefix, names.metric_path(name).removesuffix(names.SUFFIX))
        if os.path.isdir(folder):
            return CannotRun(f"there is no metric '{name}', but '{os.fsdecode(folder)}' is a folder: {_all(name)}")
    return CannotRun("no metric matches, neither in the tree nor in the store; see -m and --exclude")


def _all(name: str) -> str:
    return f"say -m '{name}.*'"

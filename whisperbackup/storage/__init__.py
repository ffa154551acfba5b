"""The registry of storage drivers: it opens a bucket with the driver that the command line names."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import cast
from urllib.parse import urlsplit

from whisperbackup.storage.base import Driver, NotFound, Opener, StorageError
from whisperbackup.storage.guarded import Guarded, guard
from whisperbackup.storage.noop import Noop
from whisperbackup.storage.readonly import ReadOnly

ENTRY_POINTS = "whisperbackup.storage"
BUILT_IN = ("disk", "gcs", "noop", "s3", "swift")
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "swift": ("ST_AUTH", "OS_AUTH_URL"),
    "gcs": ("STORAGE_EMULATOR_HOST",),
}
"""The environment variables that name the server of each service."""


class MissingLibrary(StorageError):
    """The service's client library is not installed."""


def names() -> list[str]:
    """All installed drivers, the built-in ones first."""
    from importlib.metadata import entry_points

    return [*BUILT_IN, *sorted({point.name for point in entry_points(group=ENTRY_POINTS)} - set(BUILT_IN))]


def is_known(name: str) -> bool:
    """Whether a driver has this name.  The search of installed packages is slow, and skipped for a built-in driver."""
    return name in BUILT_IN or name in names()


def endpoint(name: str, arguments: Sequence[str]) -> str:
    """Host and port of the server that the storage arguments or the environment name; empty for the service's own.

    Also empty for a URL that may hold a password.
    """
    urls = [word.removeprefix("endpoint=") for word in arguments if word.startswith("endpoint=")]
    urls += [os.environ.get(variable, "") for variable in ENDPOINTS.get(name, ())]
    url = next(filter(None, urls), "")
    try:
        return "" if "@" in url else urlsplit(url).netloc
    except ValueError:
        return ""  # the driver reports what is wrong with it


def open_bucket(name: str, bucket: str, arguments: list[str], create: bool, noop: bool, deletes: bool = True) -> Driver:
    """Open a bucket.  With `noop` reads work and writes are discarded; a bucket that would be created looks empty.

    Without `deletes` no request to delete is sent.

    Raises StorageError, and UsageError for storage arguments that the driver does not know.
    """
    opener = _opener(name)
    try:
        with guard(name):
            driver = Guarded(opener(bucket, create and not noop, arguments), name, bucket, deletes)
    except NotFound:
        if noop and create:
            return Noop()
        raise
    return ReadOnly(driver, absent_is_empty=create) if noop else driver


def _opener(name: str) -> Opener:
    """The driver's `open` function.  Only this imports the driver's module, and with it the client library."""
    if name not in BUILT_IN:
        from importlib.metadata import entry_points

        (point, *others) = entry_points(group=ENTRY_POINTS, name=name)
        if others:
            raise StorageError(
                f"two packages install a driver {name}: {point.value} and {others[0].value}; uninstall one of them"
            )
        try:
            return cast(Opener, point.load())
        except Exception as error:
            raise StorageError(
                f"the driver {name} ({point.value}) cannot be loaded: {error}; update or reinstall its package"
            ) from error
    try:
        module = importlib.import_module(f"whisperbackup.storage.{name}")
    except ModuleNotFoundError as error:
        raise MissingLibrary(
            f"the driver {name} needs the library '{error.name}', which is not installed: "
            f"pip install 'whisper-backup[{name}]'"
        ) from error
    return cast(Opener, module.open)

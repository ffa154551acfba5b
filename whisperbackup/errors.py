"""The errors that end a run, or fail one metric: each text names the thing, what is wrong, and the remedy."""

from __future__ import annotations


class CannotRun(Exception):
    """The command could not do its job at all."""


class NoTree(CannotRun):
    """There is no tree to walk."""


class UsageError(Exception):
    """A storage argument that the driver does not understand."""


class StorageError(Exception):
    """The store could not do what was asked."""


class NotFound(StorageError):
    """The bucket or the key does not exist."""


class AccessDenied(StorageError):
    """Not authenticated, or not allowed."""


class Unavailable(StorageError):
    """The store did not answer, or not usefully, also after the client library's retries."""


class StartAfterUnsupported(StorageError):
    """The service does not begin a listing where it was asked to."""


class UnsortedListing(StorageError):
    """The listing did not come in ascending order; nothing can be concluded from what it lacks."""


class Exists(StorageError):
    """An object that was to be created exists, with another content: another run was faster."""

    def __init__(self, key: str) -> None:
        super().__init__(f"'{key}' exists already, with another content; is another backup writing to this store?")
        self.key = key

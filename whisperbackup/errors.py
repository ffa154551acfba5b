"""The errors that end a run or fail one metric.  Each message names the thing, what is wrong, and the remedy."""

from __future__ import annotations

from collections.abc import Mapping


class CannotRun(Exception):
    """The command cannot run."""


class NoTree(CannotRun):
    """The tree does not exist, or cannot be read."""


class UsageError(Exception):
    """A storage argument is invalid."""


class StorageError(Exception):
    """A request to the store failed."""


class NotFound(StorageError):
    """The bucket or the key does not exist."""


class AccessDenied(StorageError):
    """The user is not authenticated, or not allowed to do this."""


class Unavailable(StorageError):
    """The store did not answer, or answered with an error, even after the client library's retries."""


class Unreadable(StorageError):
    """The disk of the store cannot read this object, but may read others."""


class StartAfterUnsupported(StorageError):
    """The service does not start a listing at the requested key."""


class UnsortedListing(StorageError):
    """The listing is not sorted, so a key that is absent from it may still exist, and a page may repeat for ever."""

    def __init__(self, last: str, key: str, store: str = "the store") -> None:
        super().__init__(
            f"{store} lists '{key}' after '{last}': it does not sort its keys, or repeats a page, so no conclusion can "
            "be drawn from its listing; check the endpoint and any proxy, or use another service"
        )


class NotDeleted(StorageError):
    """Some objects could not be deleted; all the others were tried.

    `refused` are keys that the store does not allow to delete, one by one: locked, held, or kept by a policy; with its
    reasons.  `failed` are the others, and those of a request that was denied as a whole (`is_denied`).
    """

    def __init__(
        self, message: str, refused: Mapping[str, str], failed: Mapping[str, str], is_denied: bool = False
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.failed = failed
        self.is_denied = is_denied or bool(refused)


class Exists(StorageError):
    """An object to be created already exists with different content: another run created it first."""

    def __init__(self, key: str) -> None:
        super().__init__(f"'{key}' already exists with different content; is another backup writing to this store?")
        self.key = key

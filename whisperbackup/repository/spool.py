"""A temporary file of the actions that a pass plans; they are carried out only after it ended without an error."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
from collections.abc import Iterator
from typing import Generic, TypeVar

from whisperbackup.errors import CannotRun

T = TypeVar("T")


class Spool(Generic[T]):
    """Values of one run, in the order in which they were written."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this object)

    def write(self, value: T) -> None:
        """Add a value.  Raises CannotRun."""
        with _spooling():
            pickle.dump(value, self._file)

    def read(self) -> Iterator[T]:
        """Yield all values, after the last was written.  Raises CannotRun."""
        with _spooling():
            self._file.seek(0)
        while True:
            with _spooling():
                try:
                    value = pickle.load(self._file)  # safe: the file has no name, so only this run writes it
                except EOFError:
                    return
            yield value


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise CannotRun(
            f"cannot write the purge plan to {folder}: {error.strerror}; free space, or set TMPDIR to another folder"
        ) from error

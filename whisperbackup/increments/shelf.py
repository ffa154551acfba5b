"""Results of workers that came before their turn: what exceeds a limit waits in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

from whisperbackup.errors import CannotRun
from whisperbackup.increments.part import PackedFrame

IN_MEMORY = 4 * 1024 * 1024  # bytes


class Shelf:
    """Frames by the number of the batch that they belong to."""

    def __init__(self) -> None:
        self._batches: dict[int, list[tuple[PackedFrame, int, int]]] = {}
        self._held = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this object)

    def __contains__(self, number: int) -> bool:
        return number in self._batches

    def put(self, number: int, frames: list[PackedFrame]) -> None:
        """Keep a batch's frames until its turn.  Raises CannotRun if there is no room for temporary files."""
        kept = []
        for frame in frames:
            size = len(frame.content)
            if self._held + size <= IN_MEMORY:
                self._held += size
                kept.append((frame, -1, size))
                continue
            try:
                offset = self._file.seek(0, 2)
                self._file.write(frame.content)
            except OSError as error:
                raise CannotRun(
                    f"cannot write to {tempfile.gettempdir()}: {error.strerror}; free space, or set TMPDIR"
                ) from error
            kept.append((frame._replace(content=b""), offset, size))
        self._batches[number] = kept

    def take(self, number: int) -> Iterator[PackedFrame]:
        """A batch's frames, which are no longer kept."""
        for frame, offset, size in self._batches.pop(number):
            if offset < 0:
                self._held -= size
                yield frame
            else:
                self._file.seek(offset)
                yield frame._replace(content=self._file.read(size))

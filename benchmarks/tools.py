"""What a backup tool is to the benchmarks, and this one as such.

Each tool has a label that says what it is run with, and one store of its own, in the scratch folder or in
a service.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from timing import Command

from whisperbackup.tree import names

STATE = "--statefile"
"""The option that names the state file; every backup is given one, if this version of the program has it."""

PROGRAM = [sys.executable, "-m", "whisperbackup", "--nolog", "--nolock", "--nostamp", "-q"]


class Tool(Protocol):
    """A backup tool with a store of its own."""

    label: str
    in_flight: int  # requests that it makes of a service at a time

    def clear(self) -> None:
        """Make the store new and empty, and the tool forget it."""

    def backup(self, root: Path) -> Command:
        """Back up the tree at `root`."""

    def restore(self, target: Path, path: str = "") -> Command:
        """Restore the newest backup below `target`, an empty folder; only the file `path`, where it is given."""

    def stored(self) -> int | None:
        """Bytes in the store, if it is on this machine."""


def folder_size(path: Path) -> int:
    """Bytes of all files at or below `path`."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def empty(*folders: Path) -> None:
    """Make each a new, empty folder."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def new_name() -> str:
    """A name for a bucket that is not there yet."""
    return f"bench-{uuid.uuid4().hex[:12]}"


@functools.cache
def knows(option: str) -> bool:
    """Whether this version of the program has an option."""
    words = [sys.executable, "-m", "whisperbackup", "--help"]
    return option in subprocess.run(words, capture_output=True, text=True, check=True).stdout


class WhisperBackup:
    """This tool; to any of its stores, whose `place` is what follows the command, as in `backup disk`."""

    def __init__(
        self,
        home: Path,
        codec: str = "gz",
        place: tuple[str, ...] = ("disk",),
        environment: Mapping[str, str] = {},
        in_flight: int = 0,
    ) -> None:
        self.label = f"whisper-backup -a {codec}"
        self.in_flight = in_flight
        self._codec, self._place, self._environment = codec, place, environment
        self._home, self._bucket = home / f"whisper-backup-{codec}", ""

    def clear(self) -> None:
        empty(self._home)
        self._bucket = str(self._home / "store") if self._place == ("disk",) else new_name()

    def backup(self, root: Path) -> Command:
        state = [STATE, self._home / "state"] if knows(STATE) else []
        return self.command(*state, "-p", root, "-a", self._codec, "backup")

    def restore(self, target: Path, path: str = "") -> Command:
        metric = ["-m", names.metric_name(os.fsencode(path))] if path else []
        return self.command("-p", target, *metric, "restore")

    def stored(self) -> int | None:
        return folder_size(Path(self._bucket)) if self._place == ("disk",) else None

    def command(self, *words: object) -> Command:
        """Any command of this tool, but for the driver and its arguments."""
        return Command([*PROGRAM, "-b", self._bucket, *words, *self._place], self._environment)

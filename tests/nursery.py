"""Starts the program without Python's own start: a process that has imported everything forks for each run.

In thousands of runs, imports take as much CPU time as the work.  A run from here has a process, an environment, a
directory and standard streams of its own, as one from a shell has; only its modules are there already.  The clients of
object stores are twice as large as all else, and each fork copies their pages: who does without has a smaller nursery.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from typing import NoReturn

EARLY = ("PYTHON", "LD_", "LC_", "LANG")
"""So begin variables that take effect before a program's first line; a run that has others is not from here."""

ENVIRONMENT = dict(os.environ)
"""Before any test changed it."""

CLIENTS = (
    *(f"whisperbackup.storage.{driver}" for driver in ("gcs", "s3", "s3pages", "s3wire", "swift", "wire")),
    *("boto3", "botocore.session", "s3transfer", "google.cloud.storage", "swiftclient", "keystoneauth1"),
)

LATE = ("encodings.ascii", "filelock", "isal.igzip", "isal.isal_zlib", "multiprocessing.popen_fork", "snappy")
"""What the program imports when it comes to it."""


class Nursery:
    """That process, as seen by the tests."""

    def __init__(self, *, clients: bool) -> None:
        self._address = f"\0nursery-{os.getpid()}-{clients}"  # of Linux: it has no file
        self._clients = clients
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno()), *(CLIENTS if clients else [])],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,  # it ends with the tests, whichever of their threads began it
                env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"},
            )

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether a run with this environment would be the same from here."""
        has_clients = not self._clients or environment.get("PYTHONPATH") == ENVIRONMENT.get("PYTHONPATH")
        return has_clients and _early(environment) == _early(ENVIRONMENT)

    def run(self, words: list[str], environment: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
        """Run the program with these words behind its name, to its end."""
        mask = os.umask(0)
        os.umask(mask)
        order = json.dumps([words, dict(environment), os.getcwd(), mask]).encode()
        pipes = [os.pipe() for _ in range(2)]
        with socket.socket(socket.AF_UNIX) as channel, selectors.DefaultSelector() as selector:
            channel.settimeout(timeout)
            channel.connect(self._address)
            given = array.array("i", [end for _, end in pipes])
            channel.sendmsg([len(order).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, given)])
            channel.sendall(order)
            said = {}
            for reading, writing in pipes:
                os.close(writing)
                selector.register(reading, selectors.EVENT_READ)
                said[reading] = bytearray()
            deadline = time.monotonic() + timeout
            while selector.get_map():
                ready = selector.select(deadline - time.monotonic())
                if not ready:
                    raise subprocess.TimeoutExpired(words, timeout)
                for key, _ in ready:
                    found = os.read(key.fd, 1 << 16)
                    said[key.fd] += found
                    if not found:
                        selector.unregister(key.fd)
                        os.close(key.fd)
            status = int(channel.makefile().read())
        stdout, stderr = (bytes(stream).decode(errors="replace") for stream in said.values())
        return subprocess.CompletedProcess(words, status, stdout, stderr)


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    later = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    return {name: value for name, value in later.items() if name.startswith(EARLY)}


# -- the other side ---------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> NoReturn:
    """Fork for each order; answer with the exit status."""
    waiting: dict[int, socket.socket] = {}
    hears, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(hears, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([0, listener, hears], [], [])
        if 0 in ready:
            os._exit(0)
        if listener in ready:
            channel, _ = listener.accept()
            head, fds, _, _ = socket.recv_fds(channel, 8, 2)
            order = json.loads(channel.makefile("rb").read(int.from_bytes(head, "big")))
            pid = os.fork()
            if not pid:
                live(order, fds)
            waiting[pid] = channel
            for fd in fds:
                os.close(fd)
        if hears in ready:
            os.read(hears, 1 << 16)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not pid:
                    break
                with waiting.pop(pid) as channel, contextlib.suppress(OSError):  # a test may have given up
                    channel.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def live(order: tuple[list[str], dict[str, str], str, int], fds: list[int]) -> NoReturn:
    """Be the program, from its start to its end."""
    words, environment, folder, mask = order
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, fd in enumerate([os.open(os.devnull, os.O_RDONLY), *fds]):
        os.dup2(fd, stream)
    os.closerange(3, 1 << 10)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.path[:0] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.chdir(folder)
    os.umask(mask)
    sys.argv[1:] = words
    status = 1
    try:
        from whisperbackup.main import run

        run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  (shown as Python shows it)
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def main() -> NoReturn:
    """The process that forks."""
    import whisperbackup

    own = [module.name for module in pkgutil.walk_packages(whisperbackup.__path__, "whisperbackup.")]
    needed = [name for name in own if name not in CLIENTS and not name.endswith("__main__")]
    for name in [*needed, *LATE, *sys.argv[2:]]:
        importlib.import_module(name)
    sys.argv[2:] = []
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()

"""Threads for a while, in a process that forks afterwards."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

END_LIMIT = 10.0  # seconds


@contextlib.contextmanager
def passing_threads(number: int) -> Iterator[Executor]:
    """An executor with so many threads, none of which is left in the end, as the kernel sees it.

    Python's own end of a thread, for which `join` waits, is before that of the C libraries: OpenSSL then takes a lock
    of the whole process.  A process that is forked meanwhile has that lock taken for ever.
    """
    tasks: set[int] = set()
    with ThreadPoolExecutor(number, initializer=lambda: tasks.add(threading.get_native_id())) as executor:
        yield executor
    deadline = time.monotonic() + END_LIMIT
    while any(os.path.exists(f"/proc/self/task/{task}") for task in tasks) and time.monotonic() < deadline:
        time.sleep(0.001)

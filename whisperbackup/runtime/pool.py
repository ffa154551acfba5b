"""The worker pool: processes with threads, and how the run ends when a worker dies or hangs.

Each worker is a forked process with its own pipe to the parent.  The workers share no queue and no lock, so a killed
worker blocks no other.  The parent sends jobs in small batches, a few of them ahead of time; the workers send results
and log records back over the same pipe.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import itertools
import logging
import multiprocessing
import multiprocessing.util
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Generic, NamedTuple, Protocol, TypeVar

from whisperbackup.errors import CannotRun
from whisperbackup.runtime import signals

logger = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # per thread: one running, one waiting
REPORT_INTERVAL = 1.0  # seconds after which finished jobs of an unfinished batch are reported
HANG_LIMIT = 3600.0  # seconds without a result; far longer than all timeouts of a driver together
GRACE = signals.STOP_LIMIT - 1  # seconds in which jobs in flight may finish after a stop signal
END_LIMIT = 1.0  # seconds in which workers may exit, and again after they were killed
PR_SET_PDEATHSIG = 1
MALLOC = {-3: 4 << 20, -1: 32 << 20, -8: 2}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (bytes) and M_ARENA_MAX of mallopt(3): no more than two arenas of a process keep
32 MB each, and what is larger than 4 MB is given back."""


class WorkerLost(CannotRun):
    """A worker process died or hangs, so the results of its jobs are unknown."""


C = TypeVar("C")
R = TypeVar("R")
C_contra = TypeVar("C_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[C_contra, R_co]):
    """A job for a worker; the job and its result are pickled."""

    @property
    def name(self) -> str:
        """The name of the job, for messages."""

    @property
    def examines(self) -> bool:
        """Whether the job counts as examined, even if it fails."""

    def run(self, context: C_contra) -> R_co:
        """Run the job; any of the worker's threads may call this."""


class Done(NamedTuple, Generic[R]):
    """A job's result, and when it began and ended (time.monotonic(), the same clock in all processes)."""

    result: R
    began: float
    ended: float


class _Worker(NamedTuple):
    process: multiprocessing.process.BaseProcess
    pipe: Connection


class Pool(Generic[C, R]):
    """`processes` workers with `threads` threads each.

    `prepare` runs once in each worker and returns the context for its jobs.  `failed` turns an exception into a
    result.  Use the pool as a context manager, and before any thread is started but those
    of `passing_threads`.
    """

    def __init__(
        self,
        processes: int,
        threads: int,
        prepare: Callable[[], C],
        failed: Callable[[Job[C, R], Exception], R],
        batch: int | None = None,
    ) -> None:
        """`batch` is how many jobs are sent at a time; fewer of those that take long."""
        context = multiprocessing.get_context("fork")
        self._batch = batch or max(1, 16 // threads)
        self._ahead = BATCHES_AHEAD * threads * self._batch
        self._owed: dict[Connection, list[str]] = {}  # names of jobs without a result yet
        self._heard: dict[Connection, float] = {}
        self._inbox: collections.deque[Done[R]] = collections.deque()
        self._workers: list[_Worker] = []
        for number in range(1, processes + 1):
            try:
                ours, theirs = context.Pipe()
                others = [worker.pipe for worker in self._workers] + [ours]
                arguments = (theirs, others, threads, prepare, failed, os.getpid())
                process = context.Process(target=_worker, args=arguments, daemon=True)
                with signals.shield():  # the child has our signal handlers at first
                    process.start()
            except OSError as error:
                raise WorkerLost(
                    f"cannot start worker {number} of {processes}: {error.strerror}; try a smaller -f"
                ) from error
            theirs.close()
            self._workers.append(_Worker(process, ours))
            self._owed[ours] = []

    def __enter__(self) -> Pool[C, R]:
        return self

    def __exit__(self, *_: object) -> None:
        with signals.shield():
            for worker in self._workers:
                worker.pipe.close()  # a worker exits at the end of its pipe
            for worker in self._alive_after(END_LIMIT):
                worker.process.kill()
            stuck = self._alive_after(END_LIMIT)
            for worker in stuck:
                logger.error(
                    "worker %d was killed but does not exit: the kernel is waiting for a disk or a network file "
                    "system, see /proc/%d/fd for its files; it was working on %s",
                    worker.process.pid, worker.process.pid, _shown(self._owed[worker.pipe]),
                )  # fmt: skip
            if stuck:
                # It would wait forever for these workers.
                atexit.unregister(multiprocessing.util._exit_function)  # type: ignore[attr-defined]

    def _alive_after(self, seconds: float) -> list[_Worker]:
        """Wait up to `seconds` for the workers to exit; the ones that have not."""
        deadline = time.monotonic() + seconds
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        return [worker for worker in self._workers if worker.process.is_alive()]

    def run(self, jobs: Iterable[Job[C, R]]) -> Iterator[Done[R]]:
        """Run `jobs`; yield the results in the order in which they arrive.  Raises WorkerLost."""
        source = iter(jobs)
        exhausted = False
        while True:
            signals.check()
            for worker in self._workers:
                while not exhausted and len(self._owed[worker.pipe]) <= self._ahead - self._batch:
                    batch = list(itertools.islice(source, self._batch))
                    exhausted = len(batch) < self._batch
                    if batch:
                        self._send(worker, batch)
            if exhausted and not any(self._owed.values()):
                return
            self._receive(HANG_LIMIT)
            yield from self._received()
            self._check_for_hangs()

    def drain(self) -> Iterator[Done[R]]:
        """After a stop signal: drop jobs that have not started; yield the results that arrive within GRACE seconds."""
        deadline = time.monotonic() + GRACE
        yield from self._received()
        for worker in self._workers:
            try:
                worker.pipe.send(None)
            except OSError:
                self._owed[worker.pipe] = []
        while any(self._owed.values()) and (left := deadline - time.monotonic()) > 0:
            try:
                self._receive(left)
            except WorkerLost as error:
                logger.error("%s", error)
                return
            yield from self._received()

    def _send(self, worker: _Worker, batch: list[Job[C, R]]) -> None:
        if not self._owed[worker.pipe]:
            self._heard[worker.pipe] = time.monotonic()
        with signals.shield():  # a partial message would make the pipe unusable
            try:
                worker.pipe.send(batch)
            except OSError:
                raise self._lost(worker) from None
            self._owed[worker.pipe] += [job.name for job in batch]

    def _receive(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for results and log records from the workers."""
        busy = {worker.pipe: worker for worker in self._workers if self._owed[worker.pipe]}
        for pipe in wait(list(busy), timeout):
            assert isinstance(pipe, Connection)
            with signals.shield():
                try:
                    done, records, ended = pipe.recv()
                except (EOFError, OSError):
                    raise self._lost(busy[pipe]) from None
                self._heard[pipe] = time.monotonic()
                for name in ended:
                    self._owed[pipe].remove(name)
                self._inbox.extend(done)
            for record in records:
                logging.getLogger(record.name).handle(record)

    def _received(self) -> Iterator[Done[R]]:
        while self._inbox:
            yield self._inbox.popleft()

    def _check_for_hangs(self) -> None:
        for worker in self._workers:
            if self._owed[worker.pipe] and time.monotonic() - self._heard[worker.pipe] > HANG_LIMIT:
                raise WorkerLost(
                    f"worker {worker.process.pid} has not answered for {HANG_LIMIT / 60:.0f} minutes; "
                    "the run ends here; start it again"
                )

    def _lost(self, worker: _Worker) -> WorkerLost:
        worker.process.join(1)
        code = worker.process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
        return WorkerLost(
            f"worker {worker.process.pid} {how} with {len(self._owed[worker.pipe])} unfinished metrics; "
            "the run ends here; start it again (out of memory? check dmesg, and try a smaller -f)"
        )


class _Collector(logging.Handler):
    """Collects a worker's log records, to be sent to the parent."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.msg, record.args, record.exc_info = record.getMessage(), None, None  # arguments may not pickle
        self._records.append(record)

    def collect(self) -> list[logging.LogRecord]:
        self.acquire()
        try:
            records, self._records = self._records, []
        finally:
            self.release()
        return records


def _worker(
    pipe: Connection,
    others: list[Connection],
    threads: int,
    prepare: Callable[[], C],
    failed: Callable[[Job[C, R], Exception], R],
    parent: int,
) -> None:  # pragma: no cover  (a process of its own)
    """The main function of a worker: it runs jobs until its pipe is closed."""
    for other in others:
        other.close()  # or a sibling's pipe would stay open after the parent dies
    _die_with(parent)
    _reuse_memory()
    for number in signals.STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the parent decides; a terminal sends Ctrl-C to every process
    collector = _Collector()
    logging.getLogger().handlers[:] = [collector]
    contexts: list[C] = []
    unprepared: Exception = RuntimeError("the worker is not prepared")
    try:
        contexts.append(prepare())
    except Exception as error:  # noqa: BLE001  (the boundary: every job fails with it)
        unprepared = error
    batches: queue.SimpleQueue[list[Job[C, R]]] = queue.SimpleQueue()
    sending = threading.Lock()
    stopping = threading.Event()

    def do(job: Job[C, R]) -> Done[R]:
        began = time.monotonic()
        try:
            result = job.run(contexts[0]) if contexts else failed(job, unprepared)
        except Exception as error:  # noqa: BLE001  (the boundary: a failure in a job is that job's result)
            result = failed(job, error)
        return Done(result, began, time.monotonic())

    def report(done: list[Done[R]], ended: list[str]) -> None:
        """Send results, and the names of the jobs that are done or dropped."""
        with sending:
            pipe.send((done, collector.collect(), ended))

    def work() -> None:
        try:
            while True:
                done: list[Done[R]] = []
                ended: list[str] = []
                batch = batches.get()
                reported = time.monotonic()
                for job in batch:
                    ended.append(job.name)
                    if stopping.is_set():
                        continue
                    done.append(do(job))
                    if time.monotonic() - reported > REPORT_INTERVAL:
                        report(done, ended)
                        done, ended, reported = [], [], time.monotonic()
                if ended:
                    report(done, ended)
        except BaseException:  # noqa: BLE001  (for example a broken pipe: the parent sees the end of the pipe)
            os._exit(1)

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            batch = pipe.recv()
            if batch is None:
                stopping.set()  # `work` still reports queued jobs, as dropped
            else:
                batches.put(batch)
    except (EOFError, OSError):
        os._exit(0)


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"one of {', '.join(names[:3])}{more}" if names else "nothing"


def _reuse_memory() -> None:
    """Have malloc keep the memory of file contents for the next file.

    To give each back to the kernel, and get it again full of zeros, is half of the system's time in a run.
    """
    with contextlib.suppress(OSError, AttributeError):  # it is not glibc's
        libc = ctypes.CDLL(None)
        for parameter, value in MALLOC.items():
            libc.mallopt(parameter, value)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies for any reason."""
    with contextlib.suppress(OSError, AttributeError):  # not on Linux: the worker exits at the end of its pipe
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

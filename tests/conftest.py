"""What every test may use: the program as a process, trees of real whisper files, hypothesis' settings."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import servers
import whisper
from nursery import Nursery

from whisperbackup.options import WORKING
from whisperbackup.runtime import defaults

# Thousands of processes start here; where no bytecode may be kept, each of them compiles the whole program.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

EFFORT = float(os.environ.get("EFFORT", "1"))
"""How long what repeats or draws at random goes on: 10 is ten times as long as in `make test`."""


def budget(usual: int) -> int:
    """How often to repeat what is usually repeated so often."""
    return max(1, round(usual * EFFORT))


hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=budget(200), derandomize="EFFORT" not in os.environ
)
hypothesis.settings.load_profile("ci")

SCHEMAS = ([(60, 60)], [(1, 120), (60, 120)], [(10, 60), (60, 60), (300, 48)])
TIME_LIMIT = 300  # seconds for a test, and for what its fixtures prepare
Run = Callable[..., subprocess.CompletedProcess[str]]

MARKER = ".whisper-backup-store"


def pytest_configure(config: pytest.Config) -> None:
    """Let the session's first process start servers: the only one, or the one that hands tests to xdist's workers."""
    if not hasattr(config, "workerinput"):
        sharing = contextlib.ExitStack()
        sharing.enter_context(servers.shared_servers())
        config.add_cleanup(sharing.close)


NETWORK = set(servers.STORES) - set(servers.LOCAL)
SHARING = re.compile(
    r"test_packaging\.py|test_storage\.py::"
    rf"(\w+(?:gone|thousand)\w+\[|.*?\[.*?({'|'.join(servers.STORES)}))"
)
"""What tests have in their names that go to one worker: they share an expensive fixture of their module, or are each
more than enough for one server."""

LONG = re.compile(r"test_(stores|model|fill|readme|prune|suite)\.py::")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests whose parameter is a server's name, and begin with what takes longest.

    Keystone takes ten seconds of CPU time to start, and all it changes is where Swift's tokens come from.
    """
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        stores = NETWORK.intersection(value for value in parameters if isinstance(value, str))
        fixtures = set(getattr(item, "fixturenames", ()))
        if stores or "carbon" in fixtures:
            item.add_marker(pytest.mark.servers)
        if any(store.startswith("swift-v3") for store in stores):
            item.add_marker(pytest.mark.soak)
    items.sort(key=place)


def place(item: pytest.Item) -> int:
    """Where a test stands: first those that wait for a minute, then the rest of SHARING, and other long ones."""
    if "vain_calls" in getattr(item, "fixturenames", ()):
        return 0
    return 1 if SHARING.search(item.nodeid) else 2 if LONG.search(item.nodeid) else 3


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give a worker test by test, but all of SHARING together.  (xdist's loadgroup does not work with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = SHARING.search(nodeid)
            return (found[2] or found[0]) if found else nodeid

    return Scheduling(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Have `servers` refuse to start any for a test that is not marked; give no fixture more than its time."""
    servers.asked_by = None if item.get_closest_marker("servers") else item.nodeid
    with time_limit():
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Iterator[None]:
    """Give no test more than its time."""
    with time_limit():
        return (yield)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Fail what hangs, after TIME_LIMIT seconds; it must be in the main thread."""

    def fail(*_: object) -> None:
        pytest.fail(f"it took more than {TIME_LIMIT} seconds")

    signal.signal(signal.SIGUSR2, fail)  # the program's own timer uses SIGALRM
    timer = threading.Timer(TIME_LIMIT, signal.pthread_kill, [threading.get_ident(), signal.SIGUSR2])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """What stands for this machine's `/` and home, so that no test reads or writes what its users have there."""
    root = tmp_path.with_name(f"{tmp_path.name}-machine")
    for folder in ("etc", "var/log", "var/lock", "var/tmp", "home", "tmp"):
        (root / folder).mkdir(parents=True)
    for variable in [name for name in os.environ if name.startswith("WHISPER_BACKUP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv(defaults.TEST_ROOT, str(root))
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(root / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it found before
    yield root
    shutil.rmtree(root)


started: list[subprocess.Popen[str]] = []
"""Programs that the running test started, and may have left behind when it failed."""


@pytest.fixture(autouse=True)
def _no_program_outlives_its_test() -> Iterator[None]:
    yield
    for process in started:
        if process.poll() is None:
            process.kill()  # its workers end with it
            process.wait()
    started.clear()


@functools.cache
def the_nursery(*, clients: bool) -> Nursery:
    """One for all tests of this process, and until its end; with the clients of object stores or without."""
    nursery = Nursery(clients=clients)
    atexit.register(nursery.close)
    return nursery


class Program:
    """whisper-backup as its users start it; lock, stamp and log below a folder of the test's own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.lock, self.stamp, self.log, self.state = (home / name for name in ("lock", "stamp", "log", "state"))
        self.prefix, self.store = home / "tree", home / "store"
        self.bucket = ""  # in a store that is no directory
        self.processes = 1  # a process costs more CPU time than most tests have for it to do
        self.environment: dict[str, str] = {}
        self.prefix.mkdir()

    def words(self, command: str, *options: object) -> list[str]:
        """The command line; a driver other than disk is named by `driver=`."""
        processes = ["--processes", self.processes] if command in WORKING else []
        files = ["--lockfile", self.lock, "--stampfile", self.stamp, "--logfile", self.log, "--statefile", self.state]
        words = [
            sys.executable,
            "-m",
            "whisperbackup",
            *files,
            *processes,
            "-p",
            self.prefix,
            "-b",
            self.bucket or self.store,
            command,
        ]
        return [str(word) for word in [*words, *(options or ["disk"])]]

    def start(self, command: str, *options: object, **settings: object) -> subprocess.Popen[str]:
        """The program, running: it hears signals as from a terminal, and ends with the test if not before."""
        return self.start_words(self.words(command, *options), **settings)

    def start_words(self, words: list[str], **settings: object) -> subprocess.Popen[str]:
        """The same with a command line that need not begin with the program."""
        prepare = settings.pop("preexec_fn", None)
        assert prepare is None or callable(prepare)

        def begin() -> None:
            servers.die_with_parent()
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)  # they are ignored in whatever runs in the background
            if prepare:
                prepare()

        settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **settings}
        settings["env"] = {**os.environ, **self.environment}
        started.append(subprocess.Popen(words, preexec_fn=begin, **settings))  # type: ignore[call-overload]
        return started[-1]

    def ran(self, command: str, *options: object) -> subprocess.CompletedProcess[str]:
        """Run to the end."""
        words = self.words(command, *options)
        environment = {**os.environ, **self.environment}
        nursery = the_nursery(clients=not {"gcs", "s3", "swift"}.isdisjoint(words))
        if nursery.suits(environment):
            return nursery.run(words[3:], environment, TIME_LIMIT)
        return subprocess.run(
            words, env=environment, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT
        )

    def __call__(self, command: str, *options: object, status: int = 0) -> str:
        """Run to the end, expect the exit `status`; stdout and stderr together."""
        done = self.ran(command, *options)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    def write(self, metric: str, number: int = 0) -> Path:
        """A new whisper file, with points up to now, by the whisper library itself."""
        path = self.prefix / (metric.replace(".", "/") + ".wsp")
        path.parent.mkdir(parents=True, exist_ok=True)
        whisper.create(str(path), SCHEMAS[number % len(SCHEMAS)], xFilesFactor=0.0)
        now = int(time.time())
        whisper.update_many(str(path), [(now - 60 * age, float(number * 1000 + age)) for age in range(50)])
        return path

    def objects(self) -> dict[str, bytes]:
        """Everything in the directory store but the records of runs, which every run adds to."""
        paths = [path for path in sorted(self.store.rglob("*")) if path.is_file() and path.name != MARKER]
        paths = [path for path in paths if path.parent.name != ".runs"]
        return {str(path.relative_to(self.store)): path.read_bytes() for path in paths}

    def stamps(self, metric: str) -> list[str]:
        """The stamps of a metric's complete backups, the oldest first."""
        folder = self.store / metric
        payloads = {p.name.partition(".wsp.")[0] for p in folder.glob("*.wsp.*")}
        return sorted(p.name.removesuffix(".sha1") for p in folder.glob("*.sha1") if p.name[:-5] in payloads)


@pytest.fixture
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Program:
    """The program with a tree and a store of its own; with several workers where a module's PROCESSES says so."""
    program = Program(tmp_path)
    program.processes = getattr(request.module, "PROCESSES", program.processes)
    return program


def add_point(path: Path, value: float = 1.0) -> None:
    """One newer point, as carbon would write it."""
    whisper.update(str(path), value, int(time.time()))


def contents(prefix: Path) -> dict[str, str]:
    """SHA-1 of every file below `prefix`."""
    return {
        str(p.relative_to(prefix)): hashlib.sha1(p.read_bytes()).hexdigest() for p in prefix.rglob("*") if p.is_file()
    }


def wait_for(claim: Callable[[], object], seconds: float = 90.0) -> None:
    """Wait until `claim` is true; fails the test after `seconds`, many of them, since the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def children(pid: int) -> Iterator[int]:
    """The processes whose parent is `pid`."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            yield int(stat.parent.name)


def unprivileged() -> list[str]:
    """A command's prefix under which root, too, may do only what permission bits allow."""
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []


def install_driver(program: Program, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Make `source`, a module with an `open`, the third party's driver `shelf`."""
    package = program.home / "site"
    (package / "shelf-1.dist-info").mkdir(parents=True)
    (package / "shelf-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: shelf\nVersion: 1\n")
    (package / "shelf-1.dist-info/entry_points.txt").write_text("[whisperbackup.storage]\nshelf = shelf:open\n")
    (package / "shelf.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(package) + os.pathsep + os.environ.get("PYTHONPATH", ""))

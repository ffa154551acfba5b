"""Runs killed with SIGKILL at any moment, over and over: what is complete stays whole, the next run mends the rest.

`EFFORT=10 pytest -s tests/test_crash.py` for many more, and for a word on what the kills hit.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import functools
import gzip
import hashlib
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
import whisper
from conftest import Program, budget, children, contents, wait_for
from test_storage import open_store
from test_stores import connect

from whisperbackup.storage.base import Driver

CRASHES = budget(30)
KEEP = 2
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
KEY = re.compile(rf"nodes/one/([^/]+)/({STAMP})\.(wsp\.gz|sha1|missing)")
TEMPORARY = re.compile(rf"nodes/one/[^/]+/\.whisper-backup-{STAMP}-[0-9a-f]{{16}}")
STEP, SLOTS = 86400, 60  # days, so that the clock moves no window while the test runs
HEADER = struct.pack(">2LfL3L", 1, STEP * SLOTS, 0.0, 1, 28, STEP, SLOTS)

Complete = dict[str, list[tuple[str, bytes]]]


class World:
    """A tree that changes, its store, and every content that each metric ever had when a run began."""

    def __init__(self, program: Program, store: servers.Store, seed: int) -> None:
        self.program, self.store = program, store
        connect(program, store)
        self.chance = random.Random(seed)
        self.scratch = program.home / "tmp"
        self.scratch.mkdir()
        program.environment |= {"TMPDIR": str(self.scratch)}
        (program.home / "sibling").mkdir()
        (program.home / "sibling/theirs.wsp").write_bytes(b"theirs")
        self.is_disk = store.driver == "disk"
        processes = "2" if self.is_disk else "1"  # every client that is made takes half a second
        self.options = [*store.arguments, "--storage-path", "nodes/one", "-f", processes, "-r", str(KEEP), "-q"]
        self.history: dict[str, list[bytes]] = collections.defaultdict(list)
        self.safe: dict[str, int] = {}  # what the last run that was not killed left: index into the history
        self.objects: dict[str, bytes] = {}  # of the store, as last looked at
        self.lengths: dict[str, tuple[float, float]] = {}  # seconds: of a whole run, and up to its lock
        self.hits: collections.Counter[str] = collections.Counter()
        self.names = [f"{'' if n % 9 else 'deep.er.'}web{n % 4}.m{n}" for n in range(40)]
        for name in self.names[:30]:
            self.write(name)

    # -- the tree ------------------------------------------------------------------------------------

    def path(self, metric: str, prefix: Path | None = None) -> Path:
        return (prefix or self.program.prefix) / (metric.replace(".", "/") + ".wsp")

    def write(self, metric: str) -> None:
        """A new file of noise, all of one size: so that retention never takes one for the history."""
        today = int(time.time()) // STEP
        points = [(today - SLOTS + 1 + slot, self.chance.random()) for slot in range(SLOTS)]
        self.path(metric).parent.mkdir(parents=True, exist_ok=True)
        self.path(metric).write_bytes(HEADER + b"".join(struct.pack(">Ld", day * STEP, value) for day, value in points))

    def tree(self) -> dict[str, bytes]:
        return {name: self.path(name).read_bytes() for name in self.names if self.path(name).exists()}

    def change(self) -> None:
        """What happens between two runs: points, and files that come, go, are replaced, move."""
        here = [name for name in self.names if self.path(name).exists()]
        gone = [name for name in self.names if name not in here]
        self.chance.shuffle(here)
        for name in here[:12]:
            with self.path(name).open("r+b") as file:
                file.seek(28 + 12 * self.chance.randrange(SLOTS) + 4)
                file.write(struct.pack(">d", self.chance.random()))
        replaced = self.path(here[12])
        times = (replaced.stat().st_atime_ns, replaced.stat().st_mtime_ns)
        self.write(here[12])
        os.utime(replaced, ns=times)  # size and mtime say nothing
        for name in self.chance.sample(gone, min(3, len(gone))):
            self.write(name)
        for name in here[13:16]:
            self.path(name).unlink()
        free = [name for name in self.names if not self.path(name).exists()]
        target = self.path(self.chance.choice(free))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path(here[16]).rename(target)

    def note(self) -> dict[str, bytes]:
        """Remember what each metric holds now; no content comes twice in a metric."""
        now = self.tree()
        for name, content in now.items():
            if content not in self.history[name]:
                self.history[name].append(content)
        return now

    # -- the store -----------------------------------------------------------------------------------

    @functools.cached_property
    def driver(self) -> Driver:
        return open_store(self.store, self.program.bucket or str(self.program.store))

    def look(self) -> None:
        """See what is in the store; nothing may be in it that is not in its place, and no object ever changes."""
        listed = [one for one in self.driver.list("") if not one.key.startswith("nodes/one/.runs/")]
        assert all(KEY.fullmatch(one.key) or TEMPORARY.fullmatch(one.key) for one in listed), listed
        for one in listed:
            assert one.size == len(self.objects.get(one.key, bytes(one.size))), one.key
        self.objects = {one.key: self.objects.get(one.key) or self.driver.get(one.key) for one in listed}
        # The mark comes last and goes first: also a store whose writes are not atomic never shows half a backup.
        marks = {key.removesuffix(".sha1") for key in self.objects if key.endswith(".sha1")}
        assert all(f"{mark}.wsp.gz" in self.objects for mark in marks)

    def complete(self) -> Complete:
        """The complete backups, the oldest first; each holds what its metric once held, and its mark says so."""
        found: Complete = collections.defaultdict(list)
        objects = self.objects
        for key in sorted(objects):
            match = KEY.fullmatch(key)
            if match is None or match[3] != "wsp.gz" or key.replace(".wsp.gz", ".sha1") not in objects:
                continue
            content = gzip.decompress(objects[key])
            assert objects[key.replace(".wsp.gz", ".sha1")].decode() == hashlib.sha1(content).hexdigest(), key
            assert content in self.history[match[1]], f"{key} is nothing that the metric ever held"
            found[match[1]].append((match[2], content))
        return found

    # -- runs ----------------------------------------------------------------------------------------

    def words(self, command: str, *options: object) -> list[str]:
        return self.program.words(command, self.store.driver, *self.options, *options)

    def run(self, command: str, *options: object) -> tuple[int, str]:
        """A run to its end: its status and what it said, and how long it took."""
        began = time.monotonic()
        with self.begin(command, *options) as run:
            self.wait_for_lock(run)
            locked = time.monotonic()
            said, _ = run.communicate(timeout=120)
        self.lengths[command] = (time.monotonic() - began, locked - began)
        assert "Traceback" not in said
        return run.returncode, said

    @contextlib.contextmanager
    def begin(self, command: str, *options: object) -> Iterator[subprocess.Popen[str]]:
        """A run in a process group of its own; when it is over, nobody of it may be left, and the lock is free."""
        mark = f"CRASH_TEST_OF_WHISPER_BACKUP={uuid.uuid4().hex}"
        environment = {**os.environ, **self.program.environment, **dict([mark.split("=")])}
        run = subprocess.Popen(
            self.words(command, *options),
            env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.communicate()
        wait_for(lambda: not processes(mark))
        with self.program.lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Python tries out the folder for temporary files with one of four bytes, and may be killed right there.
        assert all(path.stat().st_size <= 4 for path in self.scratch.iterdir())

    def wait_for_lock(self, run: subprocess.Popen[str]) -> None:
        with contextlib.suppress(FileNotFoundError):
            while run.poll() is None and f"process {run.pid} since" not in self.program.lock.read_text():
                time.sleep(0.002)

    def wait_for_server(self) -> None:
        """A service may still carry out what a killed client asked for."""
        keys: list[str] | None = None
        while keys != (keys := [one.key for one in self.driver.list("")]):
            time.sleep(0.3)

    def crash(self, command: str, *options: object) -> bool:
        """A run that is killed at some moment, whole or in part; whether it was still running then."""
        whole, locked = self.lengths[command]
        with self.begin(command, *options) as run:
            if self.chance.random() < 0.2:
                time.sleep(self.chance.uniform(0, locked))
            else:
                self.wait_for_lock(run)
                # what comes between lock and work is making clients
                early = 0 if self.chance.random() < 0.3 else 0.2 if self.is_disk else 0.6
                time.sleep(self.chance.uniform(early, 1) * (whole - locked))
            victim = self.chance.choice(["group", "parent", "worker"])
            workers = list(children(run.pid))
            was_running = run.poll() is None
            if was_running and victim == "group":
                os.killpg(run.pid, signal.SIGKILL)
            elif was_running and victim == "worker" and workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.chance.choice(workers), signal.SIGKILL)
            else:
                run.kill()
            said, _ = run.communicate(timeout=60)
        assert run.returncode in (-signal.SIGKILL, 0, 1, 3), said
        assert "Traceback" not in said
        if not self.is_disk:
            self.wait_for_server()
        self.hits[f"{victim} of {command}"] += was_running
        return was_running


def processes(mark: str) -> list[str]:
    """The processes that have `mark` in the environment they were started with."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes().split(b"\0"):
                found.append(environment.parent.name)
    return found


def restored(world: World) -> dict[str, bytes]:
    """What the whole store brings into an empty folder."""
    target = world.program.home / "restored"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    status, said = world.run("restore", "-p", target)
    failures = [line for line in said.splitlines() if line.startswith("ERROR") and "restore incomplete" not in line]
    assert status == (3 if failures else 0), said
    assert all("only debris of an interrupted run" in line for line in failures), said
    return {
        str(path.relative_to(target)).removesuffix(".wsp").replace("/", "."): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }


def check_after_crash(world: World, days: int) -> None:
    before = world.objects
    world.look()
    objects, complete = world.objects, world.complete()
    if days == 0:
        purged = {name for name in world.safe.keys() - complete.keys() if not world.path(name).exists()}
        world.safe = {name: index for name, index in world.safe.items() if name not in purged}
    for name, index in world.safe.items():
        assert name in complete, f"{name} lost its last backup"
        newest = world.history[name].index(complete[name][-1][1])
        assert newest >= index, f"{name} lost what a successful run had stored"
    assert restored(world) == {name: backups[-1][1] for name, backups in complete.items()}
    new, lost = objects.keys() - before.keys(), before.keys() - objects.keys()
    marks = {key.removesuffix(".sha1") for key in new if key.endswith(".sha1")}
    payloads = {key.removesuffix(".wsp.gz") for key in new if key.endswith(".wsp.gz")}
    unmarked = {key.removesuffix(".sha1") + ".wsp.gz" for key in lost if key.endswith(".sha1")}
    world.hits["after some backups"] += bool(marks)
    world.hits["between payload and mark"] += bool(payloads - marks)
    world.hits["amid a write"] += any("/.whisper-backup-" in key for key in new)
    world.hits["after some deletions"] += bool(lost)
    world.hits["between two keys of a deletion"] += bool(unmarked & objects.keys())
    world.hits["without a trace"] += not (new or lost)


def check_after_success(world: World, days: int) -> None:
    before = world.complete()
    world.look()
    tree, complete = world.tree(), world.complete()
    for name, content in tree.items():
        known = [held for _, held in before.get(name, [])]
        expected = known if known[-1:] == [content] else [*known, content]
        assert [held for _, held in complete[name]] == expected[-KEEP:]  # debris counts for nothing
    gone = complete.keys() - tree.keys()
    assert days == 45 or not gone
    assert all(complete[name] == before[name] for name in gone)
    tombstones = {match[1] for key in world.objects if (match := KEY.fullmatch(key)) and match[3] == "missing"}
    assert gone <= tombstones  # one may be left of a metric that is purged else, or of which there is but debris
    assert not tombstones & tree.keys()
    world.safe = {name: world.history[name].index(backups[-1][1]) for name, backups in complete.items()}


def crash_a_backup(world: World) -> bool:
    days = world.chance.choice([0, 45])
    command = world.chance.choice(["backup", "backup", "backup", "purge"])
    world.change()
    tree = world.note()
    world.program.stamp.unlink(missing_ok=True)
    was_running = world.crash(command, "-x", days)
    check_after_crash(world, days)
    if world.chance.random() < 0.7:  # else the next one dies, too
        status, said = world.run("backup", "-x", days)
        assert status == 0, said
        assert world.program.stamp.exists()
        check_after_success(world, days)
    assert world.tree() == tree
    return was_running


def crash_a_restore(world: World) -> bool:
    """Into a live tree that has lost files, and points here and there."""
    live = world.program.home / "live"
    shutil.rmtree(live, ignore_errors=True)
    shutil.copytree(world.program.prefix, live)
    held: dict[Path, set[bytes]] = {}
    for path in sorted(live.rglob("*.wsp")):
        if world.chance.random() < 0.5:
            path.unlink()
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            continue
        content = bytearray(path.read_bytes())
        for slot in world.chance.sample(range(1, SLOTS), 20):
            content[28 + 12 * slot : 40 + 12 * slot] = bytes(12)
        path.write_bytes(content)
        held[path] = records(content)
    was_running = world.crash("restore", "-p", live)
    for path in live.rglob("*.wsp"):
        assert whisper.info(str(path))["archives"], path
        assert path.stat().st_size == len(HEADER) + 12 * SLOTS
        assert held.get(path, set()) <= records(path.read_bytes())
    others = {path.name for path in live.rglob("*") if not path.is_dir() and path.suffix != ".wsp"}
    assert all(re.fullmatch(r"\.whisper-restore-[0-9a-f]{16}", name) for name in others)
    world.hits["with a temporary file left"] += bool(others)
    status, said = world.run("restore", "-p", live)
    assert status in (0, 3), said
    assert not list(live.rglob(".whisper-restore-*"))
    for name, backups in world.complete().items():
        path = world.path(name, live)
        assert records(path.read_bytes()) == held.get(path, set()) | {
            record for record in records(backups[-1][1]) if record[:4] not in {r[:4] for r in held.get(path, set())}
        }
    return was_running


def records(content: bytes | bytearray) -> set[bytes]:
    """The points that a file holds, as they stand in it."""
    found = (bytes(content[at : at + 12]) for at in range(len(HEADER), len(content), 12))
    return {record for record in found if record != bytes(12)}


def test_what_a_killed_restore_left_on_the_way_to_a_file_goes_with_the_next_one(program: Program) -> None:
    """It makes each missing folder under another name first; no file need ever lie beside that."""
    program.write("a.b.c.d")
    program("backup")
    left = [program.prefix / f"{folder}.whisper-restore-{1:016x}" for folder in ("", "a/", "a/b/", "a/b/c/")]
    for path in left:
        path.mkdir()
    program("restore", "disk", "-n")
    assert all(path.exists() for path in left)
    program("restore")
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize(("kind", "share"), [("disk", 2 / 3), ("s3-rclone", 1 / 3)])
@pytest.mark.soak
def test_a_run_killed_at_any_moment_costs_nothing_that_was_complete(program: Program, kind: str, share: float) -> None:
    seed = int(os.environ.get("SEED", "0")) or random.randrange(1 << 30)
    print(f"SEED={seed}")
    world = World(program, servers.store(kind), seed)
    for options in (["-x", 0], ["-x", 45]):
        tree = world.note()
        assert world.run("backup", *options)[0] == 0
        check_after_success(world, 45)
    assert world.run("purge", "-x", 0)[0] == 0
    assert restored(world) == tree
    around = contents(program.home / "sibling")
    interrupted = 0
    for _ in range(round(CRASHES * share)):
        crash = crash_a_restore if world.chance.random() < 0.2 else crash_a_backup
        interrupted += crash(world)
        assert contents(program.home / "sibling") == around
        known = {"lock", "log", "stamp", "state", "tree", "store", "tmp", "sibling", "restored", "live"}
        beside = {path.name for path in program.home.iterdir()} - known
        assert all(name.startswith(".state.") for name in beside), beside  # half a state file; swept after a day
        world.hits["amid the writing of the state file"] = len(beside)
    wait_for(lambda: shown(world) == stamps(world))  # the store may still be at a request of a run that was killed
    print(f"{interrupted} of {round(CRASHES * share)} runs killed at work: {dict(world.hits)}")
    assert interrupted > CRASHES * share / 3


def shown(world: World) -> dict[str, list[str]]:
    """The stamps of each metric's complete backups, as list shows them."""
    said = world.program("list", world.store.driver, *world.options, "--json")
    listed = [json.loads(line) for line in said.splitlines()]
    return {line["metric"]: [backup["stamp"] for backup in line["backups"]] for line in listed if line["backups"]}


def stamps(world: World) -> dict[str, list[str]]:
    """The same, as they are in the store."""
    world.look()
    return {name: [stamp for stamp, _ in backups] for name, backups in world.complete().items()}

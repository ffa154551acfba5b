"""What increments cost: CPU and bytes a metric to write one, metrics a second to read a day of them back.

    python benchmarks/increments.py command [--metrics 200000] [--rounds 5] [--scratch DIR]
    python benchmarks/increments.py restore [--metrics 2000] [--rounds 5] [--scratch DIR]
    python benchmarks/increments.py nightly [--scratch DIR]
    python benchmarks/increments.py [--metrics 20000] [--rounds 5] [--read 6000] [--scratch DIR]

Every file has noise of its own, a day of points, several archives; its slots of the window are in the page cache.
An increment has all files, an hour and the default lag.  `command` runs the command itself: CPU of all processes, with
their start and the walk, the parent's peak, bytes stored; then once what it reads from the disk if the page cache has
nothing.  `restore`: a whole tree and one metric, with 24 increments and without, from a directory; one metric from S3
at a distance of 30 ms.  `nightly`: every file of a tree advances by a day, and each tool stores it; restic and borg are
used where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import os
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from whispertree import RECORD, series

from whisperbackup.commands.increment import FILES_IN_BATCH
from whisperbackup.increments import batch, image, manifest, merge, part, reader, record
from whisperbackup.increments.order import Sorted
from whisperbackup.increments.plan import plan_of
from whisperbackup.increments.take import take
from whisperbackup.repository.stamps import stamp_at
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, walk
from whisperbackup.whisper.format import header_size, parse_header
from whisperbackup.whisper.throttle import Throttle

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import servers  # the tests'

LAYOUTS = (
    ((30, 2880), (300, 2016), (3600, 720)),
    ((60, 10080), (120, 8640), (300, 5256)),
    ((30, 2880), (120, 2880), (600, 2880)),
)
FULL = ((60, 43200), (300, 20160), (3600, 6480))  # 838 kB, of which a day changes 2.5 %
LAG, HOUR = 900, 3600


def whisper_file(
    chance: np.random.Generator, layout: tuple[tuple[int, int], ...], now: int, held: int = 86400
) -> bytes:
    """A file with `held` seconds of points, each archive a series of its own."""
    header = struct.pack(">2LfL", 1, max(step * points for step, points in layout), 0.5, len(layout))
    offset = 16 + 12 * len(layout)
    body = b""
    for step, points in layout:
        header += struct.pack(">3L", offset, step, points)
        offset += 12 * points
        filled = min(points, held // step)
        times = now - now % step - step * np.arange(filled)[::-1]
        ring = np.zeros(points, RECORD)
        slots = (np.arange(filled) + int(chance.integers(points))) % points
        ring["t"][slots] = times
        ring["v"][slots] = series(chance, times)
        if not ring["t"][0]:
            ring["t"][0] = times[0] - slots[0] * step  # of an older lap
        body += ring.tobytes()
    return header + body


def write_sparse(path: Path, content: bytes) -> None:
    """A file with holes where there are only zeros: a ring that is not full yet."""
    with path.open("wb") as file:
        for at in range(0, len(content), 4096):
            piece = content[at : at + 4096]
            if piece.count(0) < len(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))


def make_tree(
    root: Path, metrics: int, now: int, layouts: tuple[tuple[tuple[int, int], ...], ...] = LAYOUTS, held: int = 86400
) -> None:
    """The files, in folders of fifty."""
    chance = np.random.default_rng(1)
    for number in range(metrics):
        folder = root / f"servers/web{number // 50:05}/plugin"
        if number % 50 == 0:
            folder.mkdir(parents=True)
        path = folder / f"metric-{number % 50:02}.wsp"
        write_sparse(path, whisper_file(chance, layouts[number % len(layouts)], now, held))
        os.utime(path, (now, now))


class Written(NamedTuple):
    """An increment: its manifest, its parts, seconds of CPU that it took."""

    made: manifest.Manifest
    store: dict[str, bytes]
    cpu: float

    def fetch(self, name: str, offset: int, size: int) -> bytes:
        """A range of a part."""
        return self.store[name][offset : offset + size]


def frames(root: Path, since: int, until: int) -> Iterator[part.PackedFrame]:
    """Walk, and read batches of files, as the command does in its processes."""
    throttle = Throttle()
    limits = batch.Limits(since, until - int(time.time()), {})
    files = (
        (found.key, found.path) for found in walk(os.fsencode(root), select(["*"])) if isinstance(found, LocalFile)
    )
    while chunk := tuple(itertools.islice(files, FILES_IN_BATCH)):
        taken = take(batch.Batch(0, chunk, limits, 0), throttle)
        assert not taken.failed, taken.failed
        yield from taken.frames


def write(root: Path, since: int, until: int) -> Written:
    """One increment, in memory."""
    began = time.process_time()
    parts = list(part.parts_of(frames(root, since, until)))
    cpu = time.process_time() - began
    listed = tuple([each for each, _ in parts])
    count = sum(frame.records for each in listed for frame in each.frames)
    values = {"stamp": "", "node": "", "prefix": "", "begin": 0, "end": 0, "since": since, "lag": LAG}
    made = manifest.Manifest(**values, files=count, records=count, parts=listed)  # type: ignore[arg-type]
    return Written(made, {each.name: content for each, content in parts}, cpu)


# The command


# No file of a tree that was just made is taken whole: on a node of that age hardly one would be.
NOTHING_WHOLE = "import sys; from whisperbackup.commands import increment; increment.MAX_WHOLE = 0; "
PLAIN = "import sys; "
RUN = "from whisperbackup.main import run; run()"


class Measured(NamedTuple):
    """A run of the command: seconds of CPU of all its processes, and in all; its parent's peak in MB; bytes read."""

    cpu: float
    seconds: float
    peak: float
    read: int


def run_command(*words: object, before: str = PLAIN, environment: dict[str, str] | None = None) -> Measured:
    """Run whisper-backup to its end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    options = ["--nolog", "--nolock", "--nostamp", "--nostate", "-q"]
    command = [sys.executable, "-c", before + RUN, *options, *[str(word) for word in words]]
    run = subprocess.Popen(command, env={**os.environ, **(environment or {})})
    peak = 0
    while run.poll() is None:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{run.pid}/status").read_text().splitlines()
            peak = max([peak, *[int(line.split()[1]) for line in lines if line.startswith("VmHWM")]])
        time.sleep(0.02)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0
    cpu = after.ru_utime - used.ru_utime + after.ru_stime - used.ru_stime
    return Measured(cpu, time.monotonic() - began, peak / 1000, 512 * (after.ru_inblock - used.ru_inblock))


def pages_of_window(path: Path, since: int, until: int) -> set[int]:
    """The pages of a file with its header, the stamps of slots 0, and the slots of the window."""
    with path.open("rb") as file:
        content = file.read(1024)
        plan = plan_of(content[: header_size(content)], since, until)
        pages = {0}
        for each in plan.stretches:
            file.seek(each.offset)
            base = int.from_bytes(file.read(4), "big")
            begin = (each.first - base) // each.step % each.points
            slots = {(begin + number) % each.points for number in range(each.slots)}
            pages |= {each.offset // 4096}
            pages |= {(each.offset + 12 * slot + byte) // 4096 for slot in slots for byte in (0, 11)}
    return pages


def touch(paths: list[Path], since: int, until: int) -> None:
    """Have the page cache hold what a window needs: on a live node carbon has just used these pages."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for page in pages_of_window(path, since, until):
                os.pread(file.fileno(), 1, 4096 * page)


def command(metrics: int, rounds: int, scratch: Path | None) -> None:
    """Print what the command costs; the record of a run an hour ago stands for a backup."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        root, store = Path(folder) / "tree", Path(folder) / "store"
        now = int(time.time())
        make_tree(root, metrics, now)
        paths = sorted(root.rglob("*.wsp"))
        begin = now - HOUR
        stamp = stamp_at(begin)
        values = {"stamp": stamp, "node": os.uname().nodename, "prefix": str(root), "begin": begin, "end": begin}
        run = manifest.Run(**values, files=1, status=0, is_complete=True)  # type: ignore[arg-type]

        def measure() -> Measured:
            shutil.rmtree(store, ignore_errors=True)
            (store / ".runs").mkdir(parents=True)
            (store / f".runs/{stamp}.json").write_bytes(run.to_json())
            words = ["-p", root, "-b", store, "--lag", LAG, "increment", "disk"]
            return run_command(*words, before=NOTHING_WHOLE)

        measured = []
        for _ in range(rounds):
            touch(paths, begin - LAG, int(time.time()) + LAG + 60)
            measured.append(measure())
        (stored,) = (store / ".increments").iterdir()
        made = manifest.read_manifest((stored / "manifest.json").read_bytes())
        assert made.records == metrics, made.records
        size = sum(path.stat().st_size for path in stored.iterdir())
        os.sync()
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        until = int(time.time()) + LAG
        needed = sum(len(pages_of_window(path, begin - LAG, until)) for path in paths[:1000])
        for path in paths[:1000]:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cold = measure()
        shown = [
            f"{metrics:,} metrics, {made.points / metrics:.0f} points each, {len(made.parts)} parts",
            f"CPU: {_median([one.cpu for one in measured], 1e6 / metrics)} us a metric, target 45",
            f"in all: {_median([one.seconds for one in measured], 1)} s",
            f"stored: {size / metrics:.0f} bytes a metric, target 650",
            f"the parent's peak: {_median([one.peak for one in measured], 1)} MB, target 60",
            f"cold: {cold.read / metrics / 4096:.2f} pages read a metric, {cold.cpu * 1e6 / metrics:.0f} us of CPU; "
            f"header, slots 0 and the window are {needed / min(metrics, 1000):.2f} pages, holes included",
        ]
        print("\n".join(shown))


def _median(values: list[float], factor: float) -> str:
    return f"{statistics.median(values) * factor:.1f} ({min(values) * factor:.1f}-{max(values) * factor:.1f})"


# Restoring


def restore(metrics: int, rounds: int, scratch: Path | None) -> None:
    """Print what restores cost with a backup alone, and with a day of increments."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        root, store, target = Path(folder) / "tree", Path(folder) / "store", Path(folder) / "target"
        now = int(time.time())
        make_tree(root, metrics, now, (FULL,), 10**9)
        run_command("-p", root, "-b", store, "backup", "disk")
        (path,) = (store / ".runs").iterdir()
        run = manifest.read_run(path.read_bytes())
        for hours in range(24, 0, -1):
            begin = run.end + 60 * (25 - hours)
            written = write(root, now - hours * HOUR - LAG, now - (hours - 1) * HOUR)
            made = replace(
                written.made, stamp=stamp_at(begin), node=run.node, prefix=run.prefix,
                begin=begin, end=begin + 30, after_run=run.stamp,
            )  # fmt: skip
            for name, content in {**written.store, manifest.MANIFEST: made.to_json()}.items():
                to = store / manifest.increment_key(made.stamp, name)
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(content)
        one = "servers.web00000.plugin.metric-07"
        service = servers.store("s3-rclone")
        driver = importlib.import_module("test_storage").open_store(service, "bench-increments", create=True)
        for each in sorted(store.rglob("*")):
            if each.is_file() and not each.name.startswith(".whisper"):
                driver.put(each.relative_to(store).as_posix(), each.read_bytes())
        driver.close()
        with servers.TroubleProxy(service.port) as proxy:
            proxy.delay = 0.03
            far = service.through(proxy.port)
            plans: dict[str, tuple[list[object], dict[str, str]]] = {
                "whole tree, directory": (["-b", store, "restore", "disk"], {}),
                "one metric, directory": (["-b", store, "-m", one, "restore", "disk"], {}),
                "one metric, S3 30 ms away": (
                    ["-b", "bench-increments", "-m", one, "restore", far.driver, *far.arguments],
                    {**far.environment, "AWS_EC2_METADATA_DISABLED": "true"},
                ),
            }
            for name, (words, environment) in plans.items():
                taken: dict[str, list[Measured]] = {"without": [], "24 increments": []}
                for _ in range(rounds):
                    for kind, found in taken.items():
                        shutil.rmtree(target, ignore_errors=True)
                        target.mkdir()
                        extra = ["--no-increments"] if kind == "without" else []
                        found.append(run_command("-p", target, *extra, *words, environment=environment))
                for kind, found in taken.items():
                    seconds = _median([each.seconds for each in found], 1)
                    print(f"{name}, {kind}: {seconds} s, CPU {_median([each.cpu for each in found], 1)} s")


# A night


def advance(root: Path, begin: int, chance: np.random.Generator) -> None:
    """A day of points for every file, from `begin` on, where whisper would put them."""
    for path in sorted(root.rglob("*.wsp")):
        content = bytearray(path.read_bytes())
        for offset, step, points in parse_header(bytes(content[: header_size(content)])).archives:
            ring = np.frombuffer(content, RECORD, points, offset)
            base = int(ring["t"][0])
            times = np.arange(begin - begin % step + step, begin + 86400, step)[-points:]
            slots = (times - base) // step % points
            ring["t"][slots], ring["v"][slots] = times, series(chance, times)
        path.write_bytes(content)


def size_of(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def nightly(files: int, scratch: Path | None) -> None:
    """Print what each tool stores of a tree of full files that advanced by a day; an increment, and 24 of them."""
    day = 86400
    chance = np.random.default_rng(7)
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        root, store = folder / "tree", folder / "store"
        now = int(time.time()) - day
        for number in range(files):
            path = root / f"servers/web{number // 20:03}/metric-{number % 20:02}.wsp"
            path.parent.mkdir(parents=True, exist_ok=True)
            full = whisper_file(chance, FULL, now, 10**9)
            path.write_bytes(full)
        print(f"{files} files, {size_of(root) / 1e6:.0f} MB, all full and advanced by a day; MB stored of that night")
        (folder / "repository").mkdir()
        environment = {**os.environ, "RESTIC_PASSWORD": "x", "BORG_BASE_DIR": str(folder / "borg-home")}
        plans = {
            "restic": [["restic", "init", "-q", "-r", "@"], ["restic", "backup", "-q", "-r", "@", str(root)]],
            "borg": [["borg", "init", "-e", "none", "@"], ["borg", "create", "-C", "lz4", "@::{now}", str(root)]],
            "borg, fixed,4096": [
                ["borg", "init", "-e", "none", "@"],
                ["borg", "create", "-C", "zstd,3", "--chunker-params", "fixed,4096", "@::{now}", str(root)],
            ],
        }
        plans = {tool: plan for tool, plan in plans.items() if shutil.which(plan[0][0])}

        def peer(tool: str, step: int) -> None:
            target = str(folder / "repository" / tool.replace(",", "").replace(" ", "-"))
            words = [word.replace("@", target) for word in plans[tool][step]]
            subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)

        run_command("-p", root, "-b", store, "backup", "disk")
        for tool in plans:
            peer(tool, 0)
            peer(tool, 1)
        before = {tool: size_of(folder / "repository" / tool.replace(",", "").replace(" ", "-")) for tool in plans}
        (record_path,) = (store / ".runs").iterdir()
        values = json.loads(record_path.read_bytes())
        values |= {"begin": int(time.time()) - 1, "boot": ""}  # as in `command`: the lag has the day
        record_path.write_text(json.dumps(values))
        advance(root, now, chance)
        run_command("-p", root, "-b", store, "--lag", day, "increment", "disk")
        own = size_of(store)
        rows = {"whisper-backup increment, one for the day": size_of(store / ".increments")}
        run_command("-p", root, "-b", store, "backup", "disk")
        rows["whisper-backup backup"] = size_of(store) - own
        for tool in plans:
            peer(tool, 1)
            rows[tool] = size_of(folder / "repository" / tool.replace(",", "").replace(" ", "-")) - before[tool]
        for tool, size in rows.items():
            print(f"| {tool} | {size / 1e6:.1f} |")


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--metrics", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--read", type=int, default=6_000, help="metrics in each of the 24 increments that are read back"
    )
    options.add_argument("--scratch", type=Path)
    options.add_argument("what", nargs="?", choices=["core", "command", "restore", "nightly"], default="core")
    given = options.parse_args()
    if given.what == "command":
        command(given.metrics, given.rounds, given.scratch)
        return
    if given.what == "restore":
        restore(min(given.metrics, 2000), given.rounds, given.scratch)
        return
    if given.what == "nightly":
        nightly(600, given.scratch)
        return
    now = int(time.time())
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        root = Path(folder) / "tree"
        make_tree(root, given.metrics, now)
        since, until = now - HOUR - LAG, now + LAG
        runs = [write(root, since, until) for _ in range(given.rounds)]
        size = sum(len(content) for content in runs[0].store.values())
        points = sum(record.decode(one.content).points for one in reader.read(runs[0].made, runs[0].fetch))
        cpu = [run.cpu / given.metrics * 1e6 for run in runs]
        print(f"{given.metrics:,} metrics, {points / given.metrics:.0f} points each, {len(runs[0].store)} parts")
        print(f"write: {statistics.median(cpu):.1f} us of CPU a metric ({min(cpu):.1f}-{max(cpu):.1f}), target 45")
        print(f"write: {size / given.metrics:.0f} bytes a metric, target 650")
        small = Path(folder) / "small"
        make_tree(small, given.read, now)
        day = [write(small, now - hours * HOUR - LAG, now - (hours - 1) * HOUR) for hours in range(24, 0, -1)]
    rates, laid = [], []
    for _ in range(given.rounds):
        began = time.process_time()
        streams = [reader.read(one.made, one.fetch, request=merge.request_size(24)) for one in day]
        metrics = sum(1 for _ in merge.join(streams, reader.stop))
        rates.append(metrics / (time.process_time() - began))
    streams = [reader.read(one.made, one.fetch, request=merge.request_size(24)) for one in day]
    began = time.process_time()
    for number, metric in enumerate(merge.join(streams, reader.stop)):
        image.lay(None, Sorted(tuple(record.decode(share.content) for share in metric.shares)), 2**30)
        if number == 500:
            break
    laid.append((time.process_time() - began) / 501 * 1e6)
    print(f"read 24 increments: {statistics.median(rates):,.0f} metrics a second, target 6,000")
    print(f"read, decode and lay 24 records: {laid[0]:,.0f} us a metric")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB, parts of all increments included")


if __name__ == "__main__":
    main()

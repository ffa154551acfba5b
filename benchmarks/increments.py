"""What increments cost: CPU and bytes a metric to write one, metrics a second to read a day of them back.

    python benchmarks/increments.py [--metrics 20000] [--rounds 5] [--read 6000] [--scratch DIR]

Every file has noise of its own, a day of points, several archives, and is in the page cache.
An increment has all files, an hour and the default lag.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from whispertree import RECORD, series

from whisperbackup.increments import fresh, image, manifest, merge, part, reader, record
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, walk

LAYOUTS = (
    ((30, 2880), (300, 2016), (3600, 720)),
    ((60, 10080), (120, 8640), (300, 5256)),
    ((30, 2880), (120, 2880), (600, 2880)),
)
LAG, HOUR = 900, 3600


def whisper_file(chance: np.random.Generator, layout: tuple[tuple[int, int], ...], now: int) -> bytes:
    """A file with a day of points, each archive a series of its own."""
    header = struct.pack(">2LfL", 1, max(step * points for step, points in layout), 0.5, len(layout))
    offset = 16 + 12 * len(layout)
    body = b""
    for step, points in layout:
        header += struct.pack(">3L", offset, step, points)
        offset += 12 * points
        filled = min(points, 86400 // step)
        times = now - now % step - step * np.arange(filled)[::-1]
        ring = np.zeros(points, RECORD)
        slots = (np.arange(filled) + int(chance.integers(0, points - filled + 1))) % points
        ring["t"][slots] = times
        ring["v"][slots] = series(chance, times)
        if not ring["t"][0]:
            ring["t"][0] = times[0] - slots[0] * step
        body += ring.tobytes()
    return header + body


def make_tree(root: Path, metrics: int, now: int) -> None:
    """The files, in folders of fifty."""
    chance = np.random.default_rng(1)
    for number in range(metrics):
        folder = root / f"servers/web{number // 50:05}/plugin"
        if number % 50 == 0:
            folder.mkdir(parents=True)
        path = folder / f"metric-{number % 50:02}.wsp"
        path.write_bytes(whisper_file(chance, LAYOUTS[number % len(LAYOUTS)], now))
        os.utime(path, (now, now))


class Written(NamedTuple):
    """An increment: its manifest, its parts, seconds of CPU that it took."""

    made: manifest.Manifest
    store: dict[str, bytes]
    cpu: float

    def fetch(self, name: str, offset: int, size: int) -> bytes:
        """A range of a part."""
        return self.store[name][offset : offset + size]


def encoded(root: Path, since: int, until: int) -> Iterator[tuple[str, int, bytes]]:
    """Walk, look at the times, read, encode, as the command is to do it."""
    for found in walk(os.fsencode(root), select(["*"])):
        assert isinstance(found, LocalFile)
        status = os.lstat(found.path)
        if max(status.st_mtime_ns, status.st_ctime_ns) < since * 1_000_000_000:
            continue
        fd = os.open(found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            one = fresh.record_of(found.key, fresh.read_fresh(fd, since, until), False)
        finally:
            os.close(fd)
        yield one.key, one.points, record.encode(one)


def write(root: Path, since: int, until: int) -> Written:
    """One increment, in memory."""
    began = time.process_time()
    parts = list(part.parts_of(part.frames_of(encoded(root, since, until))))
    cpu = time.process_time() - began
    listed = tuple([each for each, _ in parts])
    count = sum(frame.records for each in listed for frame in each.frames)
    values = {"stamp": "", "node": "", "prefix": "", "begin": 0, "end": 0, "since": since, "lag": LAG}
    made = manifest.Manifest(**values, files=count, records=count, parts=listed)  # type: ignore[arg-type]
    return Written(made, {each.name: content for each, content in parts}, cpu)


def main() -> None:
    """Print the figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--metrics", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--read", type=int, default=6_000, help="metrics in each of the 24 increments that are read back"
    )
    options.add_argument("--scratch", type=Path)
    given = options.parse_args()
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
        image.lay(None, [record.decode(share.content) for share in metric.shares], 2**30)
        if number == 500:
            break
    laid.append((time.process_time() - began) / 501 * 1e6)
    print(f"read 24 increments: {statistics.median(rates):,.0f} metrics a second, target 6,000")
    print(f"read, decode and lay 24 records: {laid[0]:,.0f} us a metric")
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB, parts of all increments included")


if __name__ == "__main__":
    main()

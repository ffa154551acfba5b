"""A tree of whisper files that compresses as real ones do: random walks, counters, constants, gaps, five schemas."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np

from whisperbackup.whisper.format import ARCHIVE_INFO, METADATA, POINT_SIZE, parse_header

SCHEMAS = {  # retentions as (seconds per point, points)
    "minute": [(60, 1440)],
    "long": [(60, 129600)],
    "collectd": [(10, 8640), (60, 43200), (900, 35040)],
    "standard": [(60, 10080), (300, 8640), (600, 52560)],
    "small": [(60, 1440), (300, 2016)],
}
SHARES = {"minute": 0.1, "long": 0.2, "collectd": 0.25, "standard": 0.3, "small": 0.15}
RECORD = np.dtype([("t", ">u4"), ("v", ">f8")])


def series(chance: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """One value for each time, of a kind drawn at random."""
    kind = chance.choice(["gauge", "rounded", "integer", "counter", "constant"], p=[0.25, 0.3, 0.2, 0.15, 0.1])
    walk = 50 + np.cumsum(chance.normal(0, 1, len(times)))
    match kind:
        case "gauge":
            return walk
        case "rounded":
            return np.round(walk, 2)
        case "integer":
            return np.floor(walk)
        case "counter":
            return times // 60 * 7.0 + np.floor(np.abs(walk))
        case _:
            return np.full(len(times), 42.0)


def whisper_file(chance: np.random.Generator, retentions: list[tuple[int, int]], now: int) -> bytes:
    """A file whose rings are full but for a few gaps; some metrics are young."""
    offset = METADATA.size + ARCHIVE_INFO.size * len(retentions)
    head = METADATA.pack(1, max(step * count for step, count in retentions), 0.5, len(retentions))
    body = b""
    age = 1.0 if chance.random() < 0.8 else chance.random()
    for step, count in retentions:
        head += ARCHIVE_INFO.pack(offset, step, count)
        offset += POINT_SIZE * count
        filled = max(2, int(count * age))
        times = now - now % step - step * np.arange(filled)[::-1]
        ring = np.zeros(count, RECORD)
        slots = ((times - times[0]) // step + int(chance.integers(0, count))) % count
        ring["t"][slots] = times
        ring["v"][slots] = series(chance, times)
        for _ in range(int(chance.integers(0, 4))):
            start = int(chance.integers(1, count))
            ring[start : start + int(chance.integers(1, 30))] = 0
        if not ring["t"][0]:  # whisper takes an archive without a base for empty
            ring = np.roll(ring, -int(slots[0]))
        body += ring.tobytes()
    return head + body


def build(root: Path, metrics: int, seed: int = 1, schema: str | None = None) -> int:
    """Write `metrics` files below `root`; their bytes in all."""
    chance, now, total = np.random.default_rng(seed), int(time.time()), 0
    for number in range(metrics):
        name = schema or str(chance.choice(list(SHARES), p=list(SHARES.values())))
        path = root / f"servers/host{number // 25:04}/plugin{number % 5}/metric-{number}.wsp"
        path.parent.mkdir(parents=True, exist_ok=True)
        total += path.write_bytes(whisper_file(chance, SCHEMAS[name], now))
    return total


def damage(path: Path, share: float, chance: np.random.Generator) -> None:
    """Take `share` of the points out of the file's finest archive, about, in runs of up to 60, slot 0 excepted."""
    content = bytearray(path.read_bytes())
    archive = parse_header(bytes(content)).archives[0]
    ring = np.frombuffer(content, RECORD, archive.points, archive.offset)
    for _ in range(int(share * archive.points / 30)):
        start = int(chance.integers(1, archive.points))
        ring[start : start + int(chance.integers(1, 60))] = 0
    path.write_bytes(content)


def advance(root: Path, share: float, seed: int = 1) -> list[Path]:
    """One newer point in the finest archive of a share of the files, the same files each time; which they are."""
    chance, now, advanced = random.Random(seed), int(time.time()), []
    for path in sorted(root.rglob("*.wsp")):
        if chance.random() < share:
            with path.open("r+b") as file:
                archive = parse_header(file.read(4096)).archives[0]
                when = now - now % archive.step
                file.seek(archive.offset)
                base = int.from_bytes(file.read(4)) or when
                file.seek(archive.offset + POINT_SIZE * ((when - base) // archive.step % archive.points))
                file.write(np.array((when, random.random()), RECORD).tobytes())
            advanced.append(path)
    return advanced


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--schema", choices=sorted(SCHEMAS))
    arguments = parser.parse_args()
    print(f"{build(arguments.root, arguments.n, schema=arguments.schema) / 1e6:.0f} MB")

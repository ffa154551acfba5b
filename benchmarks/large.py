"""A million metrics, ten million objects: what a run costs that has nothing to do.  Run by `make bench`.

The store is a driver that lists what such a store would list, so that only this program is measured; the
tree is real, of hard links to a thousand small whisper files.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import whispertree

FILES = 1000  # that the links lead to
DRIVER = '''
"""The driver `simulated`: marks and payloads of five generations of every metric that the file `bucket` names."""

import pathlib

import whisperbackup.storage.noop
from whisperbackup.storage.base import StoredObject


STAMPS = [f"2026-11-{day:02}T00:00:00+00:00" for day in range(1, 6)]


class Simulated(whisperbackup.storage.noop.Noop):
    def __init__(self, bucket):
        self.names = pathlib.Path(bucket)

    def list(self, prefix):
        with self.names.open() as lines:
            for line in lines:
                name, md5 = line.split()
                for stamp in STAMPS:
                    yield StoredObject(f"{name}/{stamp}.sha1", 40, md5)
                    yield StoredObject(f"{name}/{stamp}.wsp.gz", 1000, md5)


def open(bucket, create, arguments):
    return Simulated(bucket)
'''


def build(root: Path, metrics: int) -> Path:
    """The tree, and the file that names the store's metrics with the MD5 of their newest mark."""
    chance = np.random.default_rng(1)
    marks = []
    (root / "files").mkdir()
    for number in range(FILES):
        content = whispertree.whisper_file(chance, [(60, 2 + number % 50)], int(time.time()) - 3600)
        (root / f"files/{number}").write_bytes(content)
        sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        marks.append(hashlib.md5(sha1.encode(), usedforsecurity=False).hexdigest())
    names = []
    for number in range(metrics):
        folder = f"servers/host{number // 50:05}/plugin{number % 5}"
        if number % 50 < 5:
            (root / "tree" / folder).mkdir(parents=True)
        os.link(root / f"files/{number % FILES}", root / f"tree/{folder}/metric-{number}.wsp")
        names.append((f"{folder.replace('/', '.')}.metric-{number}", marks[number % FILES]))
    listing = root / "listing"
    listing.write_text("".join(f"{name} {md5}\n" for name, md5 in sorted(names)))
    return listing


def install_driver(root: Path) -> dict[str, str]:
    """The environment in which the program finds the driver."""
    (root / "site/simulated-1.dist-info").mkdir(parents=True)
    (root / "site/simulated-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: simulated\nVersion: 1\n")
    (root / "site/simulated-1.dist-info/entry_points.txt").write_text(
        "[whisperbackup.storage]\nsimulated = simulated_driver:open\n"
    )
    (root / "site/simulated_driver.py").write_text(DRIVER)
    return {**os.environ, "PYTHONPATH": f"{root / 'site'}:{os.environ.get('PYTHONPATH', '')}"}


def measure(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and the peak memory in MB of the parent process alone."""
    began = time.perf_counter()
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")))
        except (OSError, TypeError):
            pass  # it ended meanwhile
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the run failed with status {process.returncode}")
    return time.perf_counter() - began, peak / 1024


def main() -> None:
    """Build, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="whisper-backup-bench-") as folder:
        root = Path(folder)
        listing = build(root, arguments.n)
        environment = install_driver(root)
        words = [sys.executable, "-m", "whisperbackup", "--nolog", "--nolock", "--nostamp", "-q", "-x", "-1"]
        words += ["-p", str(root / "tree"), "-b", str(listing)]
        print(f"\n| {arguments.n:,} metrics, {arguments.n * 10:,} objects | seconds | metrics/s | parent's peak, MB |")
        print("|---|---|---|---|")
        runs = {
            "list --json": [*words, "--json", "list", "simulated"],
            "backup, every file read, none changed": [*words, "--statefile", str(root / "s"), "backup", "simulated"],
            "backup, untouched": [*words, "--statefile", str(root / "s"), "backup", "simulated"],
        }
        for name, run in runs.items():
            seconds, peak = measure(run, environment)
            print(f"| {name} | {seconds:.1f} | {arguments.n / seconds:,.0f} | {peak:.0f} |", flush=True)
        print(f"\nstate file: {(root / 's').stat().st_size / arguments.n:.0f} bytes a metric")


if __name__ == "__main__":
    main()

"""2,000 small metrics to each kind of store, 30 ms away: first backup, unchanged, restore.  Run by `make bench`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import whispertree

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import servers  # noqa: E402  (the tests' servers)

PROGRAM = [sys.executable, "-m", "whisperbackup", "--nolog", "--nolock", "--nostamp", "-q"]


def measure(kind: str, tree: Path, count: int, delay: float) -> None:
    """One line of the table."""
    direct = servers.store(kind)
    with servers.TroubleProxy(direct.port) as proxy, tempfile.TemporaryDirectory() as target:
        proxy.delay = delay
        store = direct.through(proxy.port)
        environment = {**os.environ, **store.environment, "AWS_EC2_METADATA_DISABLED": "true"}
        bucket = f"bench-{uuid.uuid4().hex[:12]}"

        def timed(command: str, prefix: Path) -> tuple[float, int]:
            proxy.requests.clear()
            words = ["-b", bucket, "-p", str(prefix), command, store.driver, *store.arguments]
            began = time.perf_counter()
            subprocess.run([*PROGRAM, *words], env=environment, check=True)
            return time.perf_counter() - began, proxy.requests.total()

        first, puts = timed("backup", tree)
        unchanged, lists = timed("backup", tree)
        restored, gets = timed("restore", Path(target))
    print(
        f"| {kind} | {first:.1f} s, {count / first:.0f}/s, {puts} requests | {unchanged:.1f} s, {lists} requests "
        f"| {restored:.1f} s, {count / restored:.0f}/s, {gets} requests |",
        flush=True,
    )


def main() -> None:
    """Build the tree, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--delay-ms", type=float, default=30)
    arguments = parser.parse_args()
    tree = Path(tempfile.mkdtemp(prefix="whisper-backup-bench-"))
    try:
        whispertree.build(tree, arguments.n, schema="minute")
        print(f"\n| {arguments.n} metrics, {arguments.delay_ms:g} ms away | first backup | unchanged | restore |")
        print("|---|---|---|---|")
        for kind in ("s3-rclone", "swift-v1", "gcs"):
            measure(kind, tree, arguments.n, arguments.delay_ms / 1000)
    finally:
        shutil.rmtree(tree)


if __name__ == "__main__":
    main()

"""This tool beside its peers, in turn in one session; prints tables of medians and ratios.  Run by `make bench`."""

from __future__ import annotations

import argparse
import functools
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import disk
import healing
import overhead
import peers
import stores
import tools
import whispertree
from timing import Target, show_targets

import whisperbackup

Section = Callable[[Path, Path, int], list[Target]]


def _script(name: str) -> Section:
    """A section that is a program of its own."""

    def run(_root: Path, _scratch: Path, _rounds: int) -> list[Target]:
        sys.stdout.flush()
        subprocess.run([sys.executable, Path(__file__).with_name(name)], check=True)
        return []

    return run


OVER_THE_TREE: dict[str, Section] = {
    "backup": disk.backup,
    "advanced": disk.advanced,
    "restore": disk.restore,
    "heal": healing.heal,
}
ON_ITS_OWN: dict[str, Section] = {
    "small": disk.small,
    "s3": stores.s3,
    "stores": stores.others,
    "catalog": overhead.catalog,
    "start": overhead.start,
    "listing": _script("listing.py"),
    "large": _script("large.py"),
}
TOOLS = (*peers.INSTALL, "tar", "gzip", "cp")


def describe(scratch: Path) -> None:
    """The machine, the versions, and what all sections have in common."""
    words = ["df", "--output=fstype", str(scratch)]
    file_system = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1]
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    print(f"{datetime.now(UTC):%Y-%m-%d}: {_processor()}, {os.cpu_count()} cores, {gigabytes:.0f} GB, {file_system},")
    print(f"Linux {platform.release()}, Python {platform.python_version()}, whisper-backup {whisperbackup.__version__}")
    state = "a state file" if tools.knows(tools.STATE) else "no state file (this version has none)"
    print(f"with 4 processes and {state}; the page cache is warm; what each tool keeps is on the same disk.")
    print("; ".join(peers.version(name) for name in peers.installed(*TOOLS)) + ".")
    for name, remedy in peers.INSTALL.items():
        if not peers.found(name):
            print(f"{name} is not installed, and left out: {remedy}")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Build the trees, run the sections, print their tables and what became of the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, help="a tree of whisper files to use instead of a built one")
    parser.add_argument("-n", type=int, default=1000, help="metrics in the built tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=[*OVER_THE_TREE, *ON_ITS_OWN], help="may be repeated")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that gigabytes of scratch folder go
    with tempfile.TemporaryDirectory(prefix="whisper-backup-bench-") as folder:
        scratch = Path(folder)
        describe(scratch)

        @functools.cache
        def tree() -> Path:
            root = arguments.tree.resolve() if arguments.tree else scratch / "tree"
            if not arguments.tree:
                whispertree.build(root, arguments.n)
            count = sum(1 for _ in root.rglob("*.wsp"))
            print(f"The tree: {count} files, {tools.folder_size(root) / 1e6:.0f} MB.")
            return root

        targets: list[Target] = []
        for name in arguments.only or [*OVER_THE_TREE, *ON_ITS_OWN]:
            with tempfile.TemporaryDirectory(dir=scratch) as room:
                if name in OVER_THE_TREE:
                    targets += OVER_THE_TREE[name](tree(), Path(room), arguments.rounds)
                else:
                    targets += ON_ITS_OWN[name](scratch, Path(room), arguments.rounds)
        show_targets(targets)


if __name__ == "__main__":
    main()

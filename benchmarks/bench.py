"""This tool beside its peers, in turn in one session; prints a table of medians and ratios.  Run by `make bench`."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import whispertree

PROGRAM = [sys.executable, "-m", "whisperbackup", "--nolog", "--nolock", "--nostamp", "-q"]
Case = tuple[str, Callable[[], object]]


def timed(work: Callable[[], object]) -> float:
    """Seconds of wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(title: str, cases: list[Case], before: Callable[[], object], rounds: int) -> None:
    """Time the cases in turn, `rounds` times, each after `before`; the first is the measure of the ratios."""
    figures: dict[str, list[float]] = {name: [] for name, _ in cases}
    for _ in range(rounds):
        for name, work in cases:
            before()
            figures[name].append(timed(work))
    measure = statistics.median(figures[cases[0][0]])
    print(f"\n| {title} | median s | ratio |\n|---|---|---|")
    for name, seconds in figures.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median:.2f} | {median / measure:.2f} |", flush=True)


def shell(command: str) -> Callable[[], object]:
    """A command line, its output thrown away."""
    return lambda: subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=True, stdout=subprocess.DEVNULL)


def program(*words: object) -> Callable[[], object]:
    """This tool."""
    return lambda: subprocess.run([*PROGRAM, *(str(word) for word in words)], check=True, stdout=subprocess.DEVNULL)


def bench_backup(tree: Path, scratch: Path, rounds: int) -> None:
    """A first backup, and restoring all of it, beside tar and cp."""
    store, copy, archive, target = scratch / "store", scratch / "copy", scratch / "tree.tgz", scratch / "target"

    def clean() -> None:
        for path in (store, copy, target):
            shutil.rmtree(path, ignore_errors=True)
        target.mkdir()
        os.sync()

    backups = [
        (f"backup disk -a {a}", program("-p", tree, "-b", store, "-a", a, "backup", "disk"))
        for a in ("gz", "sz", "zst")
    ]
    compare(
        "first backup",
        [
            *backups,
            ("tar, gzip -1", shell(f"tar c {tree} | gzip -1 > {archive}")),
            ("cp -r", shell(f"cp -r {tree} {copy}")),
        ],
        clean,
        rounds,
    )
    clean()
    program("-p", tree, "-b", store, "backup", "disk")()
    compare("unchanged", [("backup disk", program("-p", tree, "-b", store, "backup", "disk"))], lambda: None, rounds)

    def empty() -> None:
        shutil.rmtree(target)
        target.mkdir()
        os.sync()

    compare(
        "restore all into an empty prefix",
        [
            ("restore disk", program("-p", target, "-b", store, "restore", "disk")),
            ("tar x, gzip", shell(f"tar xf {archive} -C {target}")),
        ],
        empty,
        rounds,
    )


def bench_heal(tree: Path, scratch: Path, rounds: int) -> None:
    """200 files with a fifth of their points missing, beside carbonate's fill_archives, one process each."""
    from carbonate.fill import fill_archives

    chance = np.random.default_rng(1)
    chosen = sorted(tree.rglob("*.wsp"))[:200]
    source, damaged, live = scratch / "source", scratch / "damaged", scratch / "live"
    for path in chosen:
        for root in (source, damaged):
            (root / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, root / path.relative_to(tree))
        whispertree.damage(damaged / path.relative_to(tree), 0.2, chance)
    program("-p", source, "-b", scratch / "heal-store", "backup", "disk")()

    def spoil() -> None:
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(damaged, live)

    def carbonate() -> None:
        now = int(time.time())
        for path in chosen:
            fill_archives(str(source / path.relative_to(tree)), str(live / path.relative_to(tree)), now)

    cases: list[Case] = [
        (
            "restore disk -f 1, start and end included",
            program("-f", 1, "-p", live, "-b", scratch / "heal-store", "restore", "disk"),
        ),
        ("carbonate fill_archives", carbonate),
    ]
    compare("heal 200 files, a fifth of their points missing", cases, spoil, rounds)


def bench_catalog(scratch: Path) -> None:
    """The parent's peak memory over a store of 200,000 objects."""
    store = scratch / "wide"
    for number in range(20_000):
        folder = store / f"servers.host{number // 50:04}.plugin.metric-{number}"
        folder.mkdir(parents=True)
        for day in range(1, 6):
            for end in ("sha1", "wsp.gz"):
                (folder / f"2026-11-{day:02}T00:00:00+00:00.{end}").touch()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.execv(sys.executable, [*PROGRAM, "-b", str(store), "--json", "list", "disk"])
    _, _, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - began
    print("\n| catalog of 200,000 objects on disk | |\n|---|---|")
    print(f"| list, seconds | {seconds:.1f} |\n| peak memory, MB | {usage.ru_maxrss / 1024:.0f} |", flush=True)


def main() -> None:
    """Build the trees, run everything, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, help="a tree of whisper files to use instead of a built one")
    parser.add_argument("-n", type=int, default=1000, help="metrics in the built tree")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["backup", "heal", "catalog"])
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
    )
    with tempfile.TemporaryDirectory(prefix="whisper-backup-bench-") as folder:
        scratch = Path(folder)
        tree = arguments.tree or scratch / "tree"
        if arguments.tree is None and arguments.only != "catalog":
            print(f"{arguments.n} files, {whispertree.build(tree, arguments.n) / 1e6:.0f} MB")
        if arguments.only in (None, "backup"):
            bench_backup(tree.resolve(), scratch, arguments.rounds)
        if arguments.only in (None, "heal"):
            bench_heal(tree.resolve(), scratch, arguments.rounds)
        if arguments.only in (None, "catalog"):
            bench_catalog(scratch)


if __name__ == "__main__":
    main()

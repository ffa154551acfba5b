"""From disk to disk: first backup, unchanged, a share of the files advanced, restore."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import whispertree
from peers import Borg, Copy, Restic, Tar, installed
from timing import Case, Command, Run, Target, compare, run
from tools import Tool, WhisperBackup, empty, folder_size

ADVANCED = 0.4
"""The share of files that carbon has written to between two backups."""

Preparation = Callable[[Tool], object]


def archivers(scratch: Path) -> list[Tool]:
    """The tools with history and deduplication, those that are installed."""
    there = installed("restic", "borg")
    restic: list[Tool] = [Restic(scratch)] if "restic" in there else []
    borg: list[Tool] = [Borg(scratch, "lz4"), Borg(scratch, "zstd,1")] if "borg" in there else []
    return restic + borg


def copiers(scratch: Path) -> list[Tool]:
    """tar and cp."""
    return [*(Tar(scratch, f"{name} -1") for name in installed("gzip", "zstd")), Copy(scratch)]


def own(scratch: Path) -> list[Tool]:
    """This tool with each codec, gz first: it is the measure of the ratios."""
    return [WhisperBackup(scratch, codec) for codec in ("gz", "sz", "zst")]


def warm(root: Path) -> None:
    """Have the page cache hold the tree: between two runs the kernel may have taken some of it back."""
    for path in root.rglob("*.wsp"):
        path.read_bytes()


def backup_all(tools: Iterable[Tool], root: Path) -> None:
    """A first backup by each, not measured."""
    for tool in tools:
        tool.clear()
        run(tool.backup(root))


def _backups(tools: Iterable[Tool], root: Path, before: Preparation) -> list[Case]:
    def make_ready(tool: Tool) -> None:
        before(tool)
        warm(root)

    def stored(tool: Tool, _: Run) -> Mapping[str, float | None]:
        size = tool.stored()
        return {"stored MB": size and size / 1e6}

    return [
        Case(
            tool.label, functools.partial(make_ready, tool), functools.partial(tool.backup, root),
            functools.partial(stored, tool),
        )
        for tool in tools
    ]  # fmt: skip


def backup(root: Path, scratch: Path, rounds: int) -> list[Target]:
    """A first backup; the same again with nothing changed."""
    loop = "plain Python loop: read, SHA-1, igzip; nothing stored"
    baseline = Command([sys.executable, Path(__file__).with_name("baselines.py"), "compress", root])
    tools, others = [*own(scratch), *archivers(scratch)], copiers(scratch)
    cases = _backups([*tools, *others], root, lambda tool: tool.clear())
    table = compare("first backup", [*cases, Case(loop, lambda: warm(root), lambda: baseline)], rounds)
    gz, _, zst = (tool.label for tool in own(scratch))
    targets = [Target("user CPU of a gz backup, against a plain loop", table.user(gz) / table.user(loop), 1.5)]
    ours, theirs = (table.figure(case, "stored MB") if case in table else None for case in (zst, "tar, zstd -1"))
    if ours and theirs:
        targets.append(Target("bytes that zst stores, against tar, zstd -1", ours / theirs, 1))
    for tool in others:
        tool.clear()
    compare("unchanged", _backups(tools, root, lambda _: None), rounds)
    return targets


def small(_root: Path, scratch: Path, rounds: int) -> list[Target]:
    """An unchanged run over many small files: what the tools do beside compressing."""
    root, count = scratch / "small", 20_000
    size = whispertree.build(root, count, schema="minute")
    tools = [WhisperBackup(scratch), *archivers(scratch)]
    backup_all(tools, root)
    cases = _backups(tools, root, lambda _: None)
    table = compare(f"unchanged, {count:,} files, {size / 1e6:.0f} MB", cases, rounds)
    return [
        Target(f"{count:,} unchanged files, against {tool.label}", table.seconds(tools[0].label) / theirs, 1)
        for tool in tools[1:]
        if (theirs := table.seconds(tool.label))
    ]


def advanced(root: Path, scratch: Path, rounds: int) -> list[Target]:
    """A backup when a share of the files got a new point, beside a first backup of just those files."""
    live, alone = scratch / "live", scratch / "alone"
    shutil.copytree(root, live)
    paths = whispertree.advance(live, ADVANCED)
    for path in paths:
        link = alone / path.relative_to(live)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)  # so that what advances the one advances the other
    tools = [WhisperBackup(scratch), *archivers(scratch)]
    backup_all(tools, live)
    only = WhisperBackup(scratch / "only")
    only.label = f"just those {len(paths)} files, into an empty store"

    def prepare(tool: Tool) -> None:
        if tool is only:
            only.clear()
        whispertree.advance(live, ADVANCED)

    ours, *theirs = _backups(tools, live, prepare)
    cases = [ours, *_backups([only], alone, prepare), *theirs]
    table = compare(f"{ADVANCED:.0%} of the files advanced by a point", cases, rounds)
    ratio = table.seconds(ours.name) / table.seconds(only.label)
    return [Target(f"{ADVANCED:.0%} advanced, against a first backup of just those files", ratio, 1.3)]


def restore(root: Path, scratch: Path, rounds: int) -> list[Target]:
    """Everything, and one file, into an empty folder."""
    tools, target = [*own(scratch), *archivers(scratch), *copiers(scratch)], scratch / "target"
    backup_all(tools, root)
    paths = sorted(root.rglob("*.wsp"))
    one = str(paths[len(paths) // 2].relative_to(root))

    def restored(_: Run) -> Mapping[str, float | None]:
        return {"restored MB": folder_size(target) / 1e6}

    for title, path in (("restore all into an empty prefix", ""), ("restore one metric", one)):
        cases = [
            Case(tool.label, lambda: empty(target), functools.partial(tool.restore, target, path), restored)
            for tool in tools
        ]
        compare(title, cases, rounds)
    return []

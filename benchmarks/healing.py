"""Filling the gaps of live files from a backup, beside carbonate."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import whispertree
from timing import Case, Command, Target, compare, run
from tools import WhisperBackup

FILES = 200
MISSING = 0.2
"""The share of points that the live files lack."""


def heal(root: Path, scratch: Path, rounds: int) -> list[Target]:
    """Live files with gaps, the source whole."""
    chance = np.random.default_rng(1)
    source, damaged, live = scratch / "source", scratch / "damaged", scratch / "live"
    paths = sorted(root.rglob("*.wsp"))
    paths = paths[:: max(1, len(paths) // FILES)][:FILES]  # from all over the tree
    for path in paths:
        for folder in (source, damaged):
            (folder / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(root))
        whispertree.damage(damaged / path.relative_to(root), MISSING, chance)
    tool = WhisperBackup(scratch)
    tool.clear()
    run(tool.backup(source))

    def spoil() -> None:
        shutil.rmtree(live, ignore_errors=True)
        shutil.copytree(damaged, live)

    restore = tool.command("-p", live, "restore")
    cases = [
        Case("restore disk -f 1", spoil, lambda: restore._replace(words=[*restore.words, "-f", 1])),
        Case("restore disk", spoil, lambda: restore),
    ]
    if importlib.util.find_spec("carbonate"):
        fill = Command([sys.executable, Path(__file__).with_name("baselines.py"), "fill", source, live])
        cases.append(Case("carbonate fill_archives, one process", spoil, lambda: fill))
    else:
        print("\ncarbonate is not installed, and left out: pip install carbonate")
    compare(f"heal {len(paths)} files, {MISSING:.0%} of their points missing", cases, rounds)
    return []

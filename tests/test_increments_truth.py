"""Backup, increments under writing, tree lost, restore: the files of random histories, against the real whisper.

`TRUTH=10000 pytest tests/test_increments_truth.py` runs as many histories; TRUTH_SEED is the first one's.
"""

from __future__ import annotations

import os
from pathlib import Path

from increments_world import history

HISTORIES = int(os.environ.get("TRUTH", "120"))
FIRST = int(os.environ.get("TRUTH_SEED", "0"))


def test_every_image_equals_the_live_file_at_the_last_reading(tmp_path: Path) -> None:
    compared = 0
    for seed in range(FIRST, FIRST + HISTORIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        world, wrong = history(folder, seed)
        assert not wrong, f"TRUTH_SEED={seed} TRUTH=1: {wrong}"
        compared += world.compared
        for path in folder.iterdir():
            path.unlink()
    assert compared >= 5 * HISTORIES

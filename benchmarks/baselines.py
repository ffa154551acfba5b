"""What plain Python takes for the same work, as commands: read, hash and compress a tree; fill files' gaps.

baselines.py compress TREE          each file read, its SHA-1 taken, compressed by igzip; nothing is written
baselines.py fill SOURCE LIVE       carbonate's fill_archives, from each file in SOURCE to that in LIVE
"""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path


def compress(tree: str) -> None:
    """One loop over the files."""
    from isal import igzip

    for path in Path(tree).rglob("*.wsp"):
        content = path.read_bytes()
        hashlib.sha1(content, usedforsecurity=False).hexdigest()
        igzip.compress(content, 2)


def fill(source: str, live: str) -> None:
    """One loop over the files."""
    from carbonate.fill import fill_archives

    for path in Path(source).rglob("*.wsp"):
        fill_archives(str(path), str(Path(live) / path.relative_to(source)), int(time.time()))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["compress", tree]:
            compress(tree)
        case ["fill", source, live]:
            fill(source, live)

"""The pages of docs/, which are installed with the package: `whisper-backup help PAGE` shows them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_FOLDERS = (_HERE / "docs", _HERE.parent / "docs")
"""Where an installation has them, and where a clone of the repository has them."""
_LINK = re.compile(r"\[([^]]+)\]\(([^)]+)\)")


def names() -> list[str]:
    """All pages."""
    return sorted(path.stem for path in _folder().glob("*.md"))


def text(name: str) -> str:
    """A page as a terminal shows it: each link to another page is replaced by the page's name."""
    page = re.sub(r"^<!--.*-->\n", "", (_folder() / f"{name}.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return _LINK.sub(_shown_link, page)


def show(shown: str) -> None:
    """Print a text, on a terminal through the user's pager.  Raises OSError if it cannot be written."""
    import pydoc

    try:
        pydoc.pager(shown)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush again at exit
        if not isinstance(error, BrokenPipeError):  # `| head` closed the pipe
            raise


def _folder() -> Path:
    return next((folder for folder in _FOLDERS if (folder / "restore.md").exists()), _FOLDERS[0])


def _shown_link(link: re.Match[str]) -> str:
    label, target = link.groups()
    page = Path(target.partition("#")[0]).name
    return label if not page or page in label else f"{label} ({page})"

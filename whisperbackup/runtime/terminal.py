"""Lines that fit on a terminal."""

from __future__ import annotations

import shutil
import sys


def is_terminal() -> bool:
    """Whether somebody reads standard output on a terminal."""
    return sys.stdout.isatty()


def columns() -> int:
    """How many characters a line of the terminal has."""
    return shutil.get_terminal_size().columns


def folded(line: str, indent: int) -> str:
    """`line`, on a terminal in several lines between words, all but the first behind `indent` spaces."""
    if not is_terminal() or len(line) <= columns():
        return line
    import textwrap

    return textwrap.fill(
        line, columns(), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        replace_whitespace=False, drop_whitespace=True,
    )  # fmt: skip

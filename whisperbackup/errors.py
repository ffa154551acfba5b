"""The errors that end a run: each becomes one line on stderr and an exit status."""

from __future__ import annotations


class NoTree(Exception):
    """There is no tree to walk; the text says why."""


class CannotRun(Exception):
    """The command could not do its job at all; the text names the thing and the remedy."""

"""The name of a whisper file's metric in the store, and the path of a name."""

from __future__ import annotations

import re

SUFFIX = b".wsp"
_ESCAPED = re.compile("[\x00-\x1f\x7f.%\udc80-\udcff\ufffe\uffff]")
_ORDINARY = re.compile(r"[\w-]+(?:\.[\w-]+)*", re.ASCII)
_ESCAPE = re.compile(b"%([0-9A-F]{2})")


class ForeignName(ValueError):
    """A name in the store that is not the name of a metric: it has no safe path below a prefix."""


def encode(component: bytes) -> str:
    """A path component as part of a metric's name."""
    return _ESCAPED.sub(_escape, component.decode("utf-8", "surrogateescape"))


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogateescape"))


def _decode(component: str) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match.group(1), 16)]), component.encode())


def metric_name(path: bytes) -> str:
    """The name of the metric at `path`, relative to the prefix and ending in `.wsp`."""
    return ".".join(encode(component) for component in path.removesuffix(SUFFIX).split(b"/"))


def is_canonical(name: str) -> bool:
    """Whether encoding the decoded path gives `name` again."""
    if "%" not in name:
        return not _ESCAPED.search(name.replace(".", ""))
    try:
        return all(encode(_decode(component)) == component for component in name.split("."))
    except UnicodeEncodeError:
        return False


def metric_path(name: str) -> bytes:
    """The path of the metric `name`, relative to the prefix.

    A name that is not canonical is used literally.  Raises ForeignName where the path would be unsafe:
    a component that is empty, `.` or `..`, or one with `/` or NUL in it.
    """
    if _ORDINARY.fullmatch(name):
        return name.replace(".", "/").encode() + SUFFIX
    try:
        components = [part.encode() for part in name.split(".")]
    except UnicodeEncodeError:
        raise ForeignName(f"'{name!a}' is not UTF-8") from None
    if "%" in name and is_canonical(name):
        components = [_decode(part) for part in name.split(".")]
    *folders, stem = components
    if (
        not (folders or stem)
        or any(folder in (b"", b".", b"..") for folder in folders)
        or any(byte in component for component in components for byte in (b"/", b"\0"))
    ):
        raise ForeignName(f"'{name}' is not the name of a metric")
    return b"/".join(components) + SUFFIX

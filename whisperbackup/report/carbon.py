"""The figures of a run, sent to a carbon daemon in its plaintext protocol: `<path> <value> <Unix time>` a line."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger(__name__)

PORT = 2003
TIMEOUT = 5.0  # seconds for everything: looking up the name, connecting, sending

_RECEIVER = re.compile(r"(?:\[([^\[\]\s]+)\]|([^\[\]:\s]+))(?::(\d{1,5}))?", re.ASCII)
_PREFIX = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


class Receiver(NamedTuple):
    """A carbon daemon's line receiver."""

    host: str
    port: int


def parse_receiver(text: str) -> Receiver:
    """`HOST[:PORT]`, an IPv6 address in brackets.  Raises ValueError."""
    match = _RECEIVER.fullmatch(text)
    port = int(match[3] or PORT) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise ValueError("HOST or HOST:PORT, an IPv6 address in brackets")
    return Receiver(match[1] or match[2], port)


def parse_prefix(text: str) -> str:
    """`text`, if a metric's name can begin with it.  Raises ValueError."""
    if not _PREFIX.fullmatch(text):
        raise ValueError("letters, digits, '_' and '-', in parts joined by dots")
    return text


def node_name(hostname: str) -> str:
    """A machine's name as one part of a metric's name: without its domain, odd characters becoming `_`."""
    return re.sub(r"[^\w-]", "_", hostname.partition(".")[0], flags=re.ASCII) or "_"


def lines(path: str, figures: Mapping[str, float], status: int, is_success: bool, when: int) -> str:
    """What the receiver is to get below `path` (prefix, node, command) at the Unix time `when`, the run's end.

    Besides the figures `status`, and for a run that is a success (it did all its work, in a store that keeps it), and
    no other, `success_time`, which is `when`: so the age of the last success is now less the last value that this
    metric has, whatever failed since.
    """
    told = {**figures, "status": status, **({"success_time": when} if is_success else {})}
    return "".join(f"{path}.{figure} {value} {when}\n" for figure, value in told.items())


def send(receiver: Receiver, text: str, timeout: float = TIMEOUT) -> None:
    """Send `text`; takes `timeout` seconds at most, and that it cannot be sent is a warning."""
    if timeout <= 0:
        return  # a run that was stopped has used up its time
    reasons = [f"it did not take them within {timeout:.1f} seconds"]

    def deliver() -> None:
        import socket

        try:
            with socket.create_connection(receiver, timeout) as connection:
                connection.sendall(text.encode())
            reasons.clear()
        except (OSError, UnicodeError) as error:  # a name that no resolver can ask for is a UnicodeError
            reasons[:] = [str(error)]

    # In a thread, since looking up a name knows no timeout, and each of its addresses has one of its own.
    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(timeout)
    for reason in reasons:
        logger.warning("the figures did not reach carbon at %s, port %d: %s", receiver.host, receiver.port, reason)

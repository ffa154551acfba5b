"""Send a run's counters to a carbon daemon in its plaintext protocol: one line `<path> <value> <Unix time>` each."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import NamedTuple

logger = logging.getLogger(__name__)

PORT = 2003
TIMEOUT = 5.0  # seconds for everything: looking up the name, connecting, sending

_RECEIVER = r"(?:\[([^\[\]\s]+)\]|([^\[\]:\s]+))(?::(\d{1,5}))?"
_PREFIX = r"[\w-]+(\.[\w-]+)*"


class Receiver(NamedTuple):
    """A carbon daemon's line receiver."""

    host: str
    port: int


def parse_receiver(text: str) -> Receiver:
    """`HOST[:PORT]`, an IPv6 address in brackets.  Raises ValueError."""
    match = re.fullmatch(_RECEIVER, text, re.ASCII)
    port = int(match[3] or PORT) if match else 0
    if match is None or not 1 <= port <= 65535:
        raise ValueError("HOST or HOST:PORT, an IPv6 address in brackets")
    return Receiver(match[1] or match[2], port)


def parse_prefix(text: str) -> str:
    """`text`, if a metric's name can begin with it.  Raises ValueError."""
    if not re.fullmatch(_PREFIX, text, re.ASCII):
        raise ValueError("letters, digits, '_' and '-', in parts joined by dots")
    return text


def node_name(hostname: str) -> str:
    """A host name as one part of a metric name: without its domain, with `_` for special characters."""
    return re.sub(r"[^\w-]", "_", hostname.partition(".")[0], flags=re.ASCII) or "_"


def lines(path: str, counters: Mapping[str, float], status: int, is_success: bool, when: int) -> str:
    """The lines to send for `path` (prefix, node, command); `when` is the Unix time at which the run ended.

    These are the counters, `status`, and only for a successful run (all its work done, in a store that keeps data)
    `success_time`, which is `when`.  So the age of the last success is the current time minus the newest value of
    that metric, even if later runs failed.
    """
    values = {**counters, "status": status, **({"success_time": when} if is_success else {})}
    return "".join(f"{path}.{name} {value} {when}\n" for name, value in values.items())


def send(receiver: Receiver, text: str, timeout: float = TIMEOUT) -> None:
    """Send `text` within `timeout` seconds; a failure is a warning."""
    if timeout <= 0:
        return  # a run that was stopped has used up its time
    reasons = [f"no success within {timeout:.1f} seconds"]

    def deliver() -> None:
        import socket

        try:
            with socket.create_connection(receiver, timeout) as connection:
                connection.sendall(text.encode())
            reasons.clear()
        except (OSError, UnicodeError) as error:  # an invalid host name raises UnicodeError
            reasons[:] = [str(error)]

    # In a thread: a name lookup has no timeout, and each address of the name has a separate one.
    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(timeout)
    for reason in reasons:
        logger.warning(
            "the counters did not reach carbon at %s, port %d: %s; check --carbon", receiver.host, receiver.port, reason
        )

"""The time of day, and the random pause before a run."""

from __future__ import annotations

import logging
import os
import time
from datetime import UTC, datetime

logger = logging.getLogger(__name__)


# -- time and logging ---------------------------------------------------------------------------


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def boot_id() -> str:
    """The kernel's id of this boot; empty where it has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def uptime() -> int:
    """Whole seconds since the boot, which no setting of the clock changes."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def splay(seconds: float) -> None:
    """Sleep for a random time up to `seconds`, so that the cron jobs of many hosts do not start together.

    At a terminal, do not sleep: somebody is waiting.
    """
    if seconds > 0:
        if os.isatty(0) or os.isatty(2):
            logger.info("starting at once: --splay is for runs without a terminal")
            return
        import random

        pause = random.uniform(0, seconds)
        logger.info("starting in %.0f seconds (--splay %g)", pause, seconds)
        time.sleep(pause)

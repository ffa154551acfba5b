"""The time of day, and the random pause before a run."""

from __future__ import annotations

import logging
import os
import random
import time
from datetime import UTC, datetime

logger = logging.getLogger(__name__)


# -- time and logging ---------------------------------------------------------------------------


def utc_now() -> datetime:
    """The time of day, at the edge where it is read."""
    return datetime.now(UTC)


def splay(seconds: float) -> None:
    """Sleep for a random time up to `seconds`, so that a fleet's cron jobs do not start together.

    Not where somebody at a terminal is waiting.
    """
    if seconds > 0:
        if os.isatty(0) or os.isatty(2):
            logger.info("starting at once: --splay is for runs without a terminal")
            return
        pause = random.uniform(0, seconds)
        logger.info("starting in %.0f seconds (--splay %g)", pause, seconds)
        time.sleep(pause)

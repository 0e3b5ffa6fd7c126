"""The clock that deadlines are kept by."""

import time

SECOND = 1_000_000_000


def boot_clock() -> int:
    """Nanoseconds since boot, suspended time included: it cannot be set."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

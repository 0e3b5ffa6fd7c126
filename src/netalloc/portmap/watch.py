"""Repairing the rules as soon as the kernel says that another program has changed them."""

import logging
import threading
import time
from collections.abc import Callable

from netalloc.closing import Closing
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.model import ReconcileResult

logger = logging.getLogger(__name__)

_SHARE = 4  # rests this many times as long as a repair took, so that a storm costs a fifth
_REST = 0.5  # seconds, at most: a change is mended within a second
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 60.0  # seconds after a failure, doubled each time


class Watch(Closing):
    """A thread that runs `repair` after every change that `monitor` reports, until `close`.

    `on_repair` is called, in that thread, with what was found if anything was. A failing
    repair is logged and tried again. A context manager.
    """

    def __init__(
        self,
        monitor: RuleMonitor,
        repair: Callable[[], ReconcileResult],
        on_repair: Callable[[ReconcileResult], None] | None = None,
    ) -> None:
        self._monitor = monitor
        self._repair = repair
        self._on_repair = on_repair
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="netalloc-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the watch, after the repair that runs now if one does; a second time is no error."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._monitor.stop()
        if threading.current_thread() is not self._thread:  # `on_repair` may end its own watch
            self._thread.join()

    def _run(self) -> None:
        try:
            pause = 0.0
            while pause or self._monitor.wait():
                began = time.monotonic()
                if self._repaired():
                    pause = 0.0
                    rest = min(_REST, _SHARE * (time.monotonic() - began))
                else:
                    rest = pause = min(_LAST_PAUSE, 2 * pause or _FIRST_PAUSE)
                if self._closing.wait(rest):
                    return
        finally:
            self._monitor.close()

    def _repaired(self) -> bool:
        try:
            repairs = self._repair()
            if repairs:
                logger.warning(
                    "rules were changed by others and repaired: %d mappings added, %d removed%s",
                    len(repairs.added),
                    len(repairs.removed),
                    "".join(f"; {what}" for what in repairs.structure),
                )
                if self._on_repair is not None:
                    self._on_repair(repairs)
        except Exception:  # a thread that died of it would leave the rules unwatched
            logger.exception("rules were changed by others and could not be repaired")
            return False
        return True

"""Repairing the rules as soon as the kernel says that another program has changed them."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from netalloc.closing import Closing
from netalloc.host.rule_monitor import ELEMENTS, RULES, RuleMonitor
from netalloc.locks import locked
from netalloc.model import ReconcileResult

if TYPE_CHECKING:
    from netalloc.host.watch_turn import WatchTurn

logger = logging.getLogger(__name__)

_SHARE = 4  # rests this many times as long as a repair took, so that a storm costs a fifth
_REST = 0.5  # seconds, at most: a change is mended within a second
_IDLE_SHARE, _IDLE_REST = 9, 0.75  # after a look that found nothing: a tenth
_FIRST_PAUSE, _LAST_PAUSE = 1.0, 60.0  # seconds after a failure, doubled each time


class Work(NamedTuple):
    """What a watch does after a change: repair it; or, after a change of mappings, look first.

    `agrees` says whether the mappings are as desired, and holds nothing up; None where that
    cannot be said. `complete`: it says so of the rules as well.
    """

    repair: Callable[[], ReconcileResult]
    agrees: Callable[[], bool] | None = None
    complete: bool = False


class Watch(Closing):
    """A thread that does its work after every change that a monitor reports, until `close`.

    `on_repair` is called, in that thread, with what was found if anything was. A failing
    repair is logged and tried again. With a `turn` it is one watch in whatever process that
    works: the others wait for its end, without a monitor. A context manager.
    """

    def __init__(
        self,
        make_monitor: Callable[[], RuleMonitor],
        work: Work,
        on_repair: Callable[[ReconcileResult], None] | None = None,
        turn: "WatchTurn | None" = None,
    ) -> None:
        self._make_monitor = make_monitor
        self._work = work
        self._on_repair = on_repair
        self._turn = turn
        self._closing = threading.Event()
        self._lock = threading.Lock()  # a number of a closed file may be another file's by now
        self._pipe = list(os.pipe2(os.O_CLOEXEC))
        self._ended = self._pipe[0]
        self._monitor: RuleMonitor | None = None
        self._thread = threading.Thread(target=self._run, name="netalloc-watch", daemon=True)
        try:
            monitor = make_monitor()  # raises here where there is nothing to watch
            if turn is None or turn.take():
                self._monitor = monitor
            else:
                monitor.close()
            work.repair()  # what has changed before the monitor listened
        except BaseException:
            self._give_back()
            raise
        self._thread.start()

    def close(self) -> None:
        """End the watch, after the repair that runs now if one does; a second time is no error."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake()
        monitor = self._monitor
        if monitor is not None:
            monitor.stop()
        if threading.current_thread() is not self._thread:  # `on_repair` may end its own watch
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._monitor is not None or self._stood_by():
                self._watch()
        except Exception:
            logger.exception("the watch of the rules has ended")
        finally:
            self._give_back()

    def _stood_by(self) -> bool:
        """Wait for the turn; whether to watch now. What changed meanwhile is repaired."""
        assert self._turn is not None
        pause = 0.0
        while not self._closing.wait(pause):
            try:
                if not self._turn.wait(self._ended):
                    break
                self._monitor = self._make_monitor()
            except Exception:
                logger.exception("the rules cannot be watched")
                pause = min(_LAST_PAUSE, 2 * pause or _FIRST_PAUSE)
            else:
                self._repaired()
                return not self._closing.is_set()
        return False

    def _watch(self) -> None:
        monitor = self._monitor
        assert monitor is not None
        pause, what = 0.0, 0
        while pause or (what := monitor.wait()):
            began = time.monotonic()
            if self._is_well(what):
                rest = min(_IDLE_REST, _IDLE_SHARE * (time.monotonic() - began))
            elif self._repaired():
                pause = 0.0
                rest = min(_REST, _SHARE * (time.monotonic() - began))
            else:
                rest = pause = min(_LAST_PAUSE, 2 * pause or _FIRST_PAUSE)
            if self._closing.wait(rest):
                return

    def _is_well(self, what: int) -> bool:
        """Whether there is nothing to repair, at one of two looks.

        The kernel is ahead of what is desired while another process is in the middle of a
        change: so a difference counts when it is there twice.
        """
        agrees, complete = self._work.agrees, self._work.complete
        if agrees is None or what > (RULES if complete else ELEMENTS):
            return False
        try:
            return agrees() or agrees()
        except Exception as error:
            logger.debug("a look at the rules failed, so that they are repaired: %s", error)
            return False

    def _repaired(self) -> bool:
        try:
            repairs = self._work.repair()
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

    def _give_back(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()
        if self._turn is not None:
            self._turn.close()
        self._closing.set()
        self._close_pipe()

    @locked
    def _wake(self) -> None:
        if self._pipe:
            os.write(self._pipe[-1], b".")

    @locked
    def _close_pipe(self) -> None:
        while self._pipe:
            os.close(self._pipe.pop(0))

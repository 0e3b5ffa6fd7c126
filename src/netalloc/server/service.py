"""The daemon's state: one store kept open, its networks watched, calls made and counted."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from netalloc.errors import NetallocError
from netalloc.model import ReconcileResult
from netalloc.operations import answers
from netalloc.operations.host import HostOperations
from netalloc.operations.outcomes import is_expected, message, outcome
from netalloc.operations.rehearsal import Rehearsal
from netalloc.server.calls import CHANGE, Call
from netalloc.server.events import Events
from netalloc.server.metrics import Metrics, StoreMetrics

log = logging.getLogger(__name__)
_LOOK = 10.0  # seconds between two looks at which networks there are, and how full
_HOUR = 3600.0


class Sample(NamedTuple):
    """How full the networks were at a moment (seconds since 1970): name to (held, capacity)."""

    at: float
    networks: dict[str, tuple[int, int]]


class Service:
    """What both sockets serve. Thread-safe."""

    def __init__(self, store: Path | None) -> None:
        self.host = HostOperations(store)
        self.events = Events()
        self.metrics = Metrics()
        self.store_metrics = StoreMetrics(self)
        self.metrics.registry.register(self.store_metrics)
        self.samples: deque[Sample] = deque(maxlen=int(_HOUR / _LOOK))
        self._watches: dict[str, Any] = {}
        self._managers: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="netalloc-look", daemon=True)

    def start(self) -> None:
        """Open the store, finish what was cut off, make the kernel agree, and watch it."""
        self.host.open(make=True)
        self._look()
        self._thread.start()

    def close(self) -> None:
        """End the watches and close the store; the mappings stay."""
        self._stop.set()
        self.events.close()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            for watch in self._watches.values():
                watch.close()
            self._watches.clear()
        self.host.close()

    def call(self, call: Call, arguments: dict[str, Any], *, dry_run: bool = False) -> Any:
        """Make a call, count it and tell of it."""
        begun = time.perf_counter()
        try:
            if dry_run:
                with Rehearsal(self.host.path) as rehearsal:
                    answer = getattr(rehearsal, call.method)(**arguments)
                return answers.Planned([], answer)
            answer = getattr(self.host, call.method)(**arguments)
        except Exception as error:
            self.metrics.failures.labels(call.name, outcome(error).kind).inc()
            if is_expected(error) and log.isEnabledFor(logging.INFO):
                log.info("%s refused: %s", call.name, message(error))
            raise
        finally:
            self.metrics.durations.labels(call.name).observe(time.perf_counter() - begun)
        if call.right == CHANGE:
            try:
                self.tell(call, arguments, answer)
            except Exception:  # the change is made: its caller must not take it for refused
                log.exception("%s was done, but could not be told", call.name)
        return answer

    def tell(self, call: Call, arguments: dict[str, Any], answer: Any) -> None:
        """What a call has changed, to metrics and to who listens."""
        told = _TOLD.get(call.name)
        if told is not None:
            told(self, arguments, answer)
        if call.name in ("create_network", "remove_network", "import"):
            self._look()

    def group_sizes(self) -> tuple[int, int]:
        """How many commits there were, and how many changes were in them."""
        with self._lock:
            managers = list(self._managers.values())
        counted = [manager.commits for manager in managers]
        return sum(count for count, _ in counted), sum(total for _, total in counted)

    def is_well(self) -> bool:
        """Whether the store answers, for the watchdog."""
        try:
            self.host.view().networks()
        except Exception:
            log.debug("the store does not answer", exc_info=True)
            return False
        return True

    def _look_on(self) -> None:
        pause = _LOOK
        while not self._stop.wait(pause):
            begun = time.monotonic()
            try:
                self._look()
            except NetallocError as error:
                log.warning("the networks cannot be looked at, and are again later: %s", error)
            except Exception:
                log.exception("looking at the networks failed, and is tried again")
            pause = max(_LOOK, 20 * (time.monotonic() - begun))

    def _look(self) -> None:
        """Watch the networks there are, which other processes make and remove as well."""
        networks = {one.name: one for one in self.store_metrics.networks()}
        with self._lock:
            there = set(self.host.open())
            for name, manager in list(self._managers.items()):
                # Another process may have removed it, and made one of the same name.
                if name not in there or manager.closed or not manager.registered:
                    self._leave(name)
            for name in there - set(self._managers):
                self._open(name)
        full = {name: (one.held, one.capacity) for name, one in networks.items()}
        self.samples.append(Sample(time.time(), full))

    def _leave(self, name: str) -> None:
        del self._managers[name]
        watch = self._watches.pop(name, None)
        if watch is not None:
            watch.close()

    def _open(self, name: str) -> None:
        try:
            manager = self.host.manager(name)
            if manager.backend != "null":
                self._watches[name] = manager.watch(partial(self._repaired, name))
            self._managers[name] = manager  # where it is not watched, that is tried again
        except (NetallocError, OSError) as error:
            log.warning("network %s is not watched: %s", name, error)

    def _repaired(self, name: str, found: ReconcileResult) -> None:
        lines = list(found.lines())
        self.metrics.repairs.labels(name).inc(len(lines))
        self.events.tell("repaired", {"network": name, "changes": lines[:100]})
        log.warning("network %s was repaired: %s", name, "; ".join(lines[:10]))


def _allocated(service: Service, _: dict[str, Any], lease: answers.Lease) -> None:
    service.metrics.allocations.labels(lease.network).inc()
    ports = [one.host_port for one in lease.ports]
    about = {"network": lease.network, "ip": lease.ip, "owner": lease.owner, "ports": ports}
    service.events.tell("allocated", about)


def _released(service: Service, _: dict[str, Any], answer: answers.Released) -> None:
    service.metrics.releases.labels("").inc(len(answer.addresses))
    service.events.tell("released", {"owner": answer.owner, "ips": answer.addresses})


def _collected(service: Service, _: dict[str, Any], answer: answers.Collected) -> None:
    for network, ips in answer.addresses.items():
        service.metrics.releases.labels(network).inc(len(ips))
        service.events.tell("released", {"network": network, "ips": ips, "owner": None})


def _told(what: str, *names: str) -> Callable[[Service, dict[str, Any], Any], None]:
    """An event of some of the arguments."""

    def told(service: Service, arguments: dict[str, Any], _: Any) -> None:
        service.events.tell(what, {name: arguments.get(name) for name in names})

    return told


def _mended(service: Service, _: dict[str, Any], answer: answers.Done) -> None:
    if answer.done:
        service.metrics.repairs.labels("").inc(len(answer.done))
        service.events.tell("repaired", {"network": None, "changes": answer.done[:100]})


def _all_allocated(service: Service, _: dict[str, Any], leases: list[answers.Lease]) -> None:
    for lease in leases:
        _allocated(service, _, lease)


_TOLD: dict[str, Callable[[Service, dict[str, Any], Any], None]] = {
    "allocate": _allocated,
    "allocate_many": _all_allocated,
    "release": _released,
    "gc": _collected,
    "publish": _told("published", "owner", "ports"),
    "unpublish": _told("unpublished", "owner", "ports"),
    "attach": _told("attached", "owner", "netns", "tap"),
    "detach": _told("detached", "owner"),
    "reserve": _told("reserved", "ip", "owner"),
    "unreserve": _told("unreserved", "ip"),
    "create_network": _told("network created", "name", "subnets"),
    "remove_network": _told("network removed", "name"),
    "reconcile": _mended,
    "repair": _mended,
}

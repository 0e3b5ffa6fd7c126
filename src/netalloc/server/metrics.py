"""What the daemon counts, for Prometheus."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, SummaryMetricFamily

from netalloc.errors import NetallocError

if TYPE_CHECKING:
    from netalloc.operations.answers import Network
    from netalloc.server.service import Service

_FRESH = 5.0  # seconds that what was counted is good for, and more where counting takes long
_SHARE = 20  # of the time, at most, is for counting
_DURATIONS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0)


class Metrics:
    """Counters of calls, and gauges of what is in the store. Thread-safe."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.allocations = Counter(
            "netalloc_allocations", "Addresses given out", ["network"], registry=registry
        )
        self.releases = Counter(
            "netalloc_releases", "Addresses given back", ["network"], registry=registry
        )
        self.failures = Counter(
            "netalloc_failures", "Calls refused, by reason", ["call", "kind"], registry=registry
        )
        self.refusals = Counter(
            "netalloc_refused_callers", "Callers without a right", ["right"], registry=registry
        )
        self.repairs = Counter(
            "netalloc_repairs", "What was repaired in the kernel", ["network"], registry=registry
        )
        self.durations = Histogram(
            "netalloc_call_seconds", "How long calls took", ["call"], buckets=_DURATIONS,
            registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)


class StoreMetrics:
    """What is in the store, counted when it is asked for, but not too often."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._until = 0.0
        self._networks: list[Network] = []

    def describe(self) -> list[Any]:
        """Nothing: or registering would count."""
        return []

    def networks(self) -> list[Network]:
        """Every network, counted some seconds ago at most. O(held) where it is counted anew."""
        with self._lock:
            if time.monotonic() >= self._until:
                begun = time.monotonic()
                self._networks = self._service.host.networks()
                took = time.monotonic() - begun
                self._until = time.monotonic() + max(_FRESH, took * _SHARE)
            return self._networks

    def collect(self) -> Iterator[Any]:
        """The gauges."""
        names = ["network", "family", "state"]
        addresses = GaugeMetricFamily("netalloc_addresses", "Addresses, by state", None, names)
        ports = GaugeMetricFamily("netalloc_published_ports", "Published ports", None, ["network"])
        try:
            networks = self.networks()
        except NetallocError:
            networks = []
        for one in networks:
            for subnet in one.subnets:
                family = "6" if ":" in subnet else "4"
                for state in ("held", "free", "cooling", "reserved", "capacity"):
                    addresses.add_metric([one.name, family, state], getattr(one, state))
            ports.add_metric([one.name], one.published)
        yield addresses
        yield ports
        size = GaugeMetricFamily("netalloc_store_bytes", "Size of the store", None, ["part"])
        for part, suffix in (("file", ""), ("log", "-wal")):
            with suppress(OSError):
                size.add_metric([part], os.stat(f"{self._service.host.path}{suffix}").st_size)  # noqa: PTH116
        yield size
        count, total = self._service.group_sizes()
        yield SummaryMetricFamily(
            "netalloc_commit_group_size", "Changes that shared one commit", count, total
        )
        listeners = GaugeMetricFamily("netalloc_event_listeners", "Who listens to events")
        listeners.add_metric([], self._service.events.listeners)
        yield listeners

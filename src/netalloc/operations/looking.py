"""Looking at a store: no privilege but to read its file, and nothing is changed."""

from __future__ import annotations

import os
from ipaddress import IPv6Address
from pathlib import Path

from netalloc.address_values import as_ip
from netalloc.errors import NotAllocatedError, StoreError
from netalloc.manager.view import NetworkView
from netalloc.operations import answers, describe
from netalloc.operations.asked import Asked, asked
from netalloc.values import as_int, as_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime

    from netalloc.ipam.networks import NetworkInfo
    from netalloc.manager.view import Held


class Looking:
    """What can be seen of a host's store."""

    if TYPE_CHECKING:
        path: Path

        def view(self) -> NetworkView: ...

    def networks(self) -> list[answers.Network]:
        """Every network: its configuration, and how much of it is in use. O(held)."""
        view = self.view()
        usage = {one.network: one for one in view.usage()}
        return [
            describe.network(info, usage[info.name])
            for info in view.networks()
            if info.name in usage
        ]

    def network(self, name: str) -> answers.Network:
        """One network. Raises NotAllocatedError, naming those that are."""
        name = as_text(name, "network name", 64)
        found = self.networks()
        for one in found:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in found) or "none"
        raise NotAllocatedError(f"there is no network {name} in this store; there are: {known}")

    def leases(
        self,
        network: str | None = None,
        owner: str | None = None,
        label: str | None = None,
        containing: str | None = None,
        limit: int | None = None,
    ) -> list[answers.Lease]:
        """What is held: all of it, in a network, by an owner, with a label ("app=shop").

        With `containing` what has that text in its owner, key or address; `limit` at most.
        """
        held = self.view().find(
            owner, network=network, label=label, containing=containing, limit=limit
        )
        return describe.leases(held, self._infos())

    def reservations(self, network: str | None = None) -> list[answers.Reservation]:
        """The addresses that are kept."""
        return [describe.reservation(kept) for kept in self.view().reserved(network)]

    def who(self, what: str, *, kernel: bool = False) -> answers.Who:
        """What holds an address or a host port, or what an owner holds."""
        question = asked(what)
        if question.kind == "owner":
            return self._who_owner(question)
        # A lease may publish a port more than once, on different addresses of the host.
        held = list({one.generation: one for one in self.view().who(question.text)}.values())
        leases = describe.leases(held, self._infos())
        if question.kind == "port":
            note = None
            if not held:
                from netalloc.host.sockets import listener

                note = listener(question.port, question.protocol) or "no lease publishes it"
            said = self.kernel_says(held, question) if kernel and held else None
            return answers.Who(question.text, "port", leases, None, said, note)
        assert question.ip is not None
        past = [one for one in self.view().history(question.ip) if one.end is not None]
        before = (
            describe.past(self._network_of(held, question), question.ip, past[-1]) if past else None
        )
        note = None if held else self.view().why(question.text)
        return answers.Who(question.text, "address", leases, before, None, note)

    def why(self, what: str) -> answers.Why:
        """Why an address or a host port can be had or not, or what became of an owner."""
        question = asked(what)
        view = self.view()
        if question.kind == "owner":
            return self._why_owner(question)
        reason = view.why(question.text)
        if question.kind == "address":
            assert question.ip is not None
            return answers.Why(question.text, "address", view.is_free(question.ip), reason)
        if view.who(question.text):
            return answers.Why(question.text, "port", False, reason)
        from netalloc.host.sockets import listener, reserved_ports

        for place in (None, IPv6Address(0)):
            holder = listener(question.port, question.protocol, place)
            if holder is not None:
                return answers.Why(question.text, "port", False, f"refused: {holder}")
        if question.port in reserved_ports():
            text = (
                f"port {question.port} is in net.ipv4.ip_local_reserved_ports: not picked by itself"
            )
            return answers.Why(question.text, "port", True, text)
        return answers.Why(
            question.text, "port", True, f"{reason}, and no socket of this host has it"
        )

    def history(self, ip: str, at: datetime | None = None) -> list[answers.Past]:
        """What held an address, oldest first; with `at`, what did at that moment."""
        plain = as_ip(ip)
        view = self.view()
        name = view.network_of(plain)
        return [describe.past(name or "", plain, one) for one in view.history(plain, at)]

    def activity(self, owners: int = 10) -> answers.Activity:
        """How busy the host is, with the owners that hold most. O(held)."""
        owners = as_int(owners, "owners", 0, 1000)
        view = self.view()
        allocated, released = view.counters()
        return answers.Activity(
            allocated,
            released,
            self.networks(),
            [answers.Owner(name, *most) for name, most in view.busiest(owners)],
        )

    def doctor(self) -> answers.Health:
        """Each limit of the host: now, limit, for how many more containers, and what raises it.

        Works without a store as well.
        """
        from netalloc.operations import doctor

        try:
            networks, infos = self.networks(), list(self._infos().values())
        except StoreError as error:
            health = doctor.examine(self.path, (), ())
            if self.path.exists():
                finding = doctor.fact("store", "critical", str(error), "netalloc repair")
                return answers.Health("critical", [*health.findings, finding])
            return health
        health = doctor.examine(self.path, networks, infos)
        newest = self.view().newest()
        if newest is None:
            return health
        clock = doctor.clock(newest.timestamp())
        worse = clock.status != "ok" and health.status == "ok"
        return answers.Health(clock.status if worse else health.status, [*health.findings, clock])

    def kernel_says(self, held: list[Held], question: Asked) -> str | None:
        """Whether the kernel leads a port to what holds it; None where that cannot be seen."""
        return None

    def _who_owner(self, question: Asked) -> answers.Who:
        leases = self.leases(owner=question.text)
        before = self._last_ended(question.text)
        note = None if leases else f"{question.text} holds nothing"
        return answers.Who(question.text, "owner", leases, before, None, note)

    def _why_owner(self, question: Asked) -> answers.Why:
        leases, name = self.leases(owner=question.text), question.text
        kept = [one.ip for one in self.reservations() if one.owner == name]
        told = []
        if leases:
            told.append(f"{name} holds {', '.join(lease.ip for lease in leases)}")
        if kept:
            told.append(f"{', '.join(kept)} is reserved for {name}")
        before = self._last_ended(name)
        if not leases:
            told.append(f"{name} holds nothing")
            if before is not None:
                told.append(f"it held {before.ip} of network {before.network} until {before.end}")
        return answers.Why(name, "owner", not leases, "; ".join(told))

    def _last_ended(self, owner: str) -> answers.Past | None:
        ended = self.view().ended(owner)
        return describe.past(*ended[-1]) if ended else None

    def _network_of(self, held: list[Held], question: Asked) -> str:
        if held:
            return held[0].network
        return (self.view().network_of(question.ip) if question.ip else None) or ""

    def _infos(self) -> dict[str, NetworkInfo]:
        return {info.name: info for info in self.view().networks()}


class StoreView(Looking):
    """A store's file, looked at."""

    def __init__(self, store: str | os.PathLike[str]) -> None:
        self.path = Path(store)
        self._view = NetworkView(store)

    def view(self) -> NetworkView:
        """The view of the file."""
        return self._view

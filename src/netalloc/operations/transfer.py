"""A store as a document, and back: to look at, to keep, to move to another host.

The document has a format number. What is imported is made by the calls that make everything
else, so that it is checked as everything else is; an import is all or nothing.
"""

from __future__ import annotations

from netalloc.errors import InUseError, InvalidValueError
from netalloc.manager.undo import Teardown
from netalloc.operations import answers
from netalloc.values import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from netalloc.manager.manager import NetworkManager
    from netalloc.manager.networks import Networks
    from netalloc.manager.view import NetworkView

FORMAT = 1


class Transfer:
    """The part of HostOperations that writes and reads documents."""

    if TYPE_CHECKING:
        networks: Callable[[], list[answers.Network]]
        create_network: Callable[..., answers.Network]
        remove_network: Callable[[str], None]

        def open(self, *, make: bool = False) -> Networks: ...

        def manager(self, network: str | None = None) -> NetworkManager: ...

        def view(self) -> NetworkView: ...

        def leases(
            self,
            network: str | None = None,
            owner: str | None = None,
            label: str | None = None,
            containing: str | None = None,
            limit: int | None = None,
        ) -> list[answers.Lease]: ...

        def reservations(self, network: str | None = None) -> list[answers.Reservation]: ...

    def export(self) -> dict[str, Any]:
        """Networks, leases and reservations, of JSON's types alone. O(held)."""
        return {
            "format": FORMAT,
            "networks": [_configuration(one) for one in self.networks()],
            "reservations": [
                {"network": one.network, "ip": one.ip, "owner": one.owner}
                for one in self.reservations()
            ],
            "leases": [
                {
                    "network": one.network,
                    "ip": one.ip,
                    "owner": one.owner,
                    "key": one.key,
                    "labels": one.labels,
                    "ports": _specs(one),
                }
                for one in self.leases()
            ],
        }

    def import_document(
        self, document: object, *, progress: Callable[[int, int], None] | None = None
    ) -> answers.Done:
        """Make what a document says, beside what is there; what is there already is no error.

        All or nothing: on a conflict (InUseError), or where something cannot be, what this call
        made is taken back. `progress` is told how many of how many are done.
        """
        networks, reservations, leases = _checked(document)
        self.open(make=True)
        undo, done = Teardown(), list[str]()
        total, count = len(networks) + len(reservations) + len(leases), 0
        try:
            known = {one.name: one for one in self.networks()}
            for one in networks:
                done += self._import_network(one, known, undo)
            kept = {(one.network, one.ip, one.owner) for one in self.reservations()}
            for one in reservations:
                if (one["network"], one["ip"], one["owner"]) not in kept:
                    done.append(self._import_reservation(one, undo))
                count += 1
            for one in leases:
                done += self._import_lease(one, undo)
                count += 1
                if progress is not None:
                    progress(len(networks) + count, total)
        except BaseException:
            undo.close()
            raise
        return answers.Done(done)

    def _import_network(
        self, one: dict[str, Any], known: dict[str, answers.Network], undo: Teardown
    ) -> list[str]:
        there = known.get(one["name"])
        if there is not None:
            ours = _configuration(there)
            for what, value in one.items():
                if ours.get(what) != value:
                    raise InUseError(
                        f"network {there.name} is here with {what} {ours.get(what)}, and in the "
                        f"document with {value}",
                        there.name,
                    )
            return []
        self.create_network(**one)
        undo.push(lambda: self.remove_network(one["name"]))
        return [f"network {one['name']}"]

    def _import_reservation(self, one: dict[str, Any], undo: Teardown) -> str:
        manager = self.manager(one["network"])
        manager.reserve(one["ip"], one["owner"])
        undo.push(lambda: manager.unreserve(one["ip"]))
        return f"reservation of {one['ip']}"

    def _import_lease(self, one: dict[str, Any], undo: Teardown) -> list[str]:
        from netalloc.operations.port_spec import port_request

        manager = self.manager(one["network"])
        same = (manager.name, one["owner"], one["key"])
        for held in self.view().who(one["ip"]):
            if (held.network, held.owner, held.key) == same:
                return []
        interface = manager.allocate(
            one["owner"],
            one["ip"],
            key=one["key"],
            labels=one["labels"] or None,
            ports=tuple(map(port_request, one["ports"])),
        )
        undo.push(interface.release)
        return [f"{one['ip']} of {one['owner']}"]


def _configuration(one: answers.Network) -> dict[str, Any]:
    """What create_network was called with."""
    return {
        "name": one.name,
        "subnets": one.subnets,
        "bridge": one.bridge,
        "mode": one.mode,
        "backend": one.backend,
        "exclude": one.exclude,
        "ports": one.host_ports,
        "cooldown": one.cooldown,
        "sticky": one.sticky,
        "forward": one.forward,
        "isolation": one.isolation,
        "services": one.services,
    }


def _specs(lease: answers.Lease) -> list[str]:
    """A lease's ports as port_request() reads them; one that is of both families once."""
    found: dict[str, None] = {}
    for one in lease.ports:
        span = "" if one.count == 1 else f"-{one.host_port + one.count - 1}"
        to = "" if one.count == 1 else f"-{one.container_port + one.count - 1}"
        ip = one.host_ip
        place = "" if ip is None else f"[{ip}]:" if ":" in ip else f"{ip}:"
        found[f"{place}{one.host_port}{span}:{one.container_port}{to}/{one.protocol}"] = None
    return list(found)


_TYPES: dict[str, tuple[type[Any], ...]] = {
    "name": (str,), "subnets": (list,), "bridge": (str, type(None)), "mode": (str,),
    "backend": (str,), "exclude": (list,), "ports": (str, list), "cooldown": (int, float),
    "sticky": (int, float), "forward": (bool,), "isolation": (str,), "services": (list,),
    "network": (str,), "ip": (str,), "owner": (str, type(None)), "key": (str, type(None)),
    "labels": (dict,),
}  # fmt: skip
_FIELDS = {
    "networks": (
        "name", "subnets", "bridge", "mode", "backend", "exclude", "ports", "cooldown", "sticky",
        "forward", "isolation", "services",
    ),
    "reservations": ("network", "ip", "owner"),
    "leases": ("network", "ip", "owner", "key", "labels", "ports"),
}  # fmt: skip


def _checked(document: object) -> list[list[dict[str, Any]]]:
    """The three parts of a document, each record with its fields. Raises InvalidValueError."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise InvalidValueError(f"document of format {shown(found)}, and {FORMAT} can be read")
    return [_records(document.get(part), part) for part in _FIELDS]


def _records(records: object, part: str) -> list[dict[str, Any]]:
    if not isinstance(records, list):
        raise InvalidValueError(f"{part} of the document is no list")
    for number, one in enumerate(records):
        if not isinstance(one, dict) or set(one) != set(_FIELDS[part]):
            raise InvalidValueError(
                f"{part}[{number}] of the document has not the fields {', '.join(_FIELDS[part])}"
            )
        for name, value in one.items():
            if not isinstance(value, _TYPES[name]):
                raise InvalidValueError(f"{part}[{number}].{name} is {shown(value)}")
            if isinstance(value, list) and not all(isinstance(item, str) for item in value):
                raise InvalidValueError(f"{part}[{number}].{name} is not all text")
    return records

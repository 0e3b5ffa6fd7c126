"""Each kind of answer in words: lines and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import singledispatch
from typing import Any

from netalloc.operations import answers

WARNING, CRITICAL = 1, 3  # exit statuses of the doctor


@dataclass
class Table:
    """Rows of text under headers; `right` says which columns are numbers."""

    headers: list[str]
    right: list[bool]
    rows: list[list[str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add(self, *row: str, style: str = "") -> None:
        """One more row; `style` is rich's."""
        self.rows.append(list(row))
        self.styles.append(style)

    def fitted(self, width: int) -> str:
        """As plain text: the widest left-aligned column is folded where it does not fit."""
        widths = [
            max(len(self.headers[i]), *[len(row[i]) for row in self.rows], 0)
            for i in range(len(self.headers))
        ]
        over = sum(widths) + 2 * (len(widths) - 1) - width
        while over > 0:
            foldable = [i for i, right in enumerate(self.right) if not right and widths[i] > 10]
            if not foldable:
                break
            widest = max(foldable, key=lambda i: widths[i])
            cut = min(over, widths[widest] - 10)
            widths[widest] -= cut
            over -= cut
        lines = [self._line(self.headers, widths)]
        for row in self.rows:
            folded = [
                textwrap.wrap(cell, widths[i], break_on_hyphens=False) or [""]
                if len(cell) > widths[i]
                else [cell]
                for i, cell in enumerate(row)
            ]
            lines += [
                self._line([one[n] if n < len(one) else "" for one in folded], widths)
                for n in range(max(map(len, folded)))
            ]
        return "\n".join(lines)

    def _line(self, cells: list[str], widths: list[int]) -> str:
        aligned = [
            cell.rjust(w) if right else cell.ljust(w)
            for cell, w, right in zip(cells, widths, self.right, strict=True)
        ]
        return "  ".join(aligned).rstrip()


@dataclass
class Wrapped:
    """A text that is folded between words; a command so that it may still be pasted."""

    text: str
    indent: int
    command: bool = False

    def fitted(self, width: int) -> str:
        """As lines of that width, the first one aside behind an indent."""
        lines = textwrap.wrap(
            self.text,
            max(width - 2 * self.command, self.indent + 10),
            subsequent_indent=" " * self.indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        return (" \\\n" if self.command else "\n").join(lines)


Part = str | Table | Wrapped


@singledispatch
def parts(answer: object) -> list[Part]:
    """The lines and tables of an answer."""
    raise TypeError(f"no words for {type(answer).__name__}")


@singledispatch
def status(answer: object) -> int:
    """The exit status that an answer means: 0 unless it found something wrong."""
    return 0


@status.register
def _(answer: answers.Findings) -> int:
    return 1 if answer.findings else 0


@status.register
def _(answer: answers.Health) -> int:
    return {"ok": 0, "critical": CRITICAL}.get(answer.status, WARNING)


@parts.register
def _(answer: None) -> list[Part]:
    return []


@parts.register
def _(answer: str) -> list[Part]:
    return [answer]


@parts.register
def _(answer: list) -> list[Part]:  # type: ignore[type-arg]
    if not answer:
        return ["nothing"]
    return _TABLES[type(answer[0])](answer)


@parts.register
def _(answer: answers.Network) -> list[Part]:
    rows = {
        "mode": answer.mode + (f" on {answer.bridge}" if answer.bridge else ""),
        "subnets": ", ".join(answer.subnets),
        "backend": answer.backend,
        "host ports": answer.host_ports,
        "excluded": ", ".join(answer.exclude) or "nothing",
        "cool-down": f"{answer.cooldown:g} s" if answer.cooldown else "none",
        "sticky": f"{answer.sticky:g} s" if answer.sticky else "no",
        "isolation": answer.isolation
        + (f", services {', '.join(answer.services)}" if answer.services else ""),
        "forward": "accepted" if answer.forward else "as the host says",
        "held": f"{number(answer.held)} of {number(answer.capacity)}",
        "free": number(answer.free),
        "cooling": number(answer.cooling),
        "reserved": number(answer.reserved),
        "published": f"{number(answer.published)} ports",
    }
    if answer.bridge_ports is not None:
        rows["bridge ports"] = _bridge_ports(answer)
    wide = max(map(len, rows))
    return [answer.name, *[f"  {name.ljust(wide)}  {value}" for name, value in rows.items()]]


@parts.register
def _(answer: answers.Lease) -> list[Part]:
    return list(lease_lines(answer))


@parts.register
def _(answer: answers.Released) -> list[Part]:
    return [f"released {', '.join(answer.addresses) or 'nothing'} of {answer.owner}"]


@parts.register
def _(answer: answers.Reservation) -> list[Part]:
    kept = f"for {answer.owner}" if answer.owner else "from everyone"
    return [f"{answer.ip} of {answer.network} is kept {kept} since {moment(answer.since)}"]


@parts.register
def _(answer: answers.Collected) -> list[Part]:
    lines: list[Part] = [f"{name}: {', '.join(ips)}" for name, ips in answer.addresses.items()]
    return lines or ["nothing to give back; what is noted now is given back by a later call"]


@parts.register
def _(answer: answers.Findings) -> list[Part]:
    lines: list[Part] = list(answer.findings) or ["all is well"]
    if not answer.compared:
        lines.append("the kernel was not compared: that takes root (CAP_NET_ADMIN)")
    return lines


@parts.register
def _(answer: answers.Done) -> list[Part]:
    return list(answer.done) or ["nothing to do"]


@parts.register
def _(answer: answers.Who) -> list[Part]:
    lines: list[Part] = []
    for lease in answer.leases:
        if answer.kind == "port":
            lines.append(_holder(answer, lease))
        else:
            lines += lease_lines(lease)
    if not answer.leases:
        lines.append(
            f"{answer.asked}: {answer.note}" if answer.kind == "port" else str(answer.note)
        )
    elif answer.note:
        lines.append(answer.note)
    if answer.before is not None:
        before = answer.before
        until = moment(before.end) if before.end else "now"
        what = f"{before.owner or 'no owner'}" if answer.kind == "address" else before.ip
        lines.append(f"before: {what} until {until}")
    return lines


@parts.register
def _(answer: answers.Why) -> list[Part]:
    return [answer.reason]


@parts.register
def _(answer: answers.Health) -> list[Part]:
    table = Table(["STATUS", "LIMIT", "NOW", "OF", "ROOM FOR"], [False, False, True, True, True])
    styles = {"warning": "yellow", "critical": "bold red", "unknown": "dim"}
    rest: list[Part] = []
    for one in answer.findings:
        status = one.status if one.status == "ok" else one.status.upper()
        if one.limit is not None:
            now, limit = number(one.now or 0), number(one.limit)
            room = "" if one.room is None else number(one.room)
            table.add(status, one.text, now, limit, room, style=styles.get(one.status, ""))
        if one.limit is None or one.fix:
            rest.append(Wrapped(f"{status:<8} {one.text}", 9))
        if one.fix:
            rest.append(Wrapped(f"{'':<8} {one.fix}", 9, command=one.fix.startswith("sysctl ")))
    return [table, "", *rest, "", f"this host: {answer.status}"]


def lease_lines(lease: answers.Lease) -> list[str]:
    """A lease in two lines or three, as an operator wants to read it."""
    attached = lease.attachment
    where = ""
    if attached is not None:
        where = (
            f" ({attached.ifname or attached.interface}{'' if attached.made else ', half made'})"
        )
    head = (
        f"{lease.addresses[0]}  {lease.network}  held by {lease.owner or 'no owner'}{where} since "
        f"{moment(lease.since)}, generation {lease.generation}"
    )
    head += "".join([f", {name}={value}" for name, value in sorted(lease.labels.items())])
    lines = [head]
    indent = " " * (len(lease.addresses[0]) + 2)
    if lease.addresses[1:]:
        lines.append(f"{indent}also {', '.join(lease.addresses[1:])}")
    if lease.key is not None:
        lines.append(f"{indent}key {lease.key}")
    if lease.ports:
        lines.append(f"{indent}{ports(lease)}")
    return lines


def ports(lease: answers.Lease) -> str:
    """The ports of a lease: tcp 8080 → 80, 49160 → 8080; one of both families once."""
    by_protocol: dict[str, dict[str, None]] = {}
    for one in lease.ports:
        host = f"{_at(one.host_ip)}{_span(one.host_port, one.count)}"
        to = _span(one.container_port, one.count)
        by_protocol.setdefault(one.protocol, {})[f"{host} → {to}"] = None
    return "; ".join([f"{protocol} {', '.join(found)}" for protocol, found in by_protocol.items()])


def number(value: int) -> str:
    """A count with its thousands apart; one past 10**12, as IPv6 has, by its magnitude."""
    return f"{value:,}" if value < 10**12 else f"{value:.1e}".replace("e+", "e")


def moment(text: str, now: datetime | None = None) -> str:
    """A moment by the clock on this host's wall; the date as well where it is not today."""
    when = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone()
    today = (now or datetime.now().astimezone()).date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M:%S")


def _holder(answer: answers.Who, lease: answers.Lease) -> str:
    protocol, _, port = answer.asked.partition("/")
    leads = [
        f"{_at(one.container_ip)}{one.container_port + int(port) - one.host_port}"
        for one in lease.ports
        if one.protocol == protocol and 0 <= int(port) - one.host_port < one.count
    ]
    said = "" if answer.kernel is None else f", kernel {answer.kernel}"
    return f"{answer.asked}  held by {lease.owner or 'no owner'} ({', '.join(leads)}){said}"


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _bridge_ports(one: answers.Network) -> str:
    if one.bridge_ports is None or one.bridge_ports_limit is None:
        return ""
    near = " !" if one.bridge_ports * 10 >= one.bridge_ports_limit * 9 else ""
    return f"{number(one.bridge_ports)} of {number(one.bridge_ports_limit)}{near}"


def _networks(found: list[answers.Network]) -> list[Part]:
    table = Table(
        ["NETWORK", "SUBNET", "BRIDGE", "HELD", "FREE", "COOLING", "RESERVED", "BRIDGE PORTS"],
        [False, False, False, True, True, True, True, True],
    )
    for one in found:
        table.add(
            one.name,
            " ".join(one.subnets),
            one.bridge or "routed",
            number(one.held),
            number(one.free),
            number(one.cooling),
            number(one.reserved),
            _bridge_ports(one),
        )
    return [table]


def _leases(found: list[answers.Lease]) -> list[Part]:
    table = Table(["ADDRESS", "OWNER", "NETWORK", "INTERFACE", "SINCE", "PORTS"], [False] * 6)
    for one in found:
        attached = one.attachment
        table.add(
            " ".join([address.partition("/")[0] for address in one.addresses]),
            one.owner or "",
            one.network,
            "" if attached is None else attached.ifname or attached.interface,
            moment(one.since),
            ports(one),
        )
    return [table]


def _history(found: list[answers.Past]) -> list[Part]:
    table = Table(["OWNER", "KEY", "FROM", "UNTIL"], [False] * 4)
    for one in found:
        until = "now" if one.end is None else moment(one.end)
        table.add(one.owner or "", one.key or "", moment(one.start), until)
    return [table]


def _reservations(found: list[answers.Reservation]) -> list[Part]:
    table = Table(["ADDRESS", "NETWORK", "KEPT FOR", "SINCE"], [False] * 4)
    for one in found:
        table.add(one.ip, one.network, one.owner or "no owner", moment(one.since))
    return [table]


def _ports(found: list[answers.Port]) -> list[Part]:
    return [
        f"{one.protocol} {_at(one.host_ip)}{_span(one.host_port, one.count)} → "
        f"{_at(one.container_ip)}{_span(one.container_port, one.count)}"
        for one in found
    ]


def _at(ip: str | None) -> str:
    """An address before a port."""
    return "" if ip is None else f"[{ip}]:" if ":" in ip else f"{ip}:"


_TABLES: dict[type[Any], Callable[[list[Any]], list[Part]]] = {
    answers.Network: _networks,
    answers.Lease: _leases,
    answers.Past: _history,
    answers.Reservation: _reservations,
    answers.Port: _ports,
}

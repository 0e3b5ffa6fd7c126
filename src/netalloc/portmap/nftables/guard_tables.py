"""The guard's two tables in the kernel: loaded by nft where they are not as they were left."""

import errno
import logging
from typing import Final

from netalloc.errors import CommandError
from netalloc.host.command import run
from netalloc.host.netlink import NetlinkError, NetlinkSocket
from netalloc.host.netlink_messages import CREATE, attribute, attributes, text
from netalloc.portmap.nftables import batch, elements, fingerprint, guard_rules, ruleset
from netalloc.portmap.nftables.guard_rules import BRIDGE, GUARD, INET, RULES, SETS
from netalloc.portmap.nftables.ruleset import Snapshot

logger = logging.getLogger(__name__)

FAMILY: Final = {INET: b"\x01\0\0\0", BRIDGE: b"\x07\0\0\0"}  # struct nfgenmsg
_TABLE, _NAME, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 2, 4
_CHAIN_NAME, _CHAIN_PARTS, _SET_PARTS = 3, (4, 5, 7, 10), (3, 4, 5, 6, 7)
_ELEMENTS, _KEY, _DATA, _VALUE = 3, 1, 2, 1
_ATTEMPTS = 20  # at tables that another program changes while we load them

Entries = dict[bytes, bytes]  # of a set or map: the keys, each with its data
Held = dict[tuple[str, str], Entries]  # by family and name of the set


def restore(netlink: NetlinkSocket) -> tuple[str, ...]:
    """Load what is not as it was after the last load; what was wrong."""
    before = _snapshot(netlink)
    if before and _is_as_left(netlink, before):
        return ()
    for _ in range(_ATTEMPTS):
        try:
            run(["nft", "-f", "-"], guard_rules.script())
        except CommandError as error:
            if not before:
                raise
            run(["nft", "-f", "-"], guard_rules.script(replace=True))
            logger.warning("tables %s were replaced, for they resisted: %s", GUARD, error)
        after = _snapshot(netlink)
        if all(
            len(after.get(f"rules {family} {chain}", ())) == len(rules)
            for family, chains in RULES.items()
            for chain, rules in chains.items()
        ):
            _leave_mark(netlink, after)
            return tuple(_differences(before, after))
    raise CommandError(f"tables {GUARD} were changed during {_ATTEMPTS} loads")


def is_there(netlink: NetlinkSocket) -> bool:
    """Whether there is a guard on this host."""
    return _is_there(netlink, FAMILY[INET] + text(_TABLE, GUARD))


def is_whole(netlink: NetlinkSocket) -> bool:
    """Whether the fixed part is as it was loaded."""
    return _is_as_left(netlink, _snapshot(netlink))


def listed(netlink: NetlinkSocket, family: str, name: str) -> dict[bytes, tuple[bytes, str]]:
    """What a set or map has: of each key the data and the comment; none where it is missing."""
    found: dict[bytes, tuple[bytes, str]] = {}
    question = elements.head(GUARD, name, FAMILY[family])
    try:
        bodies, _ = netlink.dump(batch.GET_ELEMENT, question)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return found
    for body in bodies:
        data = attributes(body, 4).get(_ELEMENTS, b"")
        start = 0
        while start + 4 <= len(data):
            size = int.from_bytes(data[start : start + 2], "little") or 4
            element = data[start + 4 : start + size]
            start += size + 3 & ~3
            parts = attributes(element)
            key = attributes(parts.get(_KEY, b"")).get(_VALUE, b"")
            value = attributes(parts.get(_DATA, b"")).get(_VALUE, b"")
            found[key] = value, elements.comment_of(element) or ""
    return found


def additions(held: Held, owner: str) -> list[batch.Step]:
    """The steps that add entries; those that are there already are no error.

    A map's entry that leads elsewhere is: EEXIST.
    """
    comment = elements.userdata(owner)
    return [
        step
        for where, entries in held.items()
        for step in _steps(
            batch.NEW_ELEMENT,
            CREATE,
            where,
            [elements.headed(_pair(key, data) + comment) for key, data in entries.items()],
        )
    ]


def deletions(held: Held) -> list[batch.Step]:
    """The steps that delete these keys, which have to be there."""
    return [
        step
        for where, entries in held.items()
        for step in _steps(
            batch.DELETE_ELEMENT, 0, where, [elements.headed(_entry(_KEY, key)) for key in entries]
        )
    ]


def table_deletions(netlink: NetlinkSocket) -> list[batch.Step]:
    """The steps that remove those of the two tables that there are."""
    return [
        ruleset.table_deletion(GUARD, FAMILY[family])
        for family, head in FAMILY.items()
        if _is_there(netlink, head + text(_TABLE, GUARD))
    ]


def _steps(kind: int, flags: int, where: tuple[str, str], whole: list[bytes]) -> list[batch.Step]:
    family, name = where
    head = elements.head(GUARD, name, FAMILY[family])
    return [
        batch.Step(kind, flags, head + attribute(_ELEMENTS, b"".join(piece)))
        for piece in elements.split(whole)
    ]


def _pair(key: bytes, data: bytes) -> bytes:
    return _entry(_KEY, key) + (_entry(_DATA, data) if data else b"")


def _entry(kind: int, value: bytes) -> bytes:
    return attribute(kind, attribute(_VALUE, value))


def _snapshot(netlink: NetlinkSocket) -> Snapshot:
    """The fixed part of both tables; what is missing has no entry."""
    found: Snapshot = {}
    for family, head in FAMILY.items():
        table = head + text(_TABLE, GUARD)
        if not _is_there(netlink, table):
            continue
        found[f"table {family}"] = ()
        for body in _ours(netlink, ruleset.GET_SET, table):
            name = _word(body, _NAME)
            if name in SETS[family]:
                found[f"set {family} {name}"] = _parts(body, _SET_PARTS)
        for body in _ours(netlink, ruleset.GET_CHAIN, head):
            if (name := _word(body, _CHAIN_NAME)) in RULES[family]:
                found[f"chain {family} {name}"] = _parts(body, _CHAIN_PARTS)
        for body in _ours(netlink, ruleset.GET_RULE, table):
            where = f"rules {family} {_word(body, _RULE_CHAIN)}"
            found[where] = *found.get(where, ()), body.get(_RULE_EXPRESSIONS, b"")
    return found


def _is_there(netlink: NetlinkSocket, table: bytes) -> bool:
    try:
        netlink.call(ruleset.GET_TABLE, table)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _ours(netlink: NetlinkSocket, kind: int, question: bytes) -> list[dict[int, bytes]]:
    bodies = [attributes(body, 4) for body in netlink.dump(kind, question)[0]]
    return [body for body in bodies if _word(body, _TABLE) == GUARD]


def _parts(body: dict[int, bytes], parts: tuple[int, ...]) -> tuple[bytes, ...]:
    return tuple([body.get(part, b"") for part in parts])


def _word(body: dict[int, bytes], kind: int) -> str:
    return body.get(kind, b"").rstrip(b"\0").decode(errors="replace")


def _is_as_left(netlink: NetlinkSocket, state: Snapshot) -> bool:
    return fingerprint.fits(netlink, GUARD, fingerprint.digest(state, guard_rules.script()))


def _leave_mark(netlink: NetlinkSocket, state: Snapshot) -> None:
    mark = fingerprint.digest(state, guard_rules.script())
    try:
        fingerprint.leave(netlink, GUARD, mark)
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # the last guarded network left at this moment
            raise


def _differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What was wrong, in words; nothing where the tables are new."""
    if not before:
        return [f"tables {GUARD} were missing"]
    return [
        f"{what} of {GUARD} {'had been changed' if what in before else 'was missing'}"
        for what, right in after.items()
        if before.get(what) != right
    ]

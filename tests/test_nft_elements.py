"""Mappings in the wire format of nftables' maps."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netalloc.errors import InUseError
from netalloc.host.netlink_messages import ACK, attributes, message
from netalloc.model import PortMapping
from netalloc.portmap.nftables import batch, elements, maps
from netalloc.portmap.nftables import single as singly
from netalloc.values import PROTOCOLS

# Little-endian, by hand from linux/netfilter/nf_tables.h; test_nftables.py has nft itself
# add the same elements and compares.
GOLDEN = {
    PortMapping(8080, ("10.0.0.2", 80)): (
        "dnat_any",
        "10000100 0c000100 06000000 1f900000 10000200 0c000100 0a000002 00500000",
    ),
    PortMapping(53, ("10.0.0.2", 5353), "udp", "192.0.2.1"): (
        "dnat_ip",
        "14000100 10000100 c0000201 11000000 00350000 10000200 0c000100 0a000002 14e90000",
    ),
    PortMapping(9000, ("10.0.0.3", 9000), count=300): (
        "block_any",
        (
            "10000100 0c000100 06000000 23280000 10000a00 0c000100 06000000 24530000 "
            "0c000200 08000100 0a000003"
        ),
    ),
    PortMapping(9000, ("10.0.0.3", 9000), "sctp", "192.0.2.1", 300): (
        "block_ip",
        (
            "14000100 10000100 c0000201 84000000 23280000 14000a00 10000100 c0000201 84000000 "
            "24530000 0c000200 08000100 0a000003"
        ),
    ),
}

addresses = st.integers(1, 2**32 - 1).map(IPv4Address)
ports = st.integers(1, 65535)
printable = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])
owners = st.none() | st.text(printable, min_size=1, max_size=255).filter(
    lambda owner: len(owner.encode()) <= 255
)
single = st.builds(
    PortMapping,
    ports,
    st.tuples(addresses, ports),
    st.sampled_from(PROTOCOLS),
    st.none() | addresses,
    owner=owners,
)
block = ports.flatmap(
    lambda port: st.builds(
        PortMapping,
        st.just(port),
        st.tuples(addresses, st.just(port)),
        st.sampled_from(PROTOCOLS),
        st.none() | addresses,
        st.integers(1, 65536 - port),
        owners,
    )
)
mappings = single | block


@pytest.mark.parametrize("mapping", GOLDEN, ids=lambda mapping: GOLDEN[mapping][0])
def test_golden(mapping):
    name, expected = GOLDEN[mapping]
    assert maps.map_type_of(mapping).name == name
    assert elements.entry(mapping).hex(" ", 4) == expected


@given(st.lists(mappings, max_size=40))
def test_what_is_encoded_is_decoded(batch):
    batch = list(apart(batch))
    back = []
    for name, held in elements.entries(batch).items():
        map_ = maps.MAP_TYPES[name]
        found = {}
        encoded = elements.encode(held, map_)
        for piece in elements.split(encoded):
            body = elements.body("netalloc", map_.name, piece)
            assert len(body) < 65536
            assert elements.listed(body, map_, found) == len(piece)
        assert elements.decode_all(found, map_, back) == []
        for piece in elements.encode_keys(held, map_):
            assert any(piece[4:] == entry[: len(piece) - 4] for entry in held)
    assert set(back) == set(batch)
    by_key = {mapping: mapping for mapping in back}
    for mapping in batch:
        assert entry_of_both_ways(mapping)
        shown = by_key[mapping].owner
        assert (shown is None) == (mapping.owner is None)
        if mapping.owner is not None:
            assert len(shown.encode()) <= 251
            if mapping.owner.isascii() and mapping.owner.isprintable():
                assert shown == mapping.owner[:251].replace('"', "?")


def apart(batch):
    """Those of which no element is another's."""
    seen = set()
    for mapping in batch:
        entries = elements.entries_of(mapping)
        if seen.isdisjoint(entries):
            seen.update(entries)
            yield mapping


def entry_of_both_ways(mapping):
    """The quick way of many and the plain way of one agree."""
    held = elements.entries([mapping])[maps.map_type_of(mapping).name]
    return [*held] == elements.entries_of(mapping)


ENTRIES = [bytes.fromhex(golden[1]) for golden in GOLDEN.values()]
listable = st.binary(max_size=80) | st.binary(min_size=32, max_size=32) | st.sampled_from(ENTRIES)


@given(listable, st.sampled_from(list(maps.MAP_TYPES.values())))
def test_a_strangers_element_is_no_mapping_or_a_right_one(data, map_):
    found = elements.decode(data, b"", map_)
    several = []
    assert elements.decode_all({data: b""}, map_, several) == ([data] if found is None else [])
    assert several == ([] if found is None else [found])
    if found is not None:
        assert maps.map_type_of(found).block <= map_.block


@given(st.binary(max_size=300), st.sampled_from(list(maps.MAP_TYPES.values())))
def test_a_listing_that_is_garbage_ends(data, map_):
    elements.listed(b"\2\0\0\0" + data, map_, {})
    attributes(data)


def test_an_owner_survives_what_nft_cannot_quote():
    wanted = {
        'say "x"': "say ?x?",
        "a\u2028b": "a?b",
        "ü" * 127: "ü" * 125,  # cut at a whole character
        "x" * 255: "x" * 251,
    }
    for owner, shown in wanted.items():
        mapping = PortMapping(1, ("10.0.0.1", 1), owner=owner)
        (element,) = elements.encode({elements.entry(mapping): mapping}, maps.DNAT_ANY)
        found = {}
        elements.listed(elements.body("t", "dnat_any", [element]), maps.DNAT_ANY, found)
        ((entry, rest),) = found.items()
        assert elements.decode(entry, rest, maps.DNAT_ANY).owner == shown


def test_a_batch_names_no_mapping_twice():
    mapping = PortMapping(1, ("10.0.0.1", 1))
    with pytest.raises(InUseError, match="twice"):
        elements.entries([mapping, mapping])


def test_a_message_never_outgrows_its_nesting():
    longest = [PortMapping(p, ("10.0.0.1", 1), owner="x" * 255) for p in range(1, 2000)]
    held = elements.entries(longest)["dnat_any"]
    pieces = list(elements.split(elements.encode(held, maps.DNAT_ANY)))
    assert sum(map(len, pieces)) == len(longest)
    assert max(len(elements.body("netalloc", "dnat_any", piece)) for piece in pieces) < 65_000


@given(single, st.integers(1, 0x7FFFFFFF))
def test_the_messages_about_one_are_those_of_a_batch(mapping, number):
    what = map_, entry = singly.entry(mapping)
    assert (map_, entry) == (maps.map_type_of(mapping), elements.entry(mapping))
    held = elements.entries([mapping])
    for made, steps in (
        (singly.adding("web")(number, mapping), batch.additions("web", held)),
        (singly.removing("web")(number, what), batch.removals("web", held)),
    ):
        messages = [message(step.kind, step.flags, number, step.body) for step in steps[:-1]]
        last = steps[-1]
        messages.append(message(last.kind, last.flags | ACK, number, last.body))
        assert made == batch.BEGINNING + b"".join(messages) + batch.ENDING
    question = elements.body("web", map_.name, elements.encode_keys([entry], map_))
    assert singly.asking("web")(number, what) == message(batch.GET_ELEMENT, 0, number, question)

"""Netlink messages, and the socket that carries them."""

import errno
import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import Private
from netalloc.errors import CommandError
from netalloc.host import netlink_messages
from netalloc.host.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkError, NetlinkSocket
from netalloc.host.netlink_error import failure_in

GET_LINK, GET_GENERATION = 18, 10 << 8 | 16
BATCH_BEGIN, BATCH_END, NEW_TABLE = 0x10, 0x11, 10 << 8
SUBSYSTEM = b"\0\0\0\x0a"
IPV4 = b"\2\0\0\0"

attribute_lists = st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=70), max_size=8)


def test_golden():
    body = IPV4 + netlink_messages.text(1, "web")
    assert netlink_messages.message(NEW_TABLE, netlink_messages.CREATE, 7, body).hex(" ", 4) == (
        "1c000000 000a0104 07000000 00000000 02000000 08000100 77656200"
    )


@given(attribute_lists)
def test_attributes_are_read_back(wanted):
    packed = b"".join(netlink_messages.attribute(kind, value) for kind, value in wanted.items())
    assert len(packed) % 4 == 0
    assert netlink_messages.attributes(packed) == wanted
    assert netlink_messages.attributes(b"head" + packed, 4) == wanted


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 2**32 - 1), st.binary())))
def test_messages_are_read_back(wanted):
    packed = b"".join(netlink_messages.message(kind, 0, seq, body + bytes(-len(body) % 4))
                      for kind, seq, body in wanted)  # fmt: skip
    found = [(kind, seq, packed[start:stop])
             for kind, _, seq, start, stop in netlink_messages.messages(packed)]  # fmt: skip
    assert found == [(kind, seq, body + bytes(-len(body) % 4)) for kind, seq, body in wanted]


@given(st.binary(max_size=200))
def test_garbage_ends(data):
    for kind, flags, seq, start, stop in netlink_messages.messages(data):
        assert stop <= len(data)
        if kind == netlink_messages.ERROR and stop - start >= 20:
            failure_in(data, flags, seq, start, stop)
    netlink_messages.attributes(data)


@pytest.fixture
def host():
    with Private():
        yield


@pytest.fixture
def nft(host):
    made = NetlinkSocket(NETLINK_NETFILTER)
    yield made
    made.close()


def batch(sock, *steps):
    """Send (kind, flags, body) messages as one transaction."""
    first = sock.sequence(len(steps) + 2)
    last = first + len(steps)
    packed = netlink_messages.message(BATCH_BEGIN, 0, first, SUBSYSTEM)
    for seq, (kind, flags, body) in enumerate(steps, first + 1):
        packed += netlink_messages.message(
            kind, flags | (netlink_messages.ACK if seq == last else 0), seq, body
        )
    sock.transact(packed + netlink_messages.message(BATCH_END, 0, last + 1, SUBSYSTEM), first, last)
    return first


def table(name, flags=netlink_messages.CREATE):
    return NEW_TABLE, flags, IPV4 + netlink_messages.text(1, name)


def tables(sock):
    bodies, consistent = sock.dump(10 << 8 | 1, IPV4)
    assert consistent
    return {netlink_messages.attributes(body, 4)[1].rstrip(b"\0").decode() for body in bodies}


@pytest.mark.root
def test_a_transaction_is_all_or_nothing_and_names_the_culprit(nft):
    batch(nft, table("one"), table("two"))
    assert tables(nft) == {"one", "two"}
    steps = [
        table("three"),
        table("four"),
        table("two", netlink_messages.CREATE | netlink_messages.EXCLUSIVE),
    ]
    for position in range(3):
        with pytest.raises(NetlinkError, match="File exists") as refused:
            batch(nft, *steps[position:], *steps[:position])
        assert refused.value.errno == errno.EEXIST
        # The message's number, and in it the attribute: the table's name behind the headers.
        assert refused.value.seq == nft._seq - 1 - position
        assert refused.value.offset == 20
        assert tables(nft) == {"one", "two"}
    batch(nft, table("three"))  # nothing of the failure is left to be read
    assert tables(nft) == {"one", "two", "three"}


@pytest.mark.root
def test_the_first_of_several_errors_is_told(nft):
    missing = 10 << 8 | 2, 0, IPV4 + netlink_messages.text(1, "missing")
    with pytest.raises(NetlinkError) as refused:
        batch(nft, table("one"), missing, table("two"), missing)
    assert refused.value.errno == errno.ENOENT
    assert refused.value.seq == nft._seq - 3
    assert tables(nft) == set()


@pytest.mark.root
def test_calls_and_dumps_raise_what_the_kernel_says(nft):
    (answer,) = nft.call(GET_GENERATION, IPV4)
    assert 1 in netlink_messages.attributes(answer, 4)
    with pytest.raises(NetlinkError, match="No such file"):
        nft.call(10 << 8 | 1, IPV4 + netlink_messages.text(1, "missing"))
    with pytest.raises(NetlinkError, match="No such file"):
        nft.dump(
            10 << 8 | 13,
            IPV4 + netlink_messages.text(1, "missing") + netlink_messages.text(2, "set"),
        )
    assert isinstance(NetlinkError(errno.EPERM), CommandError)
    assert "CAP_NET_ADMIN" in str(NetlinkError(errno.EPERM))
    assert str(NetlinkError(errno.EEXIST, text="why")) == "netlink: File exists: why"


@pytest.mark.root
def test_answers_of_a_call_that_was_interrupted_confuse_nobody(nft):
    # As if the caller had been stopped between the two halves of each.
    nft._send(netlink_messages.message(GET_GENERATION, netlink_messages.ACK, nft.sequence(), IPV4))
    nft._send(netlink_messages.message(10 << 8 | 1, netlink_messages.DUMP, nft.sequence(), IPV4))
    batch(nft, table("one"))
    assert tables(nft) == {"one"}
    nft._send(netlink_messages.message(GET_GENERATION, netlink_messages.ACK, nft.sequence(), IPV4))
    assert nft.call(GET_GENERATION, IPV4)
    # A dump that finds something goes on, and lets no other begin, until it has been read.
    nft._send(netlink_messages.message(10 << 8 | 1, netlink_messages.DUMP, nft.sequence(), IPV4))
    assert tables(nft) == {"one"}


def one(number, step):
    """A transaction of one message, packed for transact_one."""
    kind, flags, body = step
    begin, end = (
        netlink_messages.message(enclosing, 0, 0, SUBSYSTEM)
        for enclosing in (BATCH_BEGIN, BATCH_END)
    )
    return begin + netlink_messages.message(kind, flags | netlink_messages.ACK, number, body) + end


@pytest.mark.root
def test_a_transaction_of_one_is_made_or_refused(nft):
    again = table("one", netlink_messages.CREATE | netlink_messages.EXCLUSIVE)
    nft.transact_one(one, table("one"))
    with pytest.raises(NetlinkError, match="File exists") as refused:
        nft.transact_one(one, again)
    assert (refused.value.errno, refused.value.seq) == (errno.EEXIST, nft._seq)
    # What another call left to be read, an ACK and an error, is passed over.
    nft._send(netlink_messages.message(GET_GENERATION, netlink_messages.ACK, nft.sequence(), IPV4))
    nft._send(one(nft.sequence(), again))
    nft.transact_one(one, table("two"))
    nft._seq = 0x7FFFFFFF - 1
    for name in ("three", "four"):
        nft.transact_one(one, table(name))
    assert nft._seq == 1
    assert tables(nft) == {"one", "two", "three", "four"}


@pytest.mark.root
def test_a_transaction_of_one_without_an_answer_is_an_error(nft):
    def silent(number, step):
        return one(number + 1, step)

    with pytest.raises(NetlinkError, match="no acknowledgement"):
        nft.transact_one(silent, table("one"))
    with pytest.raises(NetlinkError) as failed:
        nft.transact_one(lambda *_: bytes(16), None)
    assert failed.value.errno in (errno.EAGAIN, errno.EIO)
    nft.close()
    with pytest.raises(NetlinkError) as failed:
        nft.transact_one(one, table("one"))
    assert (failed.value.errno, failed.value.seq) == (errno.EBADF, 0)
    assert not nft._lock.locked()


@pytest.mark.root
def test_threads_get_their_own_answers(nft):
    names = [f"t{i}" for i in range(4)]
    batch(nft, *map(table, names))
    wrong = []

    def ask(name):
        for _ in range(200):
            (answer,) = nft.call(10 << 8 | 1, IPV4 + netlink_messages.text(1, name))
            if netlink_messages.attributes(answer, 4)[1] != name.encode() + b"\0":
                wrong.append(name)
            if tables(nft) != set(names):
                wrong.append("dump")

    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.root
def test_sequence_numbers_start_again_before_they_end(nft):
    nft._seq = 0x7FFFFFFF - 2
    first = batch(nft, table("one"), table("two"))
    assert first == 1
    assert tables(nft) == {"one", "two"}


@pytest.mark.root
def test_room_grows_on_request_and_a_send_beyond_it_is_an_error(nft, monkeypatch):
    small = nft.max_message
    huge = netlink_messages.message(GET_GENERATION, 0, 1, bytes(4 * small))
    with pytest.raises(NetlinkError, match="Message too long"):
        nft._send(huge)
    nft._send(bytes(small))  # `room` is exact: this many bytes go through
    with pytest.raises(NetlinkError, match="Message too long"):
        nft._send(bytes(small + 1))
    assert nft.can_send(len(huge))
    nft._send(huge)
    monkeypatch.setattr(NetlinkSocket, "_grow", lambda *_: None)
    assert not nft.can_send(2**30)


@pytest.mark.root
def test_a_socket_stays_in_its_namespace(host):
    outer = NetlinkSocket(NETLINK_ROUTE)
    links = len(outer.dump(GET_LINK, bytes(16))[0])
    with Private():
        os.system("ip link add name other type bridge")
        inner = NetlinkSocket(NETLINK_ROUTE)
        assert len(inner.dump(GET_LINK, bytes(16))[0]) == links + 1
        assert len(outer.dump(GET_LINK, bytes(16))[0]) == links
        inner.close()
    outer.close()
    outer.close()


def test_a_protocol_that_does_not_exist():
    with pytest.raises(NetlinkError, match="no netlink protocol 31"):
        NetlinkSocket(31)


def test_an_error_without_an_explanation():
    body = struct.pack("=i", -errno.EINVAL) + struct.pack("=IHHII", 16, 1, 0, 5, 0)
    failure = failure_in(body, 0, 5, 0, len(body))
    assert (failure.errno, failure.seq, failure.offset) == (errno.EINVAL, 5, None)
    assert failure_in(bytes(20), 0, 5, 0, 20) is None

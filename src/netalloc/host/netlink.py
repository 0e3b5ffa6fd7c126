"""Raw netlink: packing messages, and a socket that sends them and reads the answers.

Formats are those of RFC 3549 and the kernel's linux/netlink.h. Encoding by hand costs
a tenth of what a general netlink library takes, and a mapping is one such message.
"""

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TypeVar

from netalloc import forks
from netalloc.host.netlink_error import NetlinkError as NetlinkError
from netalloc.host.netlink_error import explaining as explaining
from netalloc.host.netlink_error import failure_in
from netalloc.host.netlink_messages import (
    ACK,
    DONE,
    DUMP,
    DUMP_INTERRUPTED,
    ERROR,
    REQUEST,
    message,
    messages,
)
from netalloc.locks import locked

T = TypeVar("T")
Request = tuple[int, int, bytes]  # kind, flags besides NLM_F_REQUEST and NLM_F_ACK, body

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12


_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_RECEIVE_ROOM = 4 << 20  # errors and answers of a whole batch wait here to be read
_LEAST_HELD = 16  # answers: more than that the smallest receive buffer has room for
_SMALL_BATCH = 2048  # bytes: a send buffer is larger
_NUMBERS = 0x7FFFFFFF  # of messages, from 1
_NOW = int(socket.MSG_DONTWAIT)
_SMALL = 448  # bytes: any answer to one message, in memory that Python has at hand

_HEADER = struct.Struct("=IHHII")
_ANSWER = struct.Struct("=4xH2xI4xi")  # kind and number, and the errno of an NLMSG_ERROR
_ERRNO = struct.Struct("=i")


class NetlinkSocket:
    """A kept netlink socket of the network namespace in which it was opened.

    Safe for threads: one request at a time. After a fork the child must open its own.
    """

    def __init__(self, protocol: int, groups: int = 0, *, small: bool = False) -> None:
        """`small` is for a few messages and then closing: opened in half the time."""
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
            )
        except OSError as error:
            raise NetlinkError(
                error.errno or errno.EPROTONOSUPPORT, text=f"no netlink protocol {protocol}"
            ) from None
        try:
            for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            if not small:
                self._grow(_SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_ROOM)
            self._socket.bind((0, groups))
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OSError):
                raise NetlinkError(error.errno or errno.EIO) from None
            raise
        self._lock = Lock()
        self._seq = 0
        self.max_message = _SMALL_BATCH if small else self._limit()
        self._answers_held = _LEAST_HELD if small else self._room_for_answers()
        self.pid = forks.process

    @property
    def portid(self) -> int:
        """The number by which the kernel tells whose messages these are."""
        return int(self._socket.getsockname()[0])

    def fileno(self) -> int:
        """For select and its kin."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back; a second time is no error."""
        self._socket.close()

    @locked
    def sequence(self, count: int = 1) -> int:
        """The first of `count` fresh message numbers."""
        return self._numbered(count)

    def _numbered(self, count: int) -> int:
        first = self._seq + 1
        if first + count > _NUMBERS:
            first = 1
        self._seq = first + count - 1
        return first

    def can_send(self, size: int) -> bool:
        """Whether one send of `size` bytes fits, after asking the kernel for a larger buffer.

        A user namespace may not go past net.core.wmem_max: there a send that is larger
        than `max_message` ends with EMSGSIZE.
        """
        if size > self.max_message:
            self._grow(_SO_SNDBUFFORCE, socket.SO_SNDBUF, size)
            self.max_message = self._limit()
        return size <= self.max_message

    @locked
    def transact(self, batch: bytes, first: int, last: int) -> None:
        """Send messages numbered first to last, of which the last asks for an ACK, in one piece.

        Raises the first NetlinkError that the kernel reports. The kernel works inside
        the send, so that its answers wait when that returns.
        """
        self._send(batch)
        answer = self._waiting()
        if not answer or _ANSWER.unpack_from(answer) != (ERROR, last, 0):
            self._settle(answer, first, last)

    def transact_one(self, pack: Callable[[int, T], bytes], what: T) -> None:
        """The same for `pack(number, what)`, in which one message has a number and asks for an ACK.

        A third of the time, besides the two system calls: all of it stands here.
        """
        lock = self._lock
        try:
            lock.acquire()
            self._seq = number = self._seq % _NUMBERS + 1
            try:
                self._socket.send(pack(number, what))
                answer = self._socket.recv(_SMALL, _NOW)
            except OSError as error:
                raise NetlinkError(error.errno or errno.EIO) from None
            if _ANSWER.unpack_from(answer) != (ERROR, number, 0):
                self._settle(answer, number, number)
        finally:
            try:
                lock.release()
            except RuntimeError:
                pass  # the interrupt came while waiting

    @locked
    def ask_one(self, pack: Callable[[int, T], bytes], what: T) -> bytes:
        """Send the question that `pack(number, what)` makes; the body of its one answer.

        It asks for no ACK. Raises NetlinkError when the kernel refuses.
        """
        self._seq = number = self._seq % _NUMBERS + 1
        self._send(pack(number, what))
        while True:
            data = self._receive()
            for kind, flags, seq, start, stop in messages(data):
                if seq == number and kind != ERROR:
                    return data[start:stop]
                failure = failure_in(data, flags, seq, start, stop) if seq == number else None
                if failure is not None:
                    raise failure

    def _settle(self, answer: bytes, first: int, last: int) -> None:
        """Read on until there is what the kernel says of messages first to last."""
        failure: NetlinkError | None = None
        acknowledged = False
        while answer and not (acknowledged and failure is None):
            for kind, flags, seq, start, stop in messages(answer):
                if kind != ERROR or not first <= seq <= last:
                    continue
                found = failure_in(answer, flags, seq, start, stop)
                failure = failure or found
                acknowledged = acknowledged or (found is None and seq == last)
            if not acknowledged or failure is not None:
                answer = self._waiting()
        if failure is not None:
            raise failure
        if not acknowledged:
            raise NetlinkError(errno.EIO, last, text="no acknowledgement")

    def call(self, kind: int, body: bytes, flags: int = 0) -> list[bytes]:
        """Send one message; the bodies that answer it, in order.

        Raises NetlinkError when the kernel refuses.
        """
        return self._ask(kind, [body], flags, 0)

    def call_each(
        self, kind: int, bodies: Sequence[bytes], passed: int = errno.ENOENT
    ) -> list[bytes]:
        """Send many in one piece; the answers of those for which there is something.

        `passed` is what the kernel says where there is nothing.
        """
        return self._ask(kind, bodies, 0, passed)

    def _ask(self, kind: int, bodies: Sequence[bytes], flags: int, passed: int) -> list[bytes]:
        first = self.sequence(len(bodies))
        batch = [message(kind, flags | ACK, first + i, body) for i, body in enumerate(bodies)]
        return self._answers(b"".join(batch), first, first + len(bodies) - 1, passed)

    @locked
    def _answers(self, batch: bytes, first: int, last: int, passed: int) -> list[bytes]:
        answers: list[bytes] = []
        failure: NetlinkError | None = None
        self._send(batch)
        while True:
            data = self._receive()
            for answer, flags, seq, start, stop in messages(data):
                if not first <= seq <= last:
                    continue
                if answer != ERROR:
                    answers.append(data[start:stop])
                    continue
                refusal = failure_in(data, flags, seq, start, stop)
                if refusal is not None and refusal.errno != passed:
                    failure = failure or refusal
                if seq == last:
                    if failure is not None:
                        raise failure
                    return answers

    def outcomes(
        self, requests: Sequence[Request], answers: list[bytes] | None = None
    ) -> list[NetlinkError | None]:
        """Send many messages of any kinds, in as few pieces as there is room for their errors.

        What the kernel says of each, in order: None where it was done. One that is refused
        keeps none of the others from being done. The bodies that answer questions among them
        are put into `answers`; of those no more than 32 have room.
        """
        held = self._answers_held
        if len(requests) <= held:
            return self._outcomes(requests, answers)
        found: list[NetlinkError | None] = []
        for start in range(0, len(requests), held):
            found += self._outcomes(requests[start : start + held], answers)
        return found

    @locked
    def _outcomes(
        self, requests: Sequence[Request], answers: list[bytes] | None
    ) -> list[NetlinkError | None]:
        count = len(requests)
        if not count:
            return []
        first = self._numbered(count)
        number, pack, batch = first, _HEADER.pack, []
        for kind, flags, body in requests:
            batch.append(pack(16 + len(body), kind, flags | REQUEST, number, 0) + body)
            number += 1
        # Errors come unasked, so the end of the last one says that all are done.
        batch[-1] = pack(16 + len(body), kind, flags | REQUEST | ACK, number - 1, 0) + body
        data = b"".join(batch)
        if len(data) > self.max_message:
            self.can_send(len(data))
        self._send(data)
        return self._read_outcomes(first, count, answers)

    def _read_outcomes(
        self, first: int, count: int, answers: list[bytes] | None
    ) -> list[NetlinkError | None]:
        found: list[NetlinkError | None] = [None] * count
        last = first + count - 1
        while True:
            data = self._receive()
            for kind, flags, seq, start, stop in messages(data):
                if not first <= seq <= last:
                    continue
                if kind != ERROR:
                    if answers is not None:
                        answers.append(data[start:stop])
                else:
                    found[seq - first] = failure_in(data, flags, seq, start, stop)
                    if seq == last:
                        return found

    def dump(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        """Send one dump request; the bodies that answer it, and whether they are one moment's.

        False says that something changed while the kernel listed. Raises NetlinkError.
        """
        try:
            return self._dump(kind, body, self.sequence())
        except NetlinkError as error:
            if error.errno != errno.EBUSY:
                raise
        # A dump that an interrupt cut off goes on until its answer has been read.
        self._drain()
        return self._dump(kind, body, self.sequence())

    @locked
    def _drain(self) -> None:
        try:
            while self._socket.recv(1 << 16, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO) from None

    @locked
    def _dump(self, kind: int, body: bytes, seq: int) -> tuple[list[bytes], bool]:
        bodies: list[bytes] = []
        consistent = True
        self._send(message(kind, DUMP, seq, body))
        while True:
            data = self._receive(1 << 16)  # what one answer to a dump can have
            for answer, flags, number, start, stop in messages(data):
                if number != seq:
                    continue
                if flags & DUMP_INTERRUPTED:
                    consistent = False
                if answer == DONE:
                    code = _ERRNO.unpack_from(data, start)[0] if stop - start >= 4 else 0
                    if code < 0:
                        raise NetlinkError(-code, seq)
                    return bodies, consistent
                if answer == ERROR:
                    failure = failure_in(data, flags, seq, start, stop)
                    if failure is not None:
                        raise failure
                else:
                    bodies.append(data[start:stop])

    def attach_filter(self, program: Sequence[tuple[int, int, int, int]]) -> None:
        """Have the kernel drop datagrams by a classic BPF program (linux/filter.h)."""
        import ctypes  # 3 ms, which a plugin that only maps a port need not pay

        code = b"".join(struct.pack("=HBBI", *step) for step in program)
        held = ctypes.create_string_buffer(code, len(code))
        self._socket.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(program), ctypes.addressof(held)),
        )

    def events(self) -> list[tuple[int, bytes]]:
        """The multicast messages waiting now: kind and body.

        Empty when none wait. Raises NetlinkError with ENOBUFS when some were lost.
        """
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                raise NetlinkError(error.errno or errno.EIO) from None
            found += [(kind, data[start:stop]) for kind, _, _, start, stop in messages(data)]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO) from None

    def _waiting(self) -> bytes:
        """The next answer; empty where none waits."""
        try:
            return self._socket.recv(1 << 13, _NOW)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO) from None

    def _receive(self, room: int = 1 << 14) -> bytes:
        try:
            return self._socket.recv(room)
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO) from None

    def _limit(self) -> int:
        # af_netlink.c refuses a message longer than the buffer less 32 bytes.
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32

    def _room_for_answers(self) -> int:
        """How many acknowledgements wait in the buffer: each is charged 768 bytes of it."""
        return max(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >> 10, _LEAST_HELD)

    def _grow(self, forced: int, polite: int, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, polite, size)

"""What the kernel says of a netlink message that it refuses, and that in words."""

import errno
import os
import struct

from netalloc.errors import CommandError
from netalloc.host.netlink_messages import attributes

CAPPED = 0x100  # the error carries the failed message's header only
HAS_TLVS = 0x200

_ERROR_TEXT = 1
_ERROR_OFFSET = 2
_ERRNO = struct.Struct("=i")
_OFFSET = struct.Struct("=I")


class NetlinkError(CommandError):
    """The kernel refused a message; callers outside of host and portmap get `explained`.

    `errno` is the kernel's, `seq` the message's number, `offset` where in that message
    the offending attribute starts (None where the kernel does not say).
    """

    def __init__(self, code: int, seq: int = 0, offset: int | None = None, text: str = "") -> None:
        reason = os.strerror(code)
        if code == errno.EPERM:
            reason += " (this process lacks CAP_NET_ADMIN)"
        super().__init__(
            f"netlink: {reason}{': ' if text else ''}{text}",
            ("netlink",),
            code,
            f"{reason}: {text}" if text else reason,
        )
        self.errno = code
        self.text = text
        self.seq = seq
        self.offset = offset

    def explained(self, what: str) -> CommandError:
        """The same in words: what was asked of the kernel, and why it was not done."""
        name = errno.errorcode.get(self.errno, str(self.errno))
        return CommandError(
            f"{what}: {self.stderr} ({name})", ("netlink",), self.errno, self.stderr
        )


class explaining:  # used like a function, and ten times as fast as one
    """Turns a NetlinkError into a CommandError that says what was asked of the kernel.

    A context manager, to be used again and by several threads.
    """

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NetlinkError):
            raise error.explained(self.what) from error


def failure_in(data: bytes, flags: int, seq: int, start: int, stop: int) -> NetlinkError | None:
    """The error in an NLMSG_ERROR body; None when it is an acknowledgement."""
    code = -_ERRNO.unpack_from(data, start)[0]
    if code == 0:
        return None
    offset, reason = None, ""
    if flags & HAS_TLVS:
        size = _OFFSET.unpack_from(data, start + 4)[0]
        tlvs = attributes(data, start + (20 if flags & CAPPED else 4 + (size + 3 & ~3)), stop)
        if _ERROR_OFFSET in tlvs:
            offset = _OFFSET.unpack(tlvs[_ERROR_OFFSET])[0]
        reason = tlvs.get(_ERROR_TEXT, b"").rstrip(b"\0").decode(errors="replace")
    return NetlinkError(code, seq, offset, reason)

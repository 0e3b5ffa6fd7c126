"""Every error netalloc raises on purpose; each names the value and the limit."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class NetallocError(Exception):
    """The base of all errors of this package."""


class ExhaustedError(NetallocError):
    """Nothing is free."""


class InUseError(NetallocError):
    """That address, port or mapping is held; `holder` names the holder where it is known."""

    def __init__(self, message: str, holder: str | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class NotAllocatedError(NetallocError, KeyError):
    """Released or unmapped without being held."""

    __str__ = Exception.__str__  # KeyError would print its message in quotes


class InvalidValueError(NetallocError, ValueError):
    """Not a value of the kind that is asked for: another type, or text that cannot be one."""


class OutOfRangeError(InvalidValueError):
    """A value of the right kind, outside of this network or range."""


class CommandError(NetallocError):
    """A command such as iptables or nft failed, or could not be started."""

    def __init__(
        self, message: str, command: Sequence[str] = (), status: int | None = None, stderr: str = ""
    ) -> None:
        super().__init__(message)
        self.command = tuple(command)
        self.status = status
        self.stderr = stderr


class InterfaceError(NetallocError):
    """No such interface, or it has no IPv4 address, or cannot be made; no such namespace."""


class StoreError(NetallocError):
    """State that cannot be read, is locked or is corrupt."""


class StaleLeaseError(NetallocError):
    """A lease of an older generation: it has ended, and the address may be another's by now."""


class ClosedError(NetallocError):
    """The manager, or what belongs to it, was closed before the call."""


class QuotaError(NetallocError):
    """The owner holds as much as its quota allows."""

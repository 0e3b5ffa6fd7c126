"""The kernel settings that containers behind a bridge need, and who switched them on."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from netalloc.errors import InterfaceError
from netalloc.host import sysctl

_FORWARD: Final = ("net", "ipv4", "ip_forward")


class BridgeSettings:
    """ip_forward, and route_localnet on the bridge alone, which only a guard makes safe."""

    def __init__(self, bridge: str) -> None:
        self._localnet = ("net", "ipv4", "conf", bridge, "route_localnet")
        self._was_open: bool | None = None

    def look(self, ours: Callable[[], bool]) -> None:
        """See how things are before we change any; InterfaceError when there is no bridge.

        `ours` says whether a table of netalloc is there, which then has switched on what is
        on; it is asked the first time only.
        """
        value = sysctl.read(*self._localnet)
        if self._was_open is None:
            self._was_open = value == "1" and not ours()

    def restore(self) -> tuple[str, ...]:
        """Switch on what is off; says what was."""
        found: tuple[str, ...] = ()
        for setting in (_FORWARD, self._localnet):
            if sysctl.read(*setting) == "0":
                sysctl.write("1", *setting)
                found += (f"{'.'.join(setting)} was 0",)
        return found

    def withdraw(self, *, ours: bool) -> None:
        """Switch route_localnet off again if `ours`, unless it was on before us.

        Forwarding stays: others may rely on it by now, and it opens nothing.
        """
        if ours and not self._was_open:
            with suppress(InterfaceError):  # the bridge went first
                sysctl.write("0", *self._localnet)
        self._was_open = None

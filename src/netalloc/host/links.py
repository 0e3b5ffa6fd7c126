"""Interfaces, their addresses and routes: the only user of pyroute2.

pyroute2 takes 160 ms to import, so it is imported by the first `Links` that is opened.
"""

import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_interface
from typing import Any, TypeAlias, TypeVar

from netalloc.closing import Closing
from netalloc.errors import InterfaceError, InvalidValueError, OutOfRangeError
from netalloc.host import sysctl
from netalloc.values import shown

T = TypeVar("T")
Address: TypeAlias = IPv4Address | IPv6Address | str
Interface: TypeAlias = IPv4Interface | IPv6Interface | str

_NAME = re.compile(r"(?!-)[^\x00-\x20\x7f-\U0010ffff/:%\"'`\\*+!]{1,15}")

logger = logging.getLogger(__name__)

_NO_DETECTION = 0x02  # IFA_F_NODAD: the address works at once, and not after two seconds

_REASONS = {
    errno.EPERM: "CAP_NET_ADMIN is missing",
    errno.ENODEV: "no such interface",
    errno.EEXIST: "it exists",
    errno.EXFULL: "the bridge is full: 1023 ports are the most (BR_MAX_PORTS)",
}


def interface_address(name: str) -> IPv4Interface:
    """The IPv4 address of an interface, with its prefix length.

    With several addresses the first one is used and one warning names the others. Raises
    InterfaceError when there is no such interface or it has no IPv4 address. About 1 ms.

    >>> interface_address("lo")
    IPv4Interface('127.0.0.1/8')
    """
    name = check_name(name)
    with Links() as links:
        return links.interface_address(name)


class Links(Closing):
    """A kept handle on the interfaces of one network namespace; a context manager.

    It lives in the namespace the caller was in, or in the named one. Its netlink socket
    belongs to a thread of its own, so that it can be used from any thread and from inside
    of a running event loop, where pyroute2 refuses to work. Every method raises
    InterfaceError naming the interface and the reason.
    """

    def __init__(self, namespace: str | None = None) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._worker = ThreadPoolExecutor(1, thread_name_prefix="netalloc-links")
        self._stack = ExitStack()
        try:
            # pyroute2 keeps a socket and an event loop per thread: opened, used and closed
            # in the worker.
            self._ip: Any = self._worker.submit(self._open, namespace).result()
        except BaseException:
            self._worker.shutdown()
            raise

    def _open(self, namespace: str | None) -> Any:
        from pyroute2 import IPRoute, netns  # type: ignore[import-untyped]

        if namespace is not None:
            try:
                netns.setns(namespace, flags=0)  # this thread alone, for as long as it lives
            except OSError as error:
                raise InterfaceError(f"network namespace {namespace}: {error.strerror}") from error
        return self._stack.enter_context(IPRoute())

    def close(self) -> None:
        """Give back the socket and the thread."""
        self._worker.submit(self._stack.close).result()
        self._worker.shutdown()

    def _do(self, what: str, work: Callable[[], T]) -> T:
        return self._worker.submit(_translated, what, work).result()

    def interface_address(self, name: str) -> IPv4Interface:
        """As the function of that name."""
        check_name(name)

        def work() -> list[IPv4Interface]:
            # A missing interface would be an empty list: the index lookup tells them apart.
            found = self._ip.get_addr(family=socket.AF_INET, index=_index(name))
            return [IPv4Interface(f"{a.get('local')}/{a['prefixlen']}") for a in found]

        addresses = self._do(f"interface {name}", work)
        if not addresses:
            raise InterfaceError(f"interface {name} has no IPv4 address")
        if len(addresses) > 1:
            others = ", ".join(map(str, addresses[1:]))
            logger.warning("interface %s: using %s and not %s", name, addresses[0], others)
        return addresses[0]

    def create_bridge(
        self, name: str, *addresses: Interface, alias: str = "", mac: str | None = None
    ) -> None:
        """Make a bridge, give it its addresses and set it up; nothing is left on failure.

        With a `mac` it keeps that one; without, it changes with its ports.

        One with an IPv6 address looks for no duplicates at all: the kernel asks where a
        container is from the bridge's link-local address, which it would not use for two
        seconds.
        """

        def work() -> None:
            chosen = {} if mac is None else {"address": mac}
            self._ip.link("add", ifname=name, kind="bridge", **chosen)
            try:
                index = _index(name)
                if any(address.version == 6 for address in with_prefix):
                    sysctl.write("0", "net", "ipv6", "conf", name, "accept_dad")
                for address in with_prefix:
                    self._add_address(index, address)
                named = {"ifalias": alias} if alias else {}
                self._ip.link("set", index=index, state="up", **named)
            except BaseException:
                self._ip.link("del", ifname=name)
                raise

        check_name(name)
        with_prefix = [_interface(address) for address in addresses]
        self._do(f"bridge {name}", work)

    def alias(self, name: str) -> str:
        """What an interface's alias says, "" where it has none."""
        check_name(name)

        def work() -> str:
            (found,) = self._ip.link("get", index=_index(name))
            return found.get("ifalias") or ""

        return self._do(f"interface {name}", work)

    def create_veth(
        self,
        name: str,
        peer: str,
        *,
        namespace: str | None = None,
        bridge: str | None = None,
        hairpin: bool = False,
    ) -> None:
        """Make a veth pair, its near end up and a port of `bridge`, its far end in `namespace`.

        `hairpin` lets a container reach itself through the bridge, which it needs for its
        own published port where bridge-nf-call-iptables is on. 4 ms, most of it the kernel.
        """

        def work() -> None:
            near: dict[str, Any] = {"ifname": name, "kind": "veth", "state": "up"}
            if bridge is not None:
                near["master"] = _index(bridge)
            far = {"ifname": peer}
            if namespace is not None:
                far["net_ns_fd"] = namespace
            self._ip.link("add", peer=far, **near)
            if hairpin:
                self._set_hairpin(name, on=True)

        for each in (name, peer, *([] if bridge is None else [bridge])):
            check_name(each)
        self._do(f"veth {name}", work)

    def set_up(self, name: str) -> None:
        """Set an interface up."""
        check_name(name)
        self._do(f"interface {name}", lambda: self._ip.link("set", index=_index(name), state="up"))

    def add_address(self, name: str, address: Interface) -> None:
        """Give an interface one more address, with its prefix length.

        One of IPv6 works at once: it is given where no other may have it, so that there is
        no duplicate to be looked for.
        """
        check_name(name)
        with_prefix = _interface(address)
        self._do(f"interface {name}", lambda: self._add_address(_index(name), with_prefix))

    def _add_address(self, index: int, address: IPv4Interface | IPv6Interface) -> None:
        four = address.version == 4
        self._ip.addr(
            "add",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            family=socket.AF_INET if four else socket.AF_INET6,
            flags=0 if four else _NO_DETECTION,
        )

    def add_route(self, gateway: Address, network: str = "default") -> None:
        """Send what goes to `network` through a gateway."""
        family = socket.AF_INET6 if ":" in str(gateway) else socket.AF_INET
        self._do(
            f"route to {network} through {gateway}",
            lambda: self._ip.route("add", dst=network, gateway=str(gateway), family=family),
        )

    def set_hairpin(self, name: str, *, on: bool) -> None:
        """Let a bridge port send frames back where they came from, or stop it."""
        check_name(name)
        self._do(f"bridge port {name}", lambda: self._set_hairpin(name, on=on))

    def _set_hairpin(self, name: str, *, on: bool) -> None:
        self._ip.brport("set", index=_index(name), mode=int(on))

    def delete(self, name: str, *, missing_ok: bool = False) -> None:
        """Delete an interface; a veth takes its peer with it."""
        check_name(name)

        def work() -> None:
            try:
                self._ip.link("del", index=_index(name))
            except OSError as error:
                if not missing_ok or error.errno != errno.ENODEV:
                    raise

        self._do(f"interface {name}", work)


def connect(
    links: Links,
    name: str,
    *,
    namespace: str,
    bridge: str,
    address: Interface | Sequence[Interface],
    gateway: Address | Sequence[Address] | None = None,
    peer: str = "eth0",
    hairpin: bool = False,
) -> None:
    """Put a named namespace on a bridge: veth pair, loopback up, address and default route.

    `address` and `gateway` are one, or several of different families. `links` is a handle on
    the bridge's namespace. Nothing is left behind on failure.
    """
    links.create_veth(name, peer, namespace=namespace, bridge=bridge, hairpin=hairpin)
    try:
        with Links(namespace) as inner:
            inner.set_up("lo")
            for one in _each(address):
                inner.add_address(peer, one)
            inner.set_up(peer)
            for through in _each(gateway):
                inner.add_route(through)
    except BaseException:
        links.delete(name)
        raise


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise OSError(errno.ENODEV, f"no such interface: {name}") from None


def _each(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, tuple | list) else [value]


def _interface(address: Interface) -> IPv4Interface | IPv6Interface:
    if not isinstance(address, str | IPv4Interface | IPv6Interface):
        raise InvalidValueError(f"{shown(address)} is not an address with its prefix length")
    try:
        return ip_interface(address)
    except ValueError as error:
        raise OutOfRangeError(str(error)) from None


def check_name(name: object, what: str = "interface") -> str:
    """The name of an interface, when it can be one and rules and settings can hold it.

    The kernel (dev_valid_name() in net/core/dev.c) refuses more than 15 bytes, `.`, `..`,
    `/`, `:` and blanks, and makes up a name for one with `%`. `all` and `default` stand for
    every interface in /proc/sys, `+` and `*` are wildcards of iptables and nft, quotes end a
    name there, and signs that are not printable ASCII are shown in many ways. Raises
    InvalidValueError and OutOfRangeError.

    >>> check_name("br0")
    'br0'
    >>> check_name("all", "bridge")
    Traceback (most recent call last):
    ...
    netalloc.errors.OutOfRangeError: bridge 'all' would be every interface of the host
    """
    if not isinstance(name, str):
        raise InvalidValueError(f"{what} {shown(name)} is not the name of an interface")
    plain = str.__str__(name)
    if plain in ("all", "default"):
        raise OutOfRangeError(f"{what} {plain!r} would be every interface of the host")
    if not _NAME.fullmatch(plain) or plain in (".", ".."):
        raise OutOfRangeError(
            f"{what} {shown(plain)} cannot name an interface: 1 to 15 ASCII signs, none of them "
            f"a blank, a quote or one of / : % \\ * + ! and no - at the start"
        )
    return plain


def index_of(name: str) -> int:
    """The number of an interface; InterfaceError when there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise InterfaceError(f"no such interface: {name}") from None


def is_index(index: int) -> bool:
    """Whether there is an interface of that number. 3 µs, where netlink takes 40."""
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


def _translated(what: str, work: Callable[[], T]) -> T:
    from pyroute2.netlink.exceptions import (  # type: ignore[import-untyped]
        NetlinkError,
    )

    try:
        return work()
    except (OSError, NetlinkError) as error:
        if isinstance(error, NetlinkError):
            reason = _REASONS.get(error.code) or os.strerror(error.code)
        else:
            reason = error.strerror or str(error)
        raise InterfaceError(f"{what}: {reason}") from error

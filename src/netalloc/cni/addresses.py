"""The networks of a configuration in the store: opened, made, and what a container holds there.

A lease is fenced by its owner, the container's id, and its key, the interface's name: what comes
late for a container that is gone meets nothing of its successor.
"""

from __future__ import annotations

import os

from netalloc._alloc import Subnet
from netalloc.cni.errors import ADDRESS, CONFIG, CniError
from netalloc.errors import ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError
from netalloc.manager.networks import Networks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from netalloc.address_values import IP
    from netalloc.cni.configuration import Configuration, Range
    from netalloc.manager.interface import NetworkInterface
    from netalloc.manager.manager import NetworkManager


class Pools:
    """The networks that a configuration means; a context manager, which closes them.

    The store is opened to write, for what looks on alone may have to wait for that: after a kill.
    """

    def __init__(self, wanted: Configuration, name: str) -> None:
        self._wanted = wanted
        self._name = name
        self._host: Networks | None = None

    def __enter__(self) -> Pools:
        return self

    def __exit__(self, *_: object) -> None:
        if self._host is not None:
            self._host.close()

    @property
    def is_there(self) -> bool:
        """Whether there is a store at all."""
        return os.path.exists(self._wanted.store)  # noqa: PTH110

    def host(self) -> Networks:
        """All networks of the store, which is made where there is none."""
        if self._host is None:
            folder = os.path.dirname(os.path.abspath(self._wanted.store))  # noqa: PTH100, PTH120
            os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103
            self._host = Networks(self._wanted.store)
        return self._host

    def named(self) -> NetworkManager:
        """The network that the configuration names. Raises CniError where there is none."""
        assert self._wanted.network is not None
        if not self.is_there:
            raise CniError(
                CONFIG,
                f"there is no network {self._wanted.network}: {self._wanted.store} is not there",
            )
        try:
            return self.host().open(self._wanted.network)
        except NotAllocatedError as error:
            raise CniError(CONFIG, str(error)) from error

    def of(self, one: Range) -> NetworkManager:
        """The network of a range, made where there is none.

        Where it is there otherwise, and nothing of it is held, it is made anew.
        """
        try:
            return self._stated(one)
        except OutOfRangeError as error:
            raise CniError(CONFIG, str(error)) from error
        except InUseError as error:
            if "is registered with" not in str(error) or not self._removed(one.name):
                raise CniError(CONFIG, str(error)) from error
        return self._stated(one)

    def all_there(self) -> Iterator[NetworkManager]:
        """Every network of the configuration that is in the store, of earlier ranges too."""
        if self._wanted.network is not None:
            yield self.named()
            return
        if not self.is_there:
            return
        names = {one.name for ranges in self._wanted.sets for one in ranges}
        prefix = f"cni.{self._name}."
        for name in self.host():
            if name in names or (name.startswith(prefix) and _is_number(name[len(prefix) :])):
                try:
                    yield self.host().open(name)
                except NotAllocatedError:
                    continue  # another process has just removed it

    def take(
        self, ranges: tuple[Range, ...], owner: str, key: str, ip: IP | None
    ) -> tuple[Range, NetworkInterface]:
        """An address of a set: that one, or the next free one. Raises CniError."""
        for one in ranges:
            if ip is not None and not one.holds(ip):
                continue
            try:
                return one, self.of(one).allocate(owner, ip, key=key)
            except ExhaustedError:
                continue
            except (InUseError, OutOfRangeError) as error:
                raise CniError(ADDRESS, str(error)) from error
        shown = ", ".join(one.shown for one in ranges)
        raise CniError(ADDRESS, f"no IP addresses available in range set: {shown}")

    def _stated(self, one: Range) -> NetworkManager:
        """The manager of a range, which is to be as it is stated."""
        host = self.host()
        if one.name in host:
            return self._as_stated(one)
        stated: dict[str, Any] = {
            "network": one.network,
            "exclude": one.exclude,
            "backend": "null",
            "mode": "routed",
            "isolation": "open",
        }
        try:
            return host.create(one.name, **stated)
        except InUseError:
            if one.name not in host:
                raise  # it is in the way of another one
        return self._as_stated(one)

    def _as_stated(self, one: Range) -> NetworkManager:
        host = self.host()
        there, wanted = host[one.name].subnet, Subnet(one.network, exclude=one.exclude)
        if there != wanted:
            raise InUseError(
                f"network {one.name} is registered with subnet {there!r}, not {wanted!r}"
            )
        return host.open(one.name)

    def _removed(self, name: str) -> bool:
        try:
            self.host().remove(name)
        except (InUseError, NotAllocatedError):
            return False
        return True


def held_by(manager: NetworkManager, owner: str, key: str) -> list[NetworkInterface]:
    """What an interface of a container holds of a network."""
    return [one for one in manager.find(owner) if one.key == key]


def _is_number(text: str) -> bool:
    """Whether it is the place of a range: its set, and which of it."""
    first, dot, second = text.partition(".")
    return bool(dot) and first.isdigit() and second.isdigit()

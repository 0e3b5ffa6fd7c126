"""The versions of the specification, and what differs between them."""

from __future__ import annotations

from netalloc.cni.errors import VERSION, CniError

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_CHECK, _MANY = "0.4.0", "1.1.0"  # from which on there is CHECK; GC and STATUS
DEFAULT = "0.1.0"  # of a configuration that does not say


def known(version: object) -> str:
    """A version that is supported. Raises CniError."""
    if version in (None, ""):
        return DEFAULT
    if version not in SUPPORTED:
        shown = str(version)[:40]
        raise CniError(
            VERSION,
            f"cniVersion {shown!r} is not supported",
            f"supported are {', '.join(SUPPORTED)}",
        )
    return str(version)


def allow(command: str, version: str) -> None:
    """Raise CniError where a version does not have a command."""
    first = {"CHECK": _CHECK, "GC": _MANY, "STATUS": _MANY}.get(command)
    if first is not None and SUPPORTED.index(version) < SUPPORTED.index(first):
        raise CniError(VERSION, f"config version does not allow {command}")


def is_old(version: str) -> bool:
    """Whether a result has one address of each family, by name: ip4, ip6."""
    return version in ("0.1.0", "0.2.0")


def names_family(version: str) -> bool:
    """Whether each address of a result says of which family it is."""
    return version in ("0.3.0", "0.3.1", "0.4.0")

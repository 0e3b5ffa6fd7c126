"""Kernel settings of the caller's network namespace."""

from pathlib import Path

from netalloc.errors import InterfaceError, NetallocError


def read(*name: str) -> str:
    """The value of a setting, named by its parts because an interface's name may hold a dot.

    Raises InterfaceError for an interface that does not exist, NetallocError for another
    setting that this kernel does not have.

    >>> read("net", "ipv4", "ip_forward") in ("0", "1")
    True
    """
    try:
        return _path(name).read_text().strip()
    except FileNotFoundError:
        raise _absent(name) from None


def write(value: str, *name: str) -> None:
    """Change a setting; raises as `read` does, and NetallocError where it may not be written."""
    try:
        _path(name).write_text(value)
    except FileNotFoundError:
        raise _absent(name) from None
    except OSError as error:
        raise NetallocError(f"cannot set {'.'.join(name)} to {value}: {error.strerror}") from error


def _path(name: tuple[str, ...]) -> Path:
    return Path("/proc/sys").joinpath(*name)


def _absent(name: tuple[str, ...]) -> NetallocError:
    if name[:1] == ("net",) and name[2:3] == ("conf",) and name[3] not in ("all", "default"):
        return InterfaceError(f"no such interface: {name[3]}")
    return NetallocError(f"this kernel has no setting {'.'.join(name)}")

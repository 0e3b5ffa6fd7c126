"""Named network namespaces, as `ip netns` keeps them: bind mounts under /run/netns.

Written on the system calls themselves: a namespace made by pyroute2 costs a forked Python
(11 ms), one made here a thread (0.3 ms), and a dense host makes thousands. They go through
ctypes because os.unshare and os.setns came with Python 3.12 only.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netalloc.errors import InUseError, NetallocError, NotAllocatedError, OutOfRangeError

DIRECTORY = Path("/run/netns")

CLONE_FS = 0x00000200  # linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MS_SHARED = 1 << 12, 1 << 14, 1 << 18, 1 << 20  # linux/mount.h
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Path:
    """Where the namespace of that name is; OutOfRangeError for what cannot be a file name."""
    if not name or "/" in name or name in (".", "..") or "\0" in name or len(name) > 255:
        raise OutOfRangeError(f"{name!r} cannot name a network namespace")
    return DIRECTORY / name


def create(name: str) -> None:
    """Make a named network namespace with its loopback down; InUseError if it exists."""
    target = path(name)
    _prepare_directory()
    try:
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0))
    except FileExistsError:
        raise InUseError(f"network namespace {name} exists") from None
    try:
        # A thread of its own: it dies in the new namespace, the caller stays where it is.
        _in_thread(lambda: _bind_new_namespace(target))
    except BaseException:
        delete(name, missing_ok=True)
        raise


def delete(name: str, *, missing_ok: bool = False) -> None:
    """Take the name away; the namespace goes with its last process and socket.

    Raises NotAllocatedError when there is none of that name, unless `missing_ok`.
    """
    target = path(name)
    # No mount on the file (EINVAL) is what a crash in `create` leaves; unlink tells the rest.
    with suppress(OSError):
        umount(target)
    try:
        target.unlink()
    except FileNotFoundError:
        if not missing_ok:
            raise NotAllocatedError(f"no network namespace {name}") from None
    except OSError as error:
        raise NetallocError(f"network namespace {name} cannot be deleted: {error}") from error


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Put the calling thread, and it alone, into a named namespace for the `with` block.

    Sockets, threads and processes made inside stay in that namespace. Raises
    NotAllocatedError when there is none of that name.
    """
    try:
        there = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotAllocatedError(f"no network namespace {name}") from None
    try:
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there, CLONE_NEWNET)
            try:
                yield
            finally:
                setns(here, CLONE_NEWNET)
        finally:
            os.close(here)
    finally:
        os.close(there)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    if _libc.unshare(ctypes.c_int(flags)):
        raise _failed("unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2) for the calling thread."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)):
        raise _failed("setns")


def mount(source: str, target: Path | str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    arguments = (source.encode(), os.fsencode(target), kind and kind.encode())
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None):
        raise _failed(f"mount on {target}")


def umount(target: Path | str) -> None:
    """umount2(2), lazily."""
    if _libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)):
        raise _failed(f"umount {target}")


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def _prepare_directory() -> None:
    # As iproute2 does: a shared mount of its own, so that a name taken away in one mount
    # namespace is gone in all, and the network namespace behind it is freed.
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    try:
        mount("", DIRECTORY, None, MS_SHARED | MS_REC)
    except OSError:
        mount(str(DIRECTORY), DIRECTORY, None, MS_BIND | MS_REC)
        mount("", DIRECTORY, None, MS_SHARED | MS_REC)


def _bind_new_namespace(target: Path) -> None:
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        raise NetallocError("a network namespace needs CAP_SYS_ADMIN") from None
    mount("/proc/thread-self/ns/net", target, None, MS_BIND)


def _in_thread(work: Callable[[], None]) -> None:
    failure: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    done = threading.Event()
    thread = threading.Thread(target=body, name="netalloc-namespace")
    try:
        thread.start()
        thread.join()
    except RuntimeError:  # no thread could be started
        raise
    except BaseException:
        # Ctrl-C: what tidies up after it must not race the thread. A join that was
        # interrupted takes the thread for ended, hence the event.
        done.wait()
        raise
    if failure:
        raise failure[0]

"""Which boot of the machine this is."""

import os

from netalloc.errors import StoreError

_PATH = "/proc/sys/kernel/random/boot_id"


def boot_id() -> str:
    """The kernel's random name for the time since it came up; StoreError without /proc."""
    try:
        file = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, 100).decode().strip()
        finally:
            os.close(file)
    except OSError as error:
        raise StoreError(f"{_PATH} cannot be read: {error.strerror}") from error

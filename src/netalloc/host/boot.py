"""Which boot of the machine this is."""

import os


def boot_id() -> str:
    """The kernel's name for this boot (random(4))."""
    file = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 100).decode().strip()
    finally:
        os.close(file)

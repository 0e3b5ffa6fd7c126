"""Parts that fail when they are told to."""

from netalloc.errors import CommandError
from netalloc.portmap.null import Null


class FaultyBackend(Null):
    """Refuses to add the ports in `refuse` and to remove those in `stuck`."""

    def __init__(self):
        super().__init__()
        self.refuse = set()
        self.stuck = set()
        self.calls = []

    def setup(self):
        self.calls.append("setup")

    def cleanup(self):
        self.calls.append("cleanup")
        super().cleanup()

    def close(self):
        self.calls.append("close")

    def apply(self, add, remove=()):
        for mapping in remove:
            if self.stuck & set(mapping.ports):
                raise CommandError(f"stuck {mapping.port}")
        for mapping in add:
            if self.refuse & set(mapping.ports):
                raise CommandError(f"refused {mapping.port}")
        super().apply(add, remove)

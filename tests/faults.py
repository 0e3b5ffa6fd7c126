"""Parts that fail when they are told to."""

import os
import pickle
import signal
import sqlite3
import traceback

from netalloc.errors import CommandError, InUseError, NotAllocatedError
from netalloc.model import ReconcileResult
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
                raise CommandError(f"stuck {mapping.host_port}")
        for mapping in add:
            if self.refuse & set(mapping.ports):
                raise CommandError(f"refused {mapping.host_port}")
        super().apply(add, remove)


class FileKernel:
    """A kernel that outlives the process: its mappings lie in a file, changed in one step."""

    name = "file"

    def __init__(self, path):
        self.path = path

    def setup(self):
        pass

    def cleanup(self):
        self._write([])

    def close(self):
        pass

    def mappings(self):
        return pickle.loads(self.path.read_bytes()) if self.path.exists() else []

    def apply(self, add, remove=()):
        present = {mapping.key: mapping for mapping in self.mappings()}
        for mapping in remove:
            if present.pop(mapping.key, None) != mapping:
                raise NotAllocatedError(f"{mapping} is not mapped")
        for mapping in add:
            if mapping.key in present:
                raise InUseError(f"{mapping} is mapped")
            present[mapping.key] = mapping
        self._write(list(present.values()))

    def reconcile(self, desired):
        present, desired = set(self.mappings()), set(desired)
        self._write(list(desired))
        return ReconcileResult(tuple(desired - present), tuple(present - desired))

    def _write(self, mappings):
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        fresh.write_bytes(pickle.dumps(mappings))
        fresh.replace(self.path)


def in_child(work):
    """Run it in a forked process; its exit status, negative for the signal that killed it."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_back(path):
    """Bring the log of a closed store into its file, as the last one to close may or may not."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


class DieAt:
    """Kills the process by SIGKILL before the n-th call of any of the methods it watches."""

    def __init__(self, step):
        self.left = step

    def watch(self, owner, *names):
        for name in names:
            setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, method):
        def call(*arguments, **options):
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            return method(*arguments, **options)

        return call

"""The null backend: remembers the mappings and touches nothing."""

from collections.abc import Collection, Sequence

from netalloc.address_values import IP
from netalloc.errors import InUseError, NetallocError, NotAllocatedError
from netalloc.host.rule_monitor import RuleMonitor
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.desired import describe


class Null:
    """A backend for tests, and for hosts where something else makes the mappings.

    Refuses what the kernel would refuse. Each call takes time linear in its batch.
    """

    name = "null"

    def __init__(self) -> None:
        self._present: dict[tuple[IP | None, str, int], PortMapping] = {}

    def setup(self) -> None:
        """Nothing to make."""

    def cleanup(self) -> None:
        """Forget all mappings."""
        self._present.clear()

    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = ()) -> None:
        """Remove, then add, or nothing; raises as every backend does."""
        gone = {mapping.key for mapping in remove}
        for mapping in remove:
            if self._present.get(mapping.key) != mapping:
                raise NotAllocatedError(f"{describe(mapping)} is not mapped")
        for mapping in add:
            if mapping.key in self._present and mapping.key not in gone:
                holder = self._present[mapping.key]
                raise InUseError(f"{describe(mapping)} is held by {describe(holder)}", holder.owner)
        for mapping in remove:
            del self._present[mapping.key]
        self._present.update((mapping.key, mapping) for mapping in add)

    def mappings(self) -> list[PortMapping]:
        """What was added and not removed."""
        return list(self._present.values())

    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Take the desired mappings for the present ones."""
        wanted = {mapping.key: mapping for mapping in desired}
        added = [m for m in wanted.values() if self._present.get(m.key) != m]
        removed = [m for m in self._present.values() if wanted.get(m.key) != m]
        self._present = dict(wanted)
        return ReconcileResult(tuple(added), tuple(removed))

    def monitor(self) -> RuleMonitor:
        """Raises NetallocError: there are no rules that could change."""
        raise NetallocError("the null backend makes no rules that could be watched")

    def close(self) -> None:
        """Nothing is held."""

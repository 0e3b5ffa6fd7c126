"""What keeps a store, the kernel and the living containers in agreement."""

from __future__ import annotations

from netalloc.errors import NetallocError
from netalloc.operations import answers
from netalloc.operations.asked import Asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from netalloc.manager.manager import NetworkManager
    from netalloc.manager.networks import Networks
    from netalloc.manager.view import Held, NetworkView


class Upkeep:
    """The part of HostOperations that looks after what is there."""

    if TYPE_CHECKING:
        path: Path
        view: Callable[[], NetworkView]

        def open(self, *, make: bool = False) -> Networks: ...

        def manager(self, network: str | None = None) -> NetworkManager: ...

    def gc(
        self, alive: Iterable[str], *, grace: float = 30.0, network: str | None = None
    ) -> answers.Collected:
        """Give back what belongs to owners that are not alive; see NetworkManager.gc.

        Two calls are needed, `grace` seconds or more apart.
        """
        living = list(alive)
        found = {}
        for manager in self._managers(network):
            addresses = manager.gc(living, grace)
            if addresses:
                found[manager.name] = [str(ip) for ip in addresses]
        return answers.Collected(found)

    def check(self) -> answers.Findings:
        """What is wrong with the store, and where the kernel differs; changes nothing.

        Without the privilege to see the kernel, or to write the file, the records alone are
        looked at: `compared` is False then.
        """
        from netalloc.manager.comparison import differences, record_differences

        self.view().networks()  # raises for a file that is not there
        if not _may_compare():
            return answers.Findings(record_differences(self.view()), compared=False)
        return answers.Findings(differences(self.open().store))

    def repair(self) -> answers.Done:
        """Mend the store, and make the kernel agree with it. A copy of the file is kept first."""
        from netalloc.manager.repair import repair

        done = repair(self.path)
        return answers.Done(done + self.reconcile().done)

    def reconcile(self, *, network: str | None = None) -> answers.Done:
        """Make the kernel agree with what is held and published; what was repaired.

        A manager mends its part when it is opened, without a word: so what differed is looked for
        before.
        """
        before = self.check().findings if _may_compare() else []
        done = [
            f"network {manager.name}: {one}"
            for manager in self._managers(network)
            for one in manager.reconcile().lines()
        ]
        if before:
            still = set(self.check().findings)
            done = [f"mended: {one}" for one in before if one not in still]
        return answers.Done(done)

    def kernel_says(self, held: list[Held], question: Asked) -> str | None:
        """Whether the kernel leads a port to what holds it."""
        from netalloc.manager.comparison import mappings_in_kernel

        if not _may_compare():
            return None
        told = []
        for one in held:
            wanted = [
                mapping
                for mapping in one.ports
                if mapping.protocol == question.protocol and question.port in mapping.ports
            ]
            try:
                present = mappings_in_kernel(self.open().store, one.network)
            except NetallocError as error:
                return f"the kernel cannot be asked: {error}"
            if present is None:
                return None
            lacking = [mapping for mapping in wanted if mapping not in present]
            told += [f"the kernel lacks {mapping}" for mapping in lacking]
        return "; ".join(told) or "agrees"

    def _managers(self, network: str | None) -> list[NetworkManager]:
        names = list(self.open()) if network is None else [network]
        return [self.manager(name) for name in names]


def _may_compare() -> bool:
    """Whether this process may see what the kernel has."""
    from netalloc.host.privileges import may_change_network

    return may_change_network()

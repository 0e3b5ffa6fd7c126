"""What a port mapper asks of the kernel."""

from collections.abc import Collection, Sequence
from typing import Protocol

from netalloc.host.rule_monitor import RuleMonitor
from netalloc.model import PortMapping, ReconcileResult


class NetworkGuard(Protocol):
    """What keeps a network's containers apart, whatever maps their ports."""

    is_guarded: bool
    watched_tables: tuple[str, ...]  # what a monitor looks at, in these families
    watched_families: tuple[int, ...]
    watched_sets: tuple[str, ...]  # of which elements come and go

    @property
    def portid(self) -> int:
        """By which its own changes are known."""

    def setup(self) -> tuple[str, ...]:
        """Make what there is to be as long as the network is; what was missing."""

    def cleanup(self) -> None:
        """Remove all that is the network's."""

    def close(self) -> None:
        """Give back its socket; the rules stay."""


class Backend(Protocol):
    """Makes the kernel agree with the desired mappings."""

    @property
    def name(self) -> str:
        """The backend's own name: "nftables", "iptables" or "null"."""

    def setup(self) -> None:
        """Make the fixed part; a crashed predecessor's remains are adopted or replaced."""

    def cleanup(self) -> None:
        """Remove all that is ours; what is missing already is no error."""

    def apply(self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = ()) -> None:
        """Remove, then add, as one batch: all of it or nothing.

        Raises InUseError where a key to add is present, NotAllocatedError where a
        mapping to remove is not there as given.
        """

    def mappings(self) -> list[PortMapping]:
        """What the kernel has now."""

    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Bring the kernel to the desired mappings, touching only what differs."""

    def monitor(self) -> RuleMonitor:
        """Tells when another program changes the rules; NetallocError where nothing can tell."""

    def close(self) -> None:
        """Give back sockets; the rules stay."""

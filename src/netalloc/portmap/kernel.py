"""KernelMappings: what the kernel translates, made through one backend; no list of its own."""

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import ref

from netalloc.errors import InUseError, InvalidValueError, NetallocError
from netalloc.host.conntrack import Flows
from netalloc.host.netns import HomeNamespace
from netalloc.locks import holding
from netalloc.model import PortMapping, ReconcileResult
from netalloc.portmap.backend import Backend
from netalloc.portmap.choice import Networks, make_backend, make_forward, networks_of
from netalloc.portmap.link import NO_LINK, Link
from netalloc.portmap.watch import Watch, Work
from netalloc.values import as_flag, as_text, shown

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from netalloc.host.watch_turn import WatchTurn

logger = logging.getLogger(__name__)

_REAL = ("nftables", "iptables")  # those whose mappings conntrack remembers
_METHODS = ("setup", "cleanup", "apply", "mappings", "reconcile", "close")

_serving: "dict[int, ref[KernelMappings]]" = {}
_serving_lock = Lock()


class KernelMappings:
    """A backend, the flows that its mappings have made stale, and the FORWARD chain.

    The arguments are those of PortMapper, with a `link` for its bridge. What is desired is for
    the caller to know: a manager in its store, a PortMapper in its list. A backend object serves
    one of these at a time, or two lists would each take the other's mappings away: InUseError. It
    belongs to the network namespace in which it was made: NetallocError from a thread in another
    one. Safe for threads as far as the backend is.
    """

    def __init__(
        self,
        backend: str | Backend = "auto",
        *,
        link: Link = NO_LINK,
        network: Networks | None = None,
        name: str = "netalloc",
        forward: bool = False,
    ) -> None:
        name = as_text(name, "name")
        link = link.checked()
        forward = as_flag(forward, "forward")
        networks = networks_of(network, link.bridge)
        forwarding = make_forward(name, link, networks) if forward else None
        if isinstance(backend, str):
            backend = make_backend(str.__str__(backend), name, link, networks)
        elif isinstance(backend, type) or not all(
            callable(getattr(backend, method, None)) for method in _METHODS
        ):
            raise InvalidValueError(f"backend {shown(backend)} is no name and no backend")
        self.backend: Backend = backend
        self._forward = forwarding
        self._watch: Watch | None = None
        self._flows = Flows() if self.is_real else None
        self._home = HomeNamespace() if self.is_real else None
        self._stale: list[tuple[tuple[PortMapping, ...], bool]] = []
        self._serve()

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name

    @property
    def is_real(self) -> bool:
        """Whether there is a kernel behind it: not so with the null backend."""
        return self.backend.name in _REAL

    def setup(self) -> None:
        """Make the fixed part; a predecessor's mappings stay and keep working."""
        self._check_home()
        self._serve()
        if self._forward is not None:
            self._forward.reconcile()
        try:
            self.backend.setup()
        except BaseException:
            if self._forward is not None:
                self._forward.cleanup()
            raise

    def cleanup(self, known: Iterable[PortMapping] = ()) -> None:
        """Remove all that is ours from the kernel; what is missing already is no error.

        Goes on past failures and raises them together. The flows of what was mapped are
        flushed, and those of the `known` mappings, which other programs may have removed.
        """
        self._check_home()
        self._end_watch()
        gone = set(known)
        if self.is_real:
            unseen = self._attempt(lambda: gone.update(self.backend.mappings()))
            if unseen:
                logger.warning("flows of mappings that cannot be listed stay: %s", unseen)
        failures = [
            self._attempt(self._forward.cleanup) if self._forward is not None else None,
            self._attempt(self.backend.cleanup),
            self._attempt(lambda: self._flush_all((), gone)),
        ]
        _raise_all("not all was cleaned up", [failure for failure in failures if failure])

    def close(self) -> None:
        """Give back what is kept open; the mappings stay in the kernel."""
        self._end_watch()
        holding(_serving_lock, -1, "", self._end_serving)
        if self._flows is not None:
            self._flows.close()
        self.backend.close()

    def apply(
        self, add: Sequence[PortMapping], remove: Sequence[PortMapping] = (), flush: bool = True
    ) -> None:
        """Remove, then add, in one batch: all of it, with the flows flushed, or nothing.

        Without `flush` the caller flushes the flows itself, as soon as the change is made.
        Raises InUseError where a key to add is present, NotAllocatedError where a mapping to
        remove is not there as given, CommandError. When undoing fails as well, both are
        raised as an ExceptionGroup. An interrupt (Ctrl-C) in the middle undoes it, too.
        """
        flushes = flush and (bool(remove) or _has_udp(add))
        if flushes and self._flows is not None:
            self._flows.open()  # what the flush needs is there before anything has changed
        applied = False
        try:
            self.backend.apply(add, remove)
            applied = True
            if flushes:
                self._flush_all(add, remove)
        except BaseException as error:
            if applied or not isinstance(error, Exception):
                self._undo(add, remove, error, applied=applied)
            raise
        if self._stale and flush:
            self._flush_stale()

    def present(self) -> list[PortMapping]:
        """What the kernel has now."""
        return self.backend.mappings()

    def reconcile(self, desired: Collection[PortMapping]) -> ReconcileResult:
        """Make the kernel agree with the desired mappings, touching only what differs.

        Returns what was wrong. Flows that could not be flushed are an error, and tried
        again at the next call.
        """
        self._check_home()
        found = self.backend.reconcile(desired)
        self._stale += [(found.removed, False), (found.added, True)]
        structure = self._forward.reconcile() if self._forward is not None else ()
        self._flush_stale()
        if structure:
            found = ReconcileResult(found.added, found.removed, (*found.structure, *structure))
        return found

    def watch(
        self,
        repair: Callable[[], ReconcileResult],
        on_repair: Callable[[ReconcileResult], None] | None = None,
        *,
        desired: Callable[[], Collection[PortMapping]] | None = None,
        turn: "WatchTurn | None" = None,
        further: Callable[[], bool] | None = None,
    ) -> Watch:
        """Run `repair` now, and whenever another program changes our rules.

        With `desired`, where other processes change them as well, it looks first whether the
        kernel has what is desired, and what is `further`, which holds nothing up. With a `turn`
        one process watches at a time. A watch that runs already is ended. Raises NetallocError
        where the kernel does not tell.
        """
        self._check_home()
        self._end_watch()
        work = Work(repair)
        if desired is not None:
            look = getattr(self.backend, "agrees", None)
            work = Work(repair, partial(self._agrees, desired, look, further), look is not None)
        self._watch = Watch(self.backend.monitor, work, on_repair, turn)
        return self._watch

    def _agrees(
        self,
        desired: Callable[[], Collection[PortMapping]],
        look: Callable[[Collection[PortMapping]], bool] | None,
        further: Callable[[], bool] | None,
    ) -> bool:
        if further is not None and not further():
            return False
        wanted = desired()
        if look is not None:
            return look(wanted)
        return set(self.backend.mappings()) == set(wanted)

    def _serve(self) -> None:
        holding(_serving_lock, -1, "", self._begin_serving)

    def _begin_serving(self) -> None:
        other = _serving.get(id(self.backend), lambda: None)()
        if other is not None and other is not self:
            raise InUseError(
                f"this {self.backend.name} backend serves another list of mappings: each "
                f"would remove the other's; close that one, or make another backend"
            )
        _serving[id(self.backend)] = ref(self, _forget(id(self.backend)))

    def _end_serving(self) -> None:
        if _serving.get(id(self.backend), lambda: None)() is self:
            del _serving[id(self.backend)]

    def _check_home(self) -> None:
        if self._home is not None:
            self._home.check()

    def _end_watch(self) -> None:
        # Never with a lock held: the thread may be waiting for it.
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _flush_all(self, add: Collection[PortMapping], remove: Collection[PortMapping]) -> None:
        """Forget the flows that go where these host ports led before the change."""
        if self._flows is not None:
            self._flows.flush(remove, added=False)
            self._flows.flush(add, added=True)

    def _flush_stale(self) -> None:
        while self._stale:
            mappings, added = self._stale[0]
            if self._flows is not None:
                self._flows.flush(mappings, added=added)
            del self._stale[:1]

    def _undo(
        self,
        add: Sequence[PortMapping],
        remove: Sequence[PortMapping],
        error: BaseException,
        *,
        applied: bool,
    ) -> None:
        """Take a batch back, of which an interrupt may have left open whether it was made."""
        try:
            if not applied:
                there = set(self.backend.mappings())
                applied = add[0] in there if add else bool(remove) and remove[0] not in there
            if applied:
                self.backend.apply(remove, add)
        except NetallocError as failure:
            if isinstance(error, Exception):
                raise ExceptionGroup(
                    "mappings were changed, their flows were not flushed, and undoing it failed",
                    [error, failure],
                ) from None
            logger.error("undoing what %r had cut off failed: %s", error, failure)  # noqa: TRY400

    @staticmethod
    def _attempt(step: Callable[[], Any]) -> Exception | None:
        try:
            step()
        except Exception as failure:
            return failure
        return None


def _has_udp(mappings: Sequence[PortMapping]) -> bool:
    if len(mappings) == 1:
        return mappings[0].protocol == "udp"
    return any(mapping.protocol == "udp" for mapping in mappings)


def _forget(number: int) -> "Callable[[ref[KernelMappings]], None]":
    def forget(gone: "ref[KernelMappings]") -> None:
        if _serving.get(number) is gone:
            del _serving[number]

    return forget


def _raise_all(message: str, failures: list[Exception]) -> None:
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup(message, failures)

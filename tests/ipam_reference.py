"""What a network's manager promises, slow and obvious: sets, dicts and loops."""

from dataclasses import dataclass, field

from netalloc.errors import ExhaustedError, InUseError, NotAllocatedError, OutOfRangeError

PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True)
class Port:
    """A published port, or a block of them; `ip` None is every address of the host."""

    host: int
    to: int
    protocol: str = "tcp"
    ip: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Wish:
    """A port that is asked for; `host` None takes a free one, `to` None the same number."""

    to: int | None
    protocol: str = "tcp"
    host: int | None = None
    ip: str | None = None
    count: int = 1


@dataclass
class Held:
    owner: str | None
    key: str | None
    labels: dict[str, str]
    number: int
    ports: list[Port] = field(default_factory=list)


class Reference:
    """Addresses are small ints, `usable` of them; time is `now`, set from outside."""

    def __init__(self, usable, size, ports, cooldown=0.0, sticky=0.0):
        self.usable = set(usable)
        self.ports = ports
        self.cooldown = cooldown
        self.sticky = sticky
        self.now = 0.0
        self.held: dict[int, Held] = {}
        self.reserved: dict[int, str | None] = {}
        self.cooling: dict[int, float] = {}  # until when
        self.marked: set[int] = set()  # not to be given: of the above, or cooled down unnoticed
        self.last: dict[int, tuple[str, str | None, float]] = {}
        self.suspects: dict[int, tuple[int, float]] = {}
        self.history: dict[int, list[tuple[str | None, str | None]]] = {}
        self.size = size
        self.cursor = 0
        self.port_cursor = dict.fromkeys(PROTOCOLS, ports[0])
        self.number = 0

    # ---- addresses

    def allocate(self, owner, ip, key, labels, wishes, allow_cooling):
        if key is not None:
            for address, held in self.held.items():
                if (held.owner, held.key) == (owner, key):
                    if ip is not None:
                        self._check_usable_range(ip)
                        if ip != address:
                            raise InUseError("another address")
                    if wishes and not self._same(held.ports, wishes):
                        raise InUseError("other ports")
                    if labels and labels != held.labels:
                        raise InUseError("other labels")
                    self.suspects.pop(address, None)
                    return address
        if ip is not None:
            self._check_usable_range(ip)
        self._thaw()
        if ip is not None:
            self._claim(ip, owner, allow_cooling)
            address = ip
        else:
            address = self._waiting(owner, key, allow_cooling)
            if address is None:
                address = self._next(allow_cooling)
        self._enter(address, owner, key, labels, wishes)
        return address

    def allocate_many(self, n, owner, labels, wishes):
        self._thaw()
        if n > len(self.usable - self.marked):
            raise ExhaustedError("not so many")
        found = [self._acquire() for _ in range(n)]
        numbers = self.port_plan([wish for _ in found for wish in wishes])
        for i, address in enumerate(found):
            mine = numbers[i * len(wishes) : (i + 1) * len(wishes)]
            self._hold(address, owner, None, labels, mine)
        return found

    def release(self, address):
        for port in list(self.held[address].ports):
            self.unpublish(address, port)
        held = self.held.pop(address)
        self.suspects.pop(address, None)
        self.history.setdefault(address, []).append((held.owner, held.key))
        if self.cooldown:
            self.cooling[address] = self.now + self.cooldown
        elif address not in self.reserved:
            self._free(address)
        if self.sticky and held.owner is not None:
            self.last.pop(address, None)
            self.last[address] = held.owner, held.key, self.now + self.sticky

    def reserve(self, address, owner):
        self._check_usable_range(address)
        if address in self.reserved:
            if self.reserved[address] != owner:
                raise InUseError("reserved")
            return
        if address in self.held:
            if owner is None or self.held[address].owner != owner:
                raise InUseError("held")
        elif address not in self.cooling:
            if address not in self.usable:
                raise OutOfRangeError("never given")
            self.marked.add(address)
        self.last.pop(address, None)
        self.reserved[address] = owner

    def unreserve(self, address):
        self._check_usable_range(address)
        if address not in self.reserved:
            raise NotAllocatedError("not reserved")
        del self.reserved[address]
        if address in self.held:
            return
        if address in self.cooling:
            if self.cooling[address] > self.now:
                return
            del self.cooling[address]
        self._free(address)

    def gc(self, alive, grace):
        dead = []
        for address, held in sorted(self.held.items()):
            suspect = self.suspects.get(address)
            if held.owner is None or held.owner in alive:
                self.suspects.pop(address, None)
            elif suspect is None or suspect[0] != held.number:
                self.suspects[address] = held.number, self.now
            elif self.now - suspect[1] >= grace:
                dead.append(address)
        for address in dead:
            self.release(address)
        return dead

    def reboot(self):
        for address, held in self.held.items():
            self.history.setdefault(address, []).append((held.owner, held.key))
        self.held.clear()
        self.cooling.clear()
        self.last.clear()
        self.suspects.clear()
        self.marked = set(self.reserved)
        self.port_cursor = dict.fromkeys(PROTOCOLS, self.ports[0])

    def _check_usable_range(self, address):
        if address not in self.usable:
            raise OutOfRangeError("not of this network")

    def _thaw(self):
        for address, until in list(self.cooling.items()):
            if until <= self.now:
                del self.cooling[address]
                if address not in self.reserved:
                    self._free(address)

    def _free(self, address):
        if self.marked == self.usable:
            self.cursor = address
        self.marked.discard(address)

    def _acquire(self):
        for i in range(self.size):
            address = (self.cursor + i) % self.size
            if address in self.usable and address not in self.marked:
                self.marked.add(address)
                self.cursor = (address + 1) % self.size
                return address
        raise ExhaustedError("full")

    def _claim(self, address, owner, allow_cooling):
        if address in self.held:
            raise InUseError("held")
        if address in self.reserved and (
            self.reserved[address] is None or self.reserved[address] != owner
        ):
            raise InUseError("reserved")
        if not self._may_cool(address, owner, allow_cooling):
            raise InUseError("cooling")
        self.cooling.pop(address, None)
        self.marked.add(address)

    def _may_cool(self, address, owner, allow_cooling):
        if self.cooling.get(address, 0) <= self.now or allow_cooling:
            return True
        return owner is not None and self.history[address][-1][0] == owner

    def _waiting(self, owner, key, allow_cooling):
        if owner is None:
            return None
        kept = sorted(a for a, o in self.reserved.items() if o == owner and a not in self.held)
        for address in kept:
            if self._may_cool(address, owner, allow_cooling):
                self.cooling.pop(address, None)
                return address
        if kept:
            raise InUseError("what is reserved for it cools down")
        mine = [
            (-until, address)
            for address, (had, its_key, until) in self.last.items()
            if (had, its_key) == (owner, key) and until >= self.now
            if address not in self.held and address not in self.reserved
        ]
        if not mine:
            return None
        _, address = min(mine)
        self.cooling.pop(address, None)
        self.marked.add(address)
        return address

    def _next(self, allow_cooling):
        try:
            return self._acquire()
        except ExhaustedError:
            for address in self.cooling:  # in the order in which they were released
                if allow_cooling and address not in self.reserved:
                    del self.cooling[address]
                    return address
            raise

    def _enter(self, address, owner, key, labels, wishes):
        self._hold(address, owner, key, labels, self.port_plan(wishes))

    def _hold(self, address, owner, key, labels, ports):
        self.number += 1
        self.last.pop(address, None)
        self.held[address] = Held(owner, key, dict(labels), self.number, sorted_ports(ports))

    # ---- ports

    def publish(self, address, wishes):
        ports = self.port_plan(wishes)
        held = self.held[address]
        held.ports = sorted_ports([*held.ports, *ports])
        return ports

    def unpublish(self, address, port):
        self.held[address].ports.remove(port)
        for number in range(port.host, port.host + port.count):
            # Where none of the range was free on that address, this one is the next.
            others = self.taken(port.protocol) | {
                (n, port.ip) for n in range(number, port.host + port.count)
            }
            full = not any(self._is_free(n, port.ip, others) for n in self.ports)
            if number in self.ports and full:
                self.port_cursor[port.protocol] = number

    def port_plan(self, wishes):
        """Ports for all, or none: those named first, then blocks, then single ones."""
        taken = {protocol: self.taken(protocol) for protocol in PROTOCOLS}
        cursor = dict(self.port_cursor)
        made: list[Port | None] = [None] * len(wishes)

        def take(i, first):
            wish = wishes[i]
            for number in range(first, first + wish.count):
                if not self._is_free(number, wish.ip, taken[wish.protocol]):
                    raise InUseError(f"port {number}")
                taken[wish.protocol].add((number, wish.ip))
            to = wish.to if wish.to is not None else first
            made[i] = Port(first, to, wish.protocol, wish.ip, wish.count)

        def round_from(protocol):
            at = self.ports.index(cursor[protocol]) if cursor[protocol] in self.ports else 0
            return [*self.ports[at:], *self.ports[:at]]

        def after(last):
            return self.ports[(self.ports.index(last) + 1) % len(self.ports)]

        for i, wish in enumerate(wishes):
            if wish.host is not None:
                take(i, wish.host)
        for i, wish in enumerate(wishes):
            if wish.host is None and wish.count > 1:
                for first in round_from(wish.protocol):
                    block = range(first, first + wish.count)
                    if block[-1] in self.ports and all(
                        self._is_free(n, wish.ip, taken[wish.protocol]) for n in block
                    ):
                        break
                else:
                    raise ExhaustedError("no such gap")
                take(i, first)
                cursor[wish.protocol] = after(block[-1])
        singles = [w for w in wishes if w.host is None and w.count == 1]
        for place in dict.fromkeys((w.protocol, w.ip) for w in singles):
            for i, wish in enumerate(wishes):
                if wish in singles and (wish.protocol, wish.ip) == place:
                    for number in round_from(wish.protocol):
                        if self._is_free(number, wish.ip, taken[wish.protocol]):
                            break
                    else:
                        raise ExhaustedError("no port")
                    take(i, number)
                    cursor[wish.protocol] = after(number)
        self.port_cursor = cursor
        return made

    def taken(self, protocol):
        """Every (number, host address) of that protocol."""
        return {
            (number, port.ip)
            for held in self.held.values()
            for port in held.ports
            if port.protocol == protocol
            for number in range(port.host, port.host + port.count)
        }

    def _is_free(self, number, ip, taken):
        return not any(
            number == other and (ip is None or where is None or ip == where)
            for other, where in taken
        )

    def _same(self, ports, wishes):
        left = list(ports)
        for wish in sorted(wishes, key=lambda one: one.host is None):
            for port in left:
                if (
                    (port.protocol, port.ip, port.count) == (wish.protocol, wish.ip, wish.count)
                    and wish.host in (None, port.host)
                    and port.to == (port.host if wish.to is None else wish.to)
                ):
                    left.remove(port)
                    break
            else:
                return False
        return not left


def sorted_ports(ports):
    return sorted(ports, key=lambda port: (port.host, port.protocol, port.ip or ""))

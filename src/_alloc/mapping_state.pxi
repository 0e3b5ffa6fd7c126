# What a port mapping says. Thousands are made at a time, of values that are plain already: to see
# that here, and to keep the numbers at hand, takes a tenth of what it takes in Python.

cdef uint8_t *in_network_order(uint8_t *at, word n) noexcept:
    """Write a number of 32 bits; where the next one goes."""
    at[0], at[1], at[2], at[3] = n >> 24 & 255, n >> 16 & 255, n >> 8 & 255, n & 255
    return at + 4

cdef bytes UNSPECIFIED = bytes(16)
cdef bytes MAPPED = bytes(10) + b"\xff\xff"   # of an IPv4 address in IPv6 form, RFC 4291 2.5.5.2

cdef extern from "<arpa/inet.h>":
    int inet_pton(int family, const char *text, void *into) nogil
    enum: AF_INET6

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef object parsed_v6(str text):
    """The IPv6Address that a text says; None where that is for `ipaddress` to say."""
    cdef uint8_t found[16]
    cdef Py_ssize_t size
    cdef const char *plain
    if not text.isascii() or "." in text:
        return None
    plain = PyUnicode_AsUTF8AndSize(text, &size)
    if size > 39 or "\0" in text or inet_pton(AF_INET6, plain, found) != 1:
        return None
    return v6_address(int.from_bytes(found[:16], "big"))

cdef bytes in_order_v6(object ip, word *end):
    """An IPv6Address in network order, and its lower half."""
    cdef bytes made = number_v6(ip).to_bytes(16, "big")
    cdef const uint8_t *half = <const uint8_t *>PyBytes_AS_STRING(made) + 8
    cdef int i
    end[0] = 0
    for i in range(8):
        end[0] = end[0] << 8 | half[i]
    return made

@cython.auto_pickle(False)
cdef class MappingState:
    """MappingState(host_port, dest, protocol='tcp', host_ip=None, count=1, owner=None)\n--\n
    A host port, or `count` adjacent ones, and where they lead; see model.PortMapping.

    Values that are plain are taken as they are. Others are for the class's
    `_plain(host_port, dest, protocol, host_ip, count, owner)`, which gives the same six, plain,
    or raises. All of them are ints, texts and addresses, so the collector need not know.
    """

    cdef readonly object host_port, protocol, host_ip, count, owner
    cdef readonly tuple dest
    cdef word ports, to, at     # what tells it from others, but for the protocol
    cdef bytes to6, at6         # the addresses of IPv6, in network order; `to`, `at`: their ends

    def __cinit__(self, host_port, dest, protocol="tcp", host_ip=None, count=1, owner=None):
        PyObject_GC_UnTrack(<void *>self)
        if not self.take(host_port, dest, protocol, host_ip, count, owner):
            host_port, dest, protocol, host_ip, count, owner = self._plain(
                host_port, dest, protocol, host_ip, count, owner
            )
            if not self.take(host_port, dest, protocol, host_ip, count, owner):
                self.keep(host_port, dest, protocol, host_ip, count, owner)
                self.number(dest[0], host_ip)
                self.ports = <word>host_port << 40 | <word>dest[1] << 20 | <word>count

    cdef int take(
        self, object host_port, object dest, object protocol, object host_ip, object count,
        object owner,
    ) except -1:
        """Keep the values and return 1, if all of them are plain."""
        cdef word port, to_port, n, to, at = 0
        cdef bytes to6 = None, at6 = None
        cdef uint32_t number
        cdef int prefix
        if type(dest) is not tuple or len(<tuple>dest) != 2 or type(protocol) is not str:
            return 0
        if not (plain_word(host_port, &port) and 1 <= port <= 65535):
            return 0
        ip, second = (<tuple>dest)[0], (<tuple>dest)[1]
        if not (plain_word(second, &to_port) and 1 <= to_port <= 65535):
            return 0
        if not plain_word(count, &n) or not 1 <= n <= 65536 - max(port, to_port):
            return 0
        if protocol != "tcp" and protocol != "udp" and protocol != "sctp":
            return 0
        if owner is not None and not is_plain_text(owner, 255):
            return 0
        cdef object six = ip if read_v6(ip) else None
        if six is None and not read_v4(ip, &to):
            if type(ip) is not str:
                return 0
            if parse_v4(ip, &number, &prefix) == 1:
                to = number
                dest = (v4_address(number), second)
            else:
                six = parsed_v6(<str>ip)
                if six is None:
                    return 0
                dest = (six, second)
        if six is not None:
            to6 = in_order_v6(six, &to)
            if to6.startswith(MAPPED) or to6.startswith(b"\xff") or to6.startswith(bytes(15)):
                return 0                    # not one that a container has
            if host_ip is not None:
                if not read_v6(host_ip):
                    return 0
                at6 = in_order_v6(host_ip, &at)
                if at6 == UNSPECIFIED:
                    return 0                # :: is for every address, as None is
        elif host_ip is not None and not (read_v4(host_ip, &at) and at != 0):
            return 0                        # and so is 0.0.0.0
        self.keep(host_port, dest, protocol, host_ip, count, owner)
        self.ports = port << 40 | to_port << 20 | n
        self.to, self.at = to, at
        self.to6, self.at6 = to6, at6
        return 1

    cdef int keep(
        self, object host_port, tuple dest, object protocol, object host_ip, object count,
        object owner,
    ) except -1:
        PyObject_GC_UnTrack(<void *>dest)
        self.host_port, self.dest, self.protocol = host_port, dest, protocol
        self.host_ip, self.count, self.owner = host_ip, count, owner
        return 0

    cdef int number(self, object ip, object host_ip) except -1:
        """Enter the addresses, where `ipaddress` is not laid out as expected."""
        self.to = int(ip) & <object>0xFFFFFFFFFFFFFFFF
        self.at = 0 if host_ip is None else int(host_ip) & <object>0xFFFFFFFFFFFFFFFF
        if ip.version == 6:
            self.to6 = ip.packed
            self.at6 = None if host_ip is None else host_ip.packed
        return 0

    @property
    def dest_number(self):
        """The address that it leads to, as a number."""
        if self.to6 is not None:
            return int.from_bytes(self.to6, "big")
        return from_word(self.to)

    @property
    def version(self):
        """4 or 6, the version of IP that it is about."""
        return 4 if self.to6 is None else 6

    def packed(self, bytes between not None, /):
        """Host address if there is one, protocol, host port; what goes between; address, port.

        In network order, each padded to four bytes, as keys and values of the kernel's maps are.
        """
        cdef Py_ssize_t middle = len(between)
        if self.to6 is not None:
            return self.packed_v6(between)
        cdef bytes made = PyBytes_FromStringAndSize(NULL, 20 + middle if self.at else 16 + middle)
        cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(made)
        if self.at:
            at = in_network_order(at, self.at)
        at = in_network_order(
            at, (6 if self.protocol == "tcp" else 17 if self.protocol == "udp" else 132) << 24
        )
        at = in_network_order(at, (self.ports >> 40 & 0xFFFF) << 16)
        memcpy(at, PyBytes_AS_STRING(between), middle)
        at = in_network_order(at + middle, self.to)
        in_network_order(at, (self.ports >> 20 & 0xFFFF) << 16)
        return made

    cdef bytes packed_v6(self, bytes between):
        cdef Py_ssize_t middle = len(between), host = 0 if self.at6 is None else 16
        cdef bytes made = PyBytes_FromStringAndSize(NULL, 28 + host + middle)
        cdef uint8_t *at = <uint8_t *>PyBytes_AS_STRING(made)
        if host:
            memcpy(at, PyBytes_AS_STRING(self.at6), 16)
        at = in_network_order(
            at + host, (6 if self.protocol == "tcp" else 17 if self.protocol == "udp" else 132) << 24
        )
        at = in_network_order(at, (self.ports >> 40 & 0xFFFF) << 16)
        memcpy(at, PyBytes_AS_STRING(between), middle)
        memcpy(at + middle, PyBytes_AS_STRING(self.to6), 16)
        in_network_order(at + middle + 16, (self.ports >> 20 & 0xFFFF) << 16)
        return made

    def __eq__(self, other):
        cdef MappingState two
        if type(other) is not type(self):
            return NotImplemented
        two = <MappingState>other
        return (
            self.ports == two.ports and self.to == two.to and self.at == two.at
            and self.protocol == two.protocol and self.to6 == two.to6 and self.at6 == two.at6
        )

    def __hash__(self):
        return hash((self.ports, self.to, self.at, self.protocol))

"""A private host with a network of three containers, one of which is hostile."""

import os
import socket
import subprocess
from contextlib import nullcontext, suppress
from ipaddress import ip_address
from pathlib import Path

from attach_lab import GATEWAYS, AttachLab
from lab import use_iptables
from netalloc import NetworkManager
from netalloc.host import namespaces
from netalloc.host.links import Links

NETWORK = ("10.88.0.1/16", "fd00:88::1/64")
UPLINK = tuple(map(ip_address, ("192.0.2.1", "2001:db8::1")))
OUTSIDE = tuple(map(ip_address, ("192.0.2.2", "2001:db8::2")))
FAMILIES = (socket.AF_INET, socket.AF_INET6)
KINDS = (socket.SOCK_DGRAM, socket.SOCK_STREAM)
OPEN, SECRET = 80, 81  # ports of the host: of the services, and not


class GuardLab(AttachLab):
    """`evil`, `victim` and `friend` are attached; all of them and the host answer everywhere."""

    def __init__(
        self,
        mode="bridge",
        isolation="guarded",
        backend="nftables",
        *,
        bridge_nf=1,
        store=None,
        **more,
    ):
        super().__init__(bridge=mode == "bridge")
        backend, _, self._variant = backend.partition("-")
        self._options = {"isolation": isolation, "store": store, "backend": backend, **more}
        if isolation == "guarded":
            self._options.setdefault("services", [f"{OPEN}/udp", f"{OPEN}/tcp"])
        self.mode = mode
        self._bridge_nf = bridge_nf

    def _build(self):
        if self._variant:
            self.callback(os.environ.__setitem__, "PATH", os.environ["PATH"])
            use_iptables(self._variant)
        super()._build()
        self._stay_on_one_processor()
        for name in ("iptables", "ip6tables"):
            setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
            if setting.exists():
                setting.write_text(str(self._bridge_nf))
        self._add_outside()
        self.manager = self.enter_context(self.open())
        self.names = ("evil", "victim", "friend")
        self.evil, self.victim, self.friend = many = [
            self.manager.allocate(name) for name in self.names
        ]
        for name, one in zip(self.names, many, strict=True):
            self.namespace(name)
            one.attach(netns=name)
        self.mac = {name: self.mac_in(name) for name in self.names}
        self.gateway_mac = self._gateway_mac()
        self._raw = self.packets("evil")

    def _stay_on_one_processor(self):
        """So that what is sent one after the other arrives so."""
        before = os.sched_getaffinity(0)
        self.callback(os.sched_setaffinity, 0, before)
        os.sched_setaffinity(0, {min(before)})

    def open(self):
        bridge = "br0" if self.mode == "bridge" else None
        return NetworkManager(
            bridge, network=NETWORK, mode=self.mode, ports=range(20000, 21000), **self._options
        )

    def _add_outside(self):
        namespaces.create("outside")
        with Links() as links:
            links.create_veth("uplink", "eth0", namespace="outside")
            links.set_up("uplink")
        run("ip", "-n", "outside", "link", "set", "eth0", "up")
        for here, there in zip(UPLINK, OUTSIDE, strict=True):
            bits, nodad = ("24", []) if here.version == 4 else ("64", ["nodad"])
            run("ip", "addr", "add", f"{here}/{bits}", "dev", "uplink", *nodad)
            run("ip", "-n", "outside", "addr", "add", f"{there}/{bits}", "dev", "eth0", *nodad)
            default = ("route", "add", "default", "via", str(here))
            run("ip", "-n", "outside", f"-{here.version}", *default)

    def mac_in(self, name):
        """The MAC address of a container."""
        with namespaces.inside(name):
            return mac_of("eth0")

    def _gateway_mac(self):
        """What the containers' packets for the host are addressed to."""
        if self.mode == "bridge":
            return mac_of("br0")
        return bytes.fromhex("02fefefefefe")

    def packets(self, name, device="eth0"):
        """A socket for whole frames in a namespace."""
        with namespaces.inside(name):
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.callback(raw.close)
        raw.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        raw.bind((device, 3))
        raw.setblocking(False)
        return raw

    def inject(self, *frames):
        """Have the hostile one send these."""
        for frame in frames:
            self._raw.send(frame)

    def seen(self, name, frames, part=b"", sender=None):
        """Which of these frames get to another container, changed on the way or not.

        A frame is told by what it has behind the Ethernet header. A datagram in the end that
        always passes says when all have.
        """
        raw = self.packets(name)
        for frame in frames:
            (sender or self._raw).send(frame)
        self.settle()
        payloads = {frame[14:] for frame in frames}
        found = []
        with suppress(BlockingIOError):
            while True:
                frame = raw.recv(65536)
                if frame[14:] in payloads or (part and part in frame):
                    found.append(frame)
        return found

    def settle(self):
        """Wait until all that the hostile one has sent is through.

        When the first of these is answered the host has seen all of it, and what it sends on
        is before the second.
        """
        for _ in range(2):
            assert self.asked("evil", GATEWAYS[0], port=OPEN) == "host"

    def asked(self, name, to, kind=socket.SOCK_DGRAM, port=OPEN, timeout=2.0):
        """Who answers there, or None where none does."""
        family = FAMILIES[ip_address(to).version == 6]
        place = namespaces.inside(name) if name else nullcontext()
        with place:
            client = socket.socket(family, kind)
        with client:
            client.settimeout(timeout)
            try:
                client.connect((str(to), port))
                client.send(b"?")
                return client.recv(200).decode().partition(" ")[0] or None
            except OSError:
                return None

    def serve_everywhere(self):
        for family in FAMILIES:
            for kind in KINDS:
                for name in (*self.names, "outside", None):
                    self.serve(name, kind, family)
                self.serve(None, kind, family, SECRET)


def mac_of(device):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
        probe.bind((device, 0))
        return probe.getsockname()[4]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

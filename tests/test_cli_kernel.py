"""The command line on a private host: bridges, namespaces, mappings in the kernel, real traffic."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import msgspec
import pytest

from command_line import CommandLine
from lab import Lab
from netalloc.host import namespaces
from netalloc.operations import answers

pytestmark = pytest.mark.root


@pytest.fixture(params=["nftables", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def host() -> Iterator[Lab]:
    """A private host with an outside, and nothing of ours."""
    with Lab("nft", containers=0, ipv6=True) as lab:
        yield lab


@pytest.fixture
def na(host: Lab) -> CommandLine:
    return CommandLine(Path("/run/state/host.db"))


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def answer_of(host: Lab, name: str, ip: str, to: tuple[str, int]) -> str:
    """What the outside hears from a published port, served in a container by its name."""
    from lab import Place

    place = Place(name, name, ip, ip)
    host.serve(place, "tcp", 80)
    return host.ask(host.outside, "tcp", to)[0]


@pytest.mark.parametrize("mode", ["bridge", "routed"])
def test_one_call_puts_a_namespace_on_a_network_with_a_port(
    host: Lab, na: CommandLine, backend: str, mode: str
) -> None:
    how = ["--mode", "routed"] if mode == "routed" else ["--bridge", "web0"]
    na.well("network", "create", "web", "10.77.0.1/24", *how, "--backend", backend)
    namespaces.create("shop")
    out = na.well("allocate", "shop", "--attach", "shop", "--publish", "8080:80")
    assert out.startswith("10.77.0.2/24  web  held by shop (eth0) since ")
    assert answer_of(host, "shop", "10.77.0.2", (host.address, 8080)) == "shop"
    assert na.well("who", "tcp/8080").endswith("(10.77.0.2:80), kernel agrees\n")
    assert na.well("check") == "all is well\n"
    assert na.well("release", "shop") == "released 10.77.0.2 of shop\n"
    assert na.well("network", "rm", "web") == "removed network web\n"
    assert "web0" not in interfaces()
    assert "netalloc" not in host.run("nft", "list", "tables")


def test_a_bridge_is_made_and_goes_with_its_network_and_one_that_is_there_stays(
    host: Lab, na: CommandLine, backend: str
) -> None:
    created = na.json(
        "network", "create", "web", "10.77.0.1/24", "fd00:77::1/64", "--backend", backend
    )
    assert created["bridge"] == "web"
    shown = host.run("ip", "-o", "address", "show", "dev", "web")
    assert "10.77.0.1/24" in shown
    assert "fd00:77::1/64" in shown
    na.well("network", "create", "own", "10.200.0.1/16", "--bridge", "br0", "--backend", backend)
    na.well("network", "rm", "web")
    na.well("network", "rm", "own")
    left = interfaces()
    assert "web" not in left
    assert "br0" in left


def test_a_refused_network_leaves_no_bridge(host: Lab, na: CommandLine) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    for name, subnet in (
        ("other", "10.77.0.129/25"),
        ("other", "10.78.0.1/24"),
        ("web", "10.78.0.1/24"),
    ):
        bridge = "web0" if subnet == "10.78.0.1/24" and name == "other" else "new0"
        assert na("network", "create", name, subnet, "--bridge", bridge).status == 4
    assert "new0" not in interfaces()
    assert "web0" in interfaces()


def test_what_another_program_took_away_is_said_and_put_back(host: Lab, na: CommandLine) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0", "--backend", "nftables")
    namespaces.create("shop")
    na.well("allocate", "shop", "--attach", "shop", "--publish", "8080:80")
    table = "netalloc-networks"
    host.run("nft", "delete", "table", "inet", table)
    missing = na("check")
    assert missing.status == 1
    assert missing.out
    assert "kernel" in na.well("who", "tcp/8080")
    assert "agrees" not in na.well("who", "tcp/8080")
    planned = na.well("reconcile", "--dry-run")
    assert planned.startswith("dry run, nothing is changed:\n")
    assert na("check").status == 1
    na.well("reconcile")
    assert na.well("check") == "all is well\n"
    assert answer_of(host, "shop", "10.77.0.2", (host.address, 8080)) == "shop"


def test_a_bridge_that_is_gone_is_said_and_comes_back_with_its_containers(
    host: Lab, na: CommandLine
) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    namespaces.create("shop")
    na.well("allocate", "shop", "--attach", "shop", "--publish", "8080:80")
    host.run("ip", "link", "delete", "web0")
    found = na("check")
    assert (found.status, found.out) == (1, "bridge web0 of network web is not there\n")
    assert "bridge web0 is not there" in na("doctor").out
    na.well("reconcile")
    assert na.well("check") == "all is well\n"
    assert answer_of(host, "shop", "10.77.0.2", (host.address, 8080)) == "shop"


def test_a_port_that_the_host_listens_on_is_told_and_refused(host: Lab, na: CommandLine) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    na.well("allocate", "shop")
    with socket.create_server(("0.0.0.0", 9922)):
        pid = os.getpid()
        said = f"(pid {pid}) listens on 0.0.0.0:9922"
        assert na.well("why", "tcp/9922").startswith("refused: ")
        assert said in na.well("why", "tcp/9922")
        assert said in na.well("who", "tcp/9922")
        for more in ([], ["--dry-run"]):
            refused = na("publish", "shop", "9922:22", *more)
            assert refused.status == 4
            assert said in refused.err
        na.well("publish", "shop", "9922:22", "--no-check-host")
    assert "no socket of this host has it" in na.well("why", "tcp/9923")


def test_what_fails_half_way_leaves_nothing(host: Lab, na: CommandLine) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    before = na.well("export")
    answer = na("allocate", "shop", "--attach", "nosuch", "--publish", "8080:80")
    assert answer.status == 9
    assert "nosuch" in answer.err
    dry = na("allocate", "shop", "--attach", "nosuch", "--dry-run")
    assert dry.status == 9
    assert na.well("export") == before
    # Asked again with its key it keeps what it has, whatever fails.
    na.well("allocate", "kept", "--key", "k")
    assert na("allocate", "kept", "--key", "k", "--attach", "nosuch").status == 9
    assert [one["owner"] for one in na.json("ls", "web")] == ["kept"]


def test_attach_detach_and_a_tap(host: Lab, na: CommandLine) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    namespaces.create("shop")
    na.well("allocate", "shop")
    answer = na.json("attach", "shop", "shop", "--ifname", "net0", "--mtu", "1400")
    jsonschema.validate(answer, msgspec.json.schema(answers.Lease))
    assert (answer["attachment"]["ifname"], answer["attachment"]["mtu"]) == ("net0", 1400)
    assert na.json("detach", "shop")["attachment"] is None
    tap = na.json("attach", "shop", "--tap", "vm0", "--uid", "1000")
    assert tap["attachment"]["kind"] == "tap"
    assert "vm0" in interfaces()
    assert na("attach", "shop").status == 2
    na.well("release", "shop")
    assert "vm0" not in interfaces()


def test_looking_needs_no_privilege_but_to_read(host: Lab, na: CommandLine) -> None:
    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    na.well("allocate", "shop", "--publish", "8080:80")
    Path("/run/state").chmod(0o755)
    for path in Path("/run/state").iterdir():
        path.chmod(0o644)
    user = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]
    from command_line import RUN

    def as_user(*arguments: str) -> tuple[int, str]:
        import subprocess

        done = subprocess.run(
            [*user, *RUN, *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "NETALLOC_STORE": str(na.store)},
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    for arguments in (
        ["ls"],
        ["ls", "web"],
        ["who", "tcp/8080"],
        ["why", "10.77.0.2"],
        ["history", "10.77.0.2"],
    ):
        status, out = as_user(*arguments)
        assert status == 0, (arguments, out)
    status, out = as_user("check")
    assert (status, "the kernel was not compared" in out) == (0, True), out
    assert as_user("doctor")[0] in (0, 1, 3)
    for arguments in (["release", "shop"], ["allocate", "mine"], ["network", "rm", "web"]):
        status, out = as_user(*arguments)
        assert status in (1, 11, 13), (arguments, out)
        assert "as root" in out
    assert [one["owner"] for one in na.json("ls", "web")] == ["shop"]


def test_the_doctor_sees_what_is_in_the_way(host: Lab, na: CommandLine) -> None:
    na.well(
        "network", "create", "web", "10.77.0.1/24", "--bridge", "web0", "--ports", "40000-40009"
    )

    def findings() -> dict[str, list[dict[str, object]]]:
        found: dict[str, list[dict[str, object]]] = {}
        for one in na("doctor", "--json").json["findings"]:
            found.setdefault(one["name"], []).append(one)
        return found

    before = findings()
    assert before["forwarding"][0]["status"] == "ok"
    assert before["bridge-ports"][0]["room"] == 1023
    assert before["forward-policy"][0]["status"] == "ok"
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text("40000-40008")
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 60000")
    host.run("iptables", "-P", "FORWARD", "DROP")
    for number in range(9):
        na.well("allocate", f"o{number}")
    na.well("publish", "o1", *[f"4000{i}:80{i}" for i in range(10)])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
    after = findings()
    assert after["forwarding"][0]["status"] == "critical"
    assert "ip_forward" in str(after["forwarding"][0]["fix"])
    assert after["reserved-ports"][0]["status"] == "warning"
    assert after["outgoing-ports"][0]["status"] == "ok"
    assert after["forward-policy"][0]["status"] == "warning"
    assert after["host-ports"][0]["status"] == "critical"
    assert after["host-ports"][0]["room"] == 0
    assert na("doctor").status == 3


def test_another_store_is_named_by_the_doctor(host: Lab, na: CommandLine) -> None:
    from netalloc import NetworkManager

    na.well("network", "create", "web", "10.77.0.1/24", "--bridge", "web0")
    with NetworkManager("br0", network="10.200.0.1/16", store="/run/other.db"):
        refused = na("allocate", "shop")
        assert refused.status == 4
        assert "/run/other.db" in refused.err
        found = [
            one
            for one in na("doctor", "--json").json["findings"]
            if one["name"] == "other-managers"
        ]
        assert found[0]["status"] == "critical"
        assert "/run/other.db" in found[0]["text"]

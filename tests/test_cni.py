"""The CNI IPAM plugin: every command of every version, and every rule of the specification."""

import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cni_plugin import IPAM, Plugin, config
from netalloc import NetworkManager, NetworkView
from netalloc.cni.ipam import answer
from netalloc.cni.versions import SUPPORTED

FOUR = {"subnet": "10.1.2.0/24"}
SIX = {"subnet": "fd00:1::/64"}
MANY = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")


@pytest.fixture
def both(tmp_path: Path) -> Plugin:
    """A set of each family."""
    return Plugin(config(tmp_path, ranges=[[FOUR], [SIX]]))


def addresses(result: dict[str, Any]) -> list[str]:
    return [one["address"] for one in result["ips"]]


# ---- versions


@pytest.mark.parametrize("version", MANY)
def test_a_result_has_the_form_of_its_version(tmp_path: Path, version: str) -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "fd00:9::/64", "gw": "fd00:1::9"}]
    plugin = Plugin(config(tmp_path, version, ranges=[[FOUR], [SIX]], routes=routes))
    result = plugin.well("ADD")
    family = {"version": "4"} if version < "1" else {}
    six = {"version": "6"} if version < "1" else {}
    assert result == {
        "cniVersion": version,
        "ips": [
            {"address": "10.1.2.2/24", "gateway": "10.1.2.1", **family},
            {"address": "fd00:1::2/64", "gateway": "fd00:1::1", **six},
        ],
        "routes": routes,
        "dns": {},
    }
    assert plugin.well("DEL") is None


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_an_old_result_has_one_address_of_each_family(tmp_path: Path, version: str) -> None:
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    plugin = Plugin(config(tmp_path, version, ranges=[[FOUR], [SIX]], routes=routes))
    assert plugin.well("ADD") == {
        "cniVersion": version,
        "ip4": {"ip": "10.1.2.2/24", "gateway": "10.1.2.1", "routes": [routes[0]]},
        "ip6": {"ip": "fd00:1::2/64", "gateway": "fd00:1::1", "routes": [routes[1]]},
        "dns": {},
    }
    two = Plugin(config(tmp_path / "two", version, ranges=[[FOUR], [{"subnet": "10.9.0.0/24"}]]))
    _, text = two.refused("ADD")
    assert text == f"CNI version {version} does not support more than 1 address per family"
    assert held(two) == [], "nothing is kept of what is refused"


@pytest.mark.parametrize("version", SUPPORTED)
def test_commands_are_those_of_the_version(tmp_path: Path, version: str) -> None:
    plugin = Plugin(config(tmp_path, version, **FOUR))
    result = plugin.well("ADD")
    if version < "0.4.0":
        assert plugin.refused("CHECK", prevResult=result) == (
            1,
            "config version does not allow CHECK",
        )
    else:
        plugin.well("CHECK", prevResult=result)
    for command in ("GC", "STATUS"):
        if version < "1.1.0":
            assert plugin.refused(command) == (1, f"config version does not allow {command}")
        else:
            plugin.well(command, **{"cni__dev/valid-attachments": []})
    told = plugin.well("VERSION")
    assert told == {"cniVersion": version, "supportedVersions": list(SUPPORTED)}


def test_a_version_that_is_not_known_is_refused(tmp_path: Path) -> None:
    code, text = Plugin(config(tmp_path, "9.9.9", **FOUR)).refused("ADD")
    assert code == 1
    assert "9.9.9" in text


def test_without_a_command_it_says_what_it_is() -> None:
    done = subprocess.run(IPAM, input=b"", capture_output=True, timeout=30, check=True, env={})
    assert done.stdout == b""
    assert b"CNI protocol versions supported: 0.1.0, " in done.stderr


# ---- variables


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
    ],
)
def test_missing_variables_are_named(tmp_path: Path, command: str, missing: str) -> None:
    nothing = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), "")
    code, text = Plugin(config(tmp_path, **FOUR)).refused(command, **nothing)
    assert (code, text) == (4, f"required env variables [{missing}] missing")


@pytest.mark.parametrize("container", ["-a", "a/b", "a b", ".", "ü", "a" * 256, "a\nb"])
def test_a_container_id_is_checked(tmp_path: Path, container: str) -> None:
    code, text = Plugin(config(tmp_path, **FOUR)).refused("ADD", container)
    assert code in (3, 4)
    assert "CNI_CONTAINERID" in text


@pytest.mark.parametrize("ifname", ["a/b", "a:b", "a b", ".", "..", "a" * 16, "a\tb"])
def test_an_interfaces_name_is_checked(tmp_path: Path, ifname: str) -> None:
    code, text = Plugin(config(tmp_path, **FOUR)).refused("ADD", "c0", ifname)
    assert code == 4
    assert "CNI_IFNAME" in text


# ---- ADD


def test_each_interface_gets_the_next_address_and_the_same_one_no_second(both: Plugin) -> None:
    assert addresses(both.well("ADD")) == ["10.1.2.2/24", "fd00:1::2/64"]
    assert addresses(both.well("ADD", "c0", "eth1")) == ["10.1.2.3/24", "fd00:1::3/64"]
    assert addresses(both.well("ADD", "c1")) == ["10.1.2.4/24", "fd00:1::4/64"]
    _, text = both.refused("ADD")
    assert "duplicate allocation" in text
    assert len(held(both)) == 6


@pytest.mark.parametrize(
    ("ipam", "first", "last"),
    [
        ({"subnet": "10.1.2.0/29"}, "10.1.2.2/29", "10.1.2.6/29"),
        ({"subnet": "10.1.2.0/29", "gateway": "10.1.2.3"}, "10.1.2.1/29", "10.1.2.6/29"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.50", "rangeEnd": "10.1.2.51"}, "10.1.2.50/24", "10.1.2.51/24"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.250"}, "10.1.2.250/24", "10.1.2.254/24"),
        ({"subnet": "fd00::/48", "rangeStart": "fd00::10", "rangeEnd": "fd00::11"}, "fd00::10/48", "fd00::11/48"),
        ({"ranges": [[
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.30", "rangeEnd": "10.1.2.31"},
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.10", "rangeEnd": "10.1.2.12"},
        ]]}, "10.1.2.10/24", "10.1.2.31/24"),
        ({"ranges": [[{"subnet": "10.1.2.0/30"}, {"subnet": "10.1.3.0/30"}]]}, "10.1.2.2/30", "10.1.3.2/30"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_ranges_are_given_from_the_first_to_the_last(
    tmp_path: Path, ipam: dict[str, Any], first: str, last: str
) -> None:
    plugin = Plugin(config(tmp_path, **ipam))
    found = []
    for number in range(20):
        status, result = plugin("ADD", f"c{number}")
        if status:
            assert "no IP addresses available in range set" in result["msg"]
            break
        found += addresses(result)
    assert (found[0], found[-1]) == (first, last)
    assert len(set(found)) == len(found)
    gone, _, _ = found[0].partition("/")
    plugin.well("DEL", "c0")
    assert addresses(plugin.well("ADD", "again"))[0].startswith(f"{gone}/")


@pytest.mark.parametrize("how", ["args", "cni", "runtime"])
def test_wishes_are_granted_in_whichever_way_they_come(both: Plugin, how: str) -> None:
    wanted = ["10.1.2.77", "fd00:1::77"]
    more: dict[str, Any] = {
        "args": {"CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAME=x;IP={','.join(wanted)}"},
        "cni": {"args": {"cni": {"ips": wanted}}},
        "runtime": {"runtimeConfig": {"ips": [f"{wanted[0]}/24", f"{wanted[1]}/64"]}},
    }[how]
    assert addresses(both.well("ADD", **more)) == ["10.1.2.77/24", "fd00:1::77/64"]
    _, text = both.refused("ADD", "c1", **more)
    assert "10.1.2.77 is held by c0" in text
    assert len(held(both)) == 2, "the other family is given back"


def test_a_wish_that_fits_none_is_refused_and_nothing_kept(both: Plugin) -> None:
    for wish in ("10.9.9.9", "10.1.2.1", "10.1.2.255"):
        _, text = both.refused("ADD", runtimeConfig={"ips": [wish]})
        assert wish in text
    _, text = both.refused("ADD", runtimeConfig={"ips": ["10.9.9.9", "10.1.2.9", "10.8.8.8"]})
    assert text == "failed to allocate all requested IPs: 10.9.9.9, 10.8.8.8"
    assert held(both) == []


def test_args_that_are_not_known_are_refused_unless_told_otherwise(both: Plugin) -> None:
    code, text = both.refused("ADD", CNI_ARGS="K8S_POD_NAME=x")
    assert (code, "K8S_POD_NAME" in text) == (4, True)
    both.refused("ADD", CNI_ARGS="nonsense")
    both.well("ADD", CNI_ARGS="K8S_POD_NAME=x;IgnoreUnknown=true")


def test_a_resolver_is_read(tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(
        "# c\nnameserver 192.0.2.3\nnameserver fd00::3\ndomain a.example\nsearch b c\noptions ndots:5\n"
    )
    plugin = Plugin(config(tmp_path, resolvConf=str(resolv), **FOUR))
    assert plugin.well("ADD")["dns"] == {
        "nameservers": ["192.0.2.3", "fd00::3"],
        "domain": "a.example",
        "search": ["b", "c"],
        "options": ["ndots:5"],
    }
    plugin.config["ipam"]["resolvConf"] = str(tmp_path / "missing")
    code, text = plugin.refused("ADD", "c1")
    assert (code, "missing" in text) == (5, True)
    assert len(held(plugin)) == 1


def test_a_network_of_ours_is_named(tmp_path: Path) -> None:
    store = str(tmp_path / "host.db")
    with NetworkManager(
        "br0", network=("10.5.0.1/24", "fd00:5::1/64"), backend="null", name="lab", store=store
    ) as lab:
        plugin = Plugin(config(tmp_path, network="lab", store=store))
        result = plugin.well("ADD")
        assert result["ips"] == [
            {"address": "10.5.0.2/24", "gateway": "10.5.0.1"},
            {"address": "fd00:5::2/64", "gateway": "fd00:5::1"},
        ]
        plugin.well("CHECK", prevResult=result)
        lab.allocate("somebody else")  # without a key: not of the plugin
        plugin.well("STATUS")
        plugin.well("GC", **{"cni__dev/valid-attachments": []})
        assert [one.owner for one in lab.interfaces()] == ["somebody else"]
        plugin.well("DEL")
    unknown = Plugin(config(tmp_path, network="nosuch", store=store))
    assert "nosuch" in unknown.refused("ADD")[1]
    unknown.well("DEL")


@pytest.mark.parametrize(
    ("ipam", "says"),
    [
        ({}, "no IP ranges"),
        ({"ranges": [[]]}, "empty"),
        ({"subnet": "nonsense"}, "nonsense"),
        ({"subnet": "10.1.2.0/31"}, "too small"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"}, "not in network"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.5"}, "behind"),
        ({"ranges": [[FOUR, SIX]]}, "both families"),
        ({"ranges": [[FOUR], [FOUR]]}, "overlaps"),
        ({"subnet": 5}, "type"),
        ({"ranges": {}}, "type"),
        ({"subnet": "10.1.2.0/24", "routes": [{"dst": "x"}]}, "route"),
        ({"subnet": "10.1.2.0/24", "gateway": "x"}, "gateway"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_configuration_that_cannot_be_is_refused(
    tmp_path: Path, ipam: dict[str, Any], says: str
) -> None:
    code, text = Plugin(config(tmp_path, **ipam)).refused("ADD")
    assert code in (2, 7)
    assert says in text
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_is_changed_takes_effect_when_nothing_is_held(tmp_path: Path) -> None:
    plugin = Plugin(config(tmp_path, **FOUR))
    plugin.well("ADD")
    plugin.config["ipam"]["rangeStart"] = "10.1.2.100"
    code, text = plugin.refused("ADD", "c1")
    assert (code, "is registered with" in text) == (7, True)
    plugin.well("DEL")
    assert addresses(plugin.well("ADD", "c1")) == ["10.1.2.100/24"]


# ---- DEL, CHECK, GC, STATUS


def test_del_never_fails_for_what_is_gone(both: Plugin, tmp_path: Path) -> None:
    both.well("DEL")
    assert list(tmp_path.iterdir()) == [], "nor is anything made"
    both.well("ADD")
    for _ in range(2):
        both.well("DEL", CNI_NETNS="")
    assert held(both) == []


def test_a_late_del_frees_no_successors_address(both: Plugin) -> None:
    first = addresses(both.well("ADD", "old"))
    both.well("DEL", "old")
    second = both.well("ADD", "new", runtimeConfig={"ips": [first[0]]})
    assert addresses(second)[0] == first[0]
    both.well("DEL", "old")
    both.well("CHECK", "new", prevResult=second)
    assert {owner for owner, _, _ in held(both)} == {"new"}


def test_del_finds_what_an_earlier_configuration_gave(tmp_path: Path) -> None:
    plugin = Plugin(config(tmp_path, ranges=[[FOUR], [SIX]]))
    plugin.well("ADD")
    plugin.config["ipam"]["ranges"] = [[FOUR]]
    plugin.well("DEL")
    assert held(plugin) == []


def test_check_wants_the_very_addresses(both: Plugin) -> None:
    result = both.well("ADD")
    both.well("CHECK", prevResult=result)
    assert both.refused("CHECK")[0] == 7
    other = {**result, "ips": [{"address": "10.1.2.99/24"}, result["ips"][1]]}
    assert "10.1.2.2 is held" in both.refused("CHECK", prevResult=other)[1]
    assert "c9" in both.refused("CHECK", "c9", prevResult=result)[1]
    both.well("DEL")
    both.refused("CHECK", prevResult=result)


def test_gc_frees_what_is_not_valid_and_nothing_else(both: Plugin) -> None:
    for container in ("a", "b"):
        for ifname in ("eth0", "eth1"):
            both.well("ADD", container, ifname)
    valid = [{"containerID": "a", "ifname": "eth1"}, {"containerID": "zz", "ifname": "eth0"}]
    both.well("GC", **{"cni__dev/valid-attachments": valid})
    assert {(owner, key) for owner, key, _ in held(both)} == {("a", "eth1")}
    both.well("GC", **{"cni__dev/valid-attachments": []})
    assert held(both) == []


def test_status_says_when_nothing_can_be_given(tmp_path: Path) -> None:
    plugin = Plugin(config(tmp_path, subnet="10.1.2.0/30"))
    plugin.well("STATUS")
    plugin.well("ADD")
    code, text = plugin.refused("STATUS")
    assert (code, "10.1.2.1-10.1.2.2" in text) == (51, True)
    (tmp_path / "netalloc.db").write_bytes(b"not a store" * 1000)
    assert plugin.refused("STATUS")[0] == 50


# ---- the second one


def test_two_configurations_of_one_store_do_not_meet(tmp_path: Path) -> None:
    one, other = Plugin(config(tmp_path, **FOUR)), Plugin(config(tmp_path, subnet="10.2.0.0/24"))
    other.config["name"] = "other"
    one.well("ADD")
    other.well("ADD")
    other.well("GC", **{"cni__dev/valid-attachments": []})
    assert len(held(one)) == 1
    same = Plugin(config(tmp_path, **FOUR))
    same.config["name"] = "third"
    assert "overlaps" in same.refused("ADD")[1]


def test_many_at_once_get_each_its_own(both: Plugin) -> None:
    found: list[str] = []

    def run(number: int) -> None:
        for turn in range(4):
            found.extend(addresses(both.well("ADD", f"c{number}-{turn}")))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 48


def held(plugin: Plugin) -> list[tuple[str | None, str | None, str]]:
    path = Path(plugin.config["ipam"]["dataDir"]) / "netalloc.db"
    if not path.exists():
        return []
    with NetworkView(path) as view:
        return [(one.owner, one.key, str(one.ip)) for one in view.find()]


def test_whatever_comes_a_cni_error_goes_out(tmp_path: Path) -> None:
    chance = random.Random(7)
    base = config(tmp_path, ranges=[[FOUR], [SIX]])
    words: list[Any] = [
        None, True, 0, -1, 1e400, "", "x", "10.1.2.3", "::1", "ü\ud800", [], {}, [[]], [{}], "a" * 9000,
        {"cni": 5}, {"ips": [None]}, [["10.1.2.0/24"]], 2**70,
    ]  # fmt: skip

    def mutated(value: Any) -> Any:
        if chance.random() < 0.25:
            return chance.choice(words)
        if isinstance(value, dict):
            keys = [*value, *chance.sample(["args", "prevResult", "runtimeConfig", "dns", "routes", "subnet",
                    "rangeEnd", "network", "resolvConf", "cni.dev/valid-attachments"], 2)]  # fmt: skip
            return {key: mutated(value.get(key)) for key in keys if chance.random() < 0.9}
        if isinstance(value, list):
            return [mutated(one) for one in value for _ in range(chance.randrange(3))]
        return value

    environment = {
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/x",
        "CNI_PATH": "/p",
    }
    codes = set()
    for _ in range(10_000):
        variables = {k: v for k, v in environment.items() if chance.random() < 0.97}
        if chance.random() < 0.1:
            variables[chance.choice(list(environment))] = chance.choice(
                ["\0", "a" * 70000, "\udcff", "/"]
            )
        if chance.random() < 0.2:
            variables["CNI_ARGS"] = chance.choice(
                ["IP=", "IP=x", ";;", "=", "IP=10.1.2.9", "A=B", "\udcff=1"]
            )
        variables["CNI_COMMAND"] = chance.choice(
            ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "add", "\0"]
        )
        config_ = mutated(base)
        if isinstance(config_, dict) and isinstance(config_.get("ipam"), dict):
            config_["ipam"]["dataDir"] = str(tmp_path)
            config_["ipam"].pop("store", None)
        data = (
            json.dumps(config_).encode()
            if chance.random() < 0.9
            else chance.randbytes(chance.randrange(200))
        )
        if (
            isinstance(config_, dict)
            and not isinstance(config_.get("ipam"), dict)
            and chance.random() < 0.5
        ):
            data = data[: chance.randrange(len(data) + 1)]
        status, out = answer(variables, data)
        if status == 0:
            assert out == "" or isinstance(json.loads(out), dict)
            continue
        told = json.loads(out)
        assert {"cniVersion", "code", "msg"} <= set(told), told
        assert "defect" not in told["msg"], (told, variables, data[:500])
        codes.add(told["code"])
    assert {1, 2, 4, 6, 7} <= codes


# ---- coming from host-local


def host_local(folder: Path, *leases: tuple[str, str]) -> None:
    """The files that host-local keeps."""
    made = folder / "net"
    made.mkdir(parents=True)
    for ip, text in leases:
        (made / ip).write_text(text)
    (made / "last_reserved_ip.0").write_text("10.1.2.9")
    (made / "lock").write_text("")


def cni(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "netalloc.cni", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_what_host_local_gave_is_taken_over_as_it_stands(tmp_path: Path) -> None:
    host_local(
        tmp_path, ("10.1.2.7", "c7\r\neth0"), ("10.1.2.9", "c9\r\nnet1"), ("fd00:1::7", "c7\neth0"),
        ("10.1.2.5", "old"),
    )  # fmt: skip
    conflist = {
        "cniVersion": "1.0.0",
        "name": "net",
        "plugins": [
            {
                "type": "bridge",
                "ipam": {"type": "host-local", "dataDir": str(tmp_path), "ranges": [[FOUR], [SIX]]},
            },
            {"type": "portmap"},
        ],
    }
    path = tmp_path / "net.conflist"
    path.write_text(json.dumps(conflist))
    status, out = cni("import", str(path))
    assert (status, len(out.splitlines())) == (0, 4), out
    plugin = Plugin(config(tmp_path, "1.0.0", ranges=[[FOUR], [SIX]]))
    assert set(held(plugin)) == {
        ("c7", "eth0", "10.1.2.7"),
        ("c7", "eth0", "fd00:1::7"),
        ("c9", "net1", "10.1.2.9"),
        ("old", "eth0", "10.1.2.5"),
    }
    assert cni("import", str(path)) == (0, "nothing to take over\n")
    given = {"ips": [{"address": "10.1.2.7/24"}, {"address": "fd00:1::7/64"}]}
    plugin.well("CHECK", "c7", prevResult={"cniVersion": "1.0.0", **given})
    plugin.well("DEL", "c7")
    assert addresses(plugin.well("ADD", "new"))[0] == "10.1.2.2/24"


def test_a_takeover_is_all_or_nothing(tmp_path: Path) -> None:
    host_local(tmp_path, ("10.1.2.7", "c7\neth0"), ("10.9.9.9", "c8\neth0"))
    path = tmp_path / "net.conf"
    path.write_text(json.dumps(config(tmp_path, **FOUR)))
    status, out = cni("import", str(path))
    assert status == 1
    assert "10.9.9.9 of c8 eth0 is in no range" in out
    assert held(Plugin(config(tmp_path, **FOUR))) == []
    path.write_text("{}")
    assert cni("import", str(path))[0] == 1


def test_an_installed_plugin_is_a_program_that_works(tmp_path: Path) -> None:
    status, out = cni("install", str(tmp_path / "bin"), "--example", str(tmp_path / "net.d"))
    assert status == 0, out
    plugin = Plugin(config(tmp_path, **FOUR), [str(tmp_path / "bin" / "netalloc-ipam")])
    assert addresses(plugin.well("ADD")) == ["10.1.2.2/24"]
    example = json.loads((tmp_path / "net.d" / "10-netalloc.conflist.example").read_text())
    section = {**example["plugins"][0]["ipam"], "dataDir": str(tmp_path / "other")}
    named = {"cniVersion": example["cniVersion"], "name": example["name"], "ipam": section}
    assert addresses(Plugin(named).well("ADD")) == ["10.87.0.2/16"]

"""What `import netalloc` gives, and what it must not cost."""

import collections
import copy
import gc
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

import netalloc
from netalloc.light import NamedTuple, loaded
from netalloc.store.sqlite.writer_record import WriterRecord

# A CNI plugin is started once per container: these are loaded where they are used.
# pyroute2 alone costs 160 ms.
LATE = {
    "asyncio",
    "click",
    "dataclasses",
    "ipaddress",
    "logging",
    "pyroute2",
    "sqlite3",
    "subprocess",
}

PUBLIC = {
    "Bitmap",
    "CommandError",
    "ExhaustedError",
    "IPAllocator",
    "InUseError",
    "InterfaceError",
    "PortMapping",
    "NetallocError",
    "NetworkInterface",
    "NetworkManager",
    "NotAllocatedError",
    "OutOfRangeError",
    "PortAllocator",
    "PortMapper",
    "StaleLeaseError",
    "StoreError",
    "int_to_ip",
    "interface_address",
    "ip_to_int",
    "iptables",
    "network_range",
    "network_size",
}

# Imported twice over: what an editable install needs to find the package is not the package's.
LOADED = """
import json, sys
before = set(sys.modules)
import netalloc
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_public_names_are_all_there() -> None:
    assert sorted(PUBLIC - set(netalloc.__all__)) == []


def test_what_all_promises_is_there() -> None:
    assert [name for name in netalloc.__all__ if not hasattr(netalloc, name)] == []
    assert len(netalloc.__all__) == len(set(netalloc.__all__))


def test_an_import_loads_nothing_heavy() -> None:
    loaded = json.loads(
        subprocess.run(
            [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True
        ).stdout
    )
    tops = {name.partition(".")[0] for name in loaded}
    assert "netalloc" in tops
    assert tops & LATE == set()


# What a process that opens a store, allocates and ends has no use for: three quarters of its time.
UNUSED = """
from netalloc import NetworkManager
with NetworkManager.open("br0", sys.argv[1]) as manager:
    manager.allocate("cold")
print(" ".join(set(sys.modules) - before))
"""
NOT_FOR_ONE_ADDRESS = {
    "_struct",
    "array",
    "ast",
    "contextlib",
    "copyreg",
    "dataclasses",
    "enum",
    "hashlib",
    "importlib.abc",
    "inspect",
    "ipaddress",
    "logging",
    "pathlib",
    "pyroute2",
    "re",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
    "urllib",
    "weakref",
    "netalloc.address_values",
    "netalloc.host.conntrack",
    "netalloc.host.links",
    "netalloc.host.netlink",
    "netalloc.ipam.check",
    "netalloc.ipam.history",
    "netalloc.ipam.publications",
    "netalloc.manager.host_checks",
    "netalloc.manager.repair",
    "netalloc.manager.statement",
    "netalloc.model",
    "netalloc.portmap.kernel",
    "netalloc.ports",
    "netalloc.store.memory",
    "netalloc.store.protocol",
    "netalloc.store.sqlite.migrations",
    "netalloc.store.sqlite.salvage",
}


def test_a_process_that_allocates_one_address_loads_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    netalloc.NetworkManager("br0", network="10.0.0.1/16", backend="null", store=path).close()
    # Without site, which loads what it likes. Package and core may lie apart, while developed.
    core = str(Path(netalloc._alloc.__file__).parent)
    code = f"""
import sys
sys.path.insert(0, {str(Path(netalloc.__file__).parents[1])!r})
if sys.version_info < (3, 11):
    import exceptiongroup  # what stands in for a builtin there, and loads half of these
before = set(sys.modules)
import netalloc
netalloc.__path__.append({core!r})
{UNUSED}"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = set(done.stdout.split())
    assert "netalloc.store.sqlite.store" in loaded
    assert loaded & NOT_FOR_ONE_ADDRESS == set()


def test_an_import_costs_little_more_than_two_of_the_standard_library() -> None:
    """As processes, side by side, in turns: the fastest of each."""
    best = {"import netalloc": 9e9, "import sqlite3, ipaddress": 9e9}
    for _ in range(15):
        for code in best:
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            best[code] = min(best[code], time.perf_counter() - begin)
    ours, theirs = best.values()
    assert ours <= 1.6 * theirs, best


def test_every_error_is_a_netalloc_error_and_its_built_in() -> None:
    errors = [getattr(netalloc, name) for name in PUBLIC if name.endswith("Error")]
    assert all(issubclass(error, netalloc.NetallocError) for error in errors)
    assert issubclass(netalloc.NotAllocatedError, KeyError)
    assert issubclass(netalloc.OutOfRangeError, ValueError)
    assert str(netalloc.NotAllocatedError("10.0.0.2 is free")) == "10.0.0.2 is free"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_a_load(enabled: bool) -> None:
    def load() -> bool:
        return gc.isenabled()

    def fail() -> None:
        raise ImportError("no")

    before = gc.isenabled()
    try:
        gc.enable() if enabled else gc.disable()
        assert loaded(load) is False
        assert gc.isenabled() is enabled
        with pytest.raises(ImportError):
            loaded(fail)
        assert gc.isenabled() is enabled
    finally:
        gc.enable() if before else gc.disable()


def test_a_named_tuple_is_like_those_of_the_standard_library() -> None:
    class Ours(NamedTuple):
        """Its text."""

        a: int
        b: int = 2
        c: int = 3

        @property
        def all(self) -> int:
            return self.a + self.b + self.c

    theirs = collections.namedtuple("Ours", "a b c", defaults=(2, 3))
    for kind in (Ours, theirs):
        one = kind(1, c=5)
        assert one == (1, 2, 5) and (one.a, one.b, one.c) == (1, 2, 5)
        assert repr(one) == "Ours(a=1, b=2, c=5)" and hash(one) == hash((1, 2, 5))
        assert one._replace(b=7) == kind(1, 7, 5) and type(one._replace(b=7)) is kind
        assert kind._make([4, 5, 6]) == (4, 5, 6) and one._asdict() == {"a": 1, "b": 2, "c": 5}
        assert kind._fields == kind.__match_args__ == ("a", "b", "c")
        assert kind._field_defaults == {"b": 2, "c": 3}
        assert copy.deepcopy(one) == copy.copy(one) == one and one.__getnewargs__() == (1, 2, 5)
        for wrong in ((), (1, 2, 3, 4)):
            with pytest.raises(TypeError):
                kind(*wrong)
        with pytest.raises(TypeError):
            kind(1, d=1)
        # collections' own raises TypeError from Python 3.13 on.
        with pytest.raises(
            TypeError if kind is theirs and sys.version_info >= (3, 13) else ValueError
        ):
            one._replace(d=1)
        with pytest.raises(TypeError):
            kind._make([1, 2])
        with pytest.raises(AttributeError):
            one.a = 3
    assert Ours(1).all == 6 and Ours.__doc__ == "Its text." and not hasattr(Ours(1), "__dict__")
    assert pickle.loads(pickle.dumps(WriterRecord(7))) == WriterRecord(7)


def test_the_version_is_the_packages_and_is_looked_up_when_asked_for():
    code = "import netalloc, sys; print(sorted(vars(netalloc))); print(netalloc.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    before, version = done.stdout.splitlines()
    assert "__version__" not in before
    project = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text()
    assert f'\nversion = "{version}"\n' in project

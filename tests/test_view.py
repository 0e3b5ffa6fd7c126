"""Looking at a store: without privileges, without set-up, and without disturbing a writer."""

import os
import threading
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address

import pytest

from faults import in_child
from netalloc import (
    InvalidValueError,
    NetworkManager,
    Networks,
    NetworkView,
    NotAllocatedError,
    PortRequest,
    StoreError,
)
from netalloc.store.memory import MemoryStore

NOBODY = 65534


@pytest.fixture
def path(tmp_path):
    return tmp_path / "host.db"


@pytest.fixture
def host(path):
    """Two networks in which every state of an address is found."""
    with Networks(path) as made:
        web = made.create(
            "web",
            "10.88.0.1/29",
            bridge="br0",
            backend="null",
            exclude=["10.88.0.6"],
            cooldown=3600,
        )
        made.create("lab", "fd00::1/64", bridge="br1", backend="null").allocate("six")
        shop = web.allocate("shop", key="eth0", labels={"app": "ci"}, ports=(80,))
        shop.allocate_port(53, "udp", 5353, "192.0.2.1", check_host=False)
        web.allocate()  # 10.88.0.3, of no owner
        web.allocate("old").release()  # 10.88.0.4 cools down
        web.reserve("10.88.0.5", "db")
        yield made


def test_who_holds_an_address_or_a_port(host, path):
    with NetworkView(path) as view:
        (held,) = view.who("10.88.0.2")
        assert held[:4] == ("web", IPv4Address("10.88.0.2"), "shop", "eth0")
        assert held.labels == {"app": "ci"}
        assert [(m.host_port, m.protocol, m.dest[1]) for m in held.ports] == [
            (5353, "udp", 53),
            (49153, "tcp", 80),
        ]
        assert timedelta(0) <= datetime.now(timezone.utc) - held.since < timedelta(minutes=5)
        assert view.who("tcp/49153") == view.who("udp/5353") == [held]
        assert view.who(IPv4Address("10.88.0.2")) == [held]
        for free in ("tcp/5353", "tcp/80", "10.88.0.4", "10.88.0.7", "192.0.2.1", "fd00::77"):
            assert view.who(free) == []
        assert view.who("fd00::2")[0].owner == "six"


def test_why_an_address_or_a_port_can_or_cannot_be_had(host, path):
    expected = {
        "10.88.0.1": "10.88.0.1 is the gateway of network web",
        "10.88.0.2": "10.88.0.2 of network web is held by shop",
        "10.88.0.3": "10.88.0.3 of network web is held by a lease without an owner",
        "10.88.0.5": "10.88.0.5 of network web is reserved for db",
        "10.88.0.6": "10.88.0.6 is never given by network web",
        "10.88.0.7": "10.88.0.7 is never given by network web",
        "192.0.2.1": "of no network of this store; there are: lab (fd00::/64), web (10.88.0.0/29)",
        "fd00::9": "fd00::9 of network lab is free",
        "tcp/49153": "port 49153/tcp is published by shop (10.88.0.2 of network web)",
        "tcp/80": "port 80/tcp is free",
    }
    with NetworkView(path) as view:
        for what, text in expected.items():
            assert text in view.why(what)
        assert "10.88.0.4 of network web is cooling down for another 3" in view.why("10.88.0.4")
        for hostile in ("tcp/0", "tcp/x", "icmp/80", "80", "tcp/80/80", "", None, 5):
            with pytest.raises(InvalidValueError):
                view.why(hostile)


def test_what_is_found_and_how_much_is_in_use(host, path):
    with NetworkView(path) as view:
        assert [one.owner for one in view.find()] == ["six", "shop", None]
        assert [str(one.ip) for one in view.find("shop")] == ["10.88.0.2"]
        assert view.find("shop", network="lab") == []
        assert [one.owner for one in view.find(label="app=ci")] == ["shop"]
        assert view.find(label="app=other") == []
        with pytest.raises(NotAllocatedError, match="no network nosuch.*lab, web"):
            view.find(network="nosuch")
        lab, web = view.usage()
        assert web == ("web", 4, 2, 0, 1, 1, 2)
        assert lab[:4] == ("lab", 2**64 - 2, 1, 2**64 - 3)
        assert [one.owner for one in view.history("10.88.0.4")] == ["old"]
        assert view.history("192.0.2.1") == []


def test_a_view_of_an_open_store_and_of_memory_is_the_same():
    store = MemoryStore()
    with NetworkManager("br0", network="10.88.0.1/24", backend="null", store=store) as manager:
        manager.allocate("shop", ports=(PortRequest(80),))
        view = NetworkView(store)
        assert view.who("10.88.0.2")[0].owner == "shop"
        assert view.usage()[0].held == 1
        view.close()
        assert manager.allocate()


def test_an_unprivileged_user_who_may_read_the_files_sees_all_of_it(host, path):
    """And writes nothing: no file is made, none is changed."""
    path.parent.chmod(0o755)
    for file in path.parent.iterdir():
        file.chmod(0o644)
    for folder in path.parents:
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 1:
            folder.chmod(0o755)

    def look():
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        before = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
        with NetworkView(path) as view:
            assert view.who("10.88.0.2")[0].owner == "shop"
            assert len(view.networks()) == 2
        assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before

    if os.getuid() == 0:
        assert in_child(look) == 0


def test_who_may_not_read_is_told_so(host, path):
    def look():
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with pytest.raises(StoreError, match=str(path)), NetworkView(path) as view:
            view.networks()

    if os.getuid() == 0:
        assert in_child(look) == 0


def test_a_view_sees_one_moment_and_never_holds_up_a_writer(path):
    """While addresses come and go in pairs, a look sees either both or none."""
    with NetworkManager("br0", network="10.88.0.1/16", backend="null", store=path) as manager:
        done = threading.Event()
        seen = set()

        def look():
            with NetworkView(path) as view:
                while not done.is_set():
                    seen.add(len(view.find("pair")) % 2)

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            for _ in range(200):
                manager.allocate_many(2, owner="pair")
                manager.release("pair")
        finally:
            done.set()
            watcher.join()
        assert seen == {0}
        assert manager.check() == []


def test_a_file_that_is_no_store_or_is_not_there_is_a_store_error(tmp_path):
    (tmp_path / "text").write_text("hello" * 100)
    for name in ("text", "nothing"):
        with pytest.raises(StoreError), NetworkView(tmp_path / name) as view:
            view.networks()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["text"]


def test_a_file_whose_writers_come_and_go_is_looked_at_all_the_while(path):
    """The last writer to leave takes the log away, at whatever moment of a look."""
    with NetworkManager("br0", network="10.88.0.1/24", backend="null", store=path):
        pass

    def come_and_go():
        for _ in range(150):
            with NetworkManager.open("br0", path) as manager:
                manager.allocate("x").release()

    child = os.fork()
    if not child:
        try:
            come_and_go()
            os._exit(0)
        finally:
            os._exit(1)
    looks, status = 0, None
    with NetworkView(path) as view:
        while status is None:
            try:
                assert view.networks()[0].name == "br0"
                looks += 1
            finally:
                pid, code = os.waitpid(child, os.WNOHANG)
                status = code if pid else None
    assert status == 0
    assert looks > 50

"""netalloc.aio: the loop goes on, and what cancelled calls took is given back."""

import asyncio
import copy
import gc
import inspect
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

import netalloc
from faults import FaultyBackend
from netalloc import InvalidValueError, NotAllocatedError
from netalloc.aio import (
    AsyncNetworkInterface,
    AsyncNetworkManager,
    AsyncNetworks,
    AsyncWatch,
    NetworkManager,
    Networks,
)
from netalloc.aio import call as calls
from netalloc.aio.call import Call
from netalloc.aio.threads import SIZE
from netalloc.errors import ClosedError, ExhaustedError, NetallocError
from netalloc.host import namespaces
from netalloc.manager.attaching import AttachService
from netalloc.model import PortRequest, ReconcileResult
from netalloc.portmap.watch import Watch

PATIENCE = 20  # seconds: what hangs fails


class Gate:
    """Stops a thread where it comes by, tells the loop that it is there, and lets it go on."""

    def __init__(self):
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.passed = 0

    def __call__(self, *_):
        self.passed += 1
        self.reached.set()
        assert self.opened.wait(PATIENCE), "the gate was never opened"
        return True

    async def closed(self):
        """Until a thread stands there."""
        while not self.reached.is_set():
            await asyncio.sleep(0.001)


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "host.db"
    netalloc.NetworkManager("br0", network="10.0.0.1/16", backend="null", store=path).close()
    return path


def opened(path, **options):
    return AsyncNetworkManager.open("br0", path, **options)


def held(path):
    """All that is held and kept, as another manager sees it; and that all is well."""
    with netalloc.NetworkManager.open("br0", path) as manager:
        assert manager.check() == []
        found = {str(one.ip): [p.host_port for p in one.ports()] for one in manager.find()}
    with netalloc.NetworkView(path) as view:
        return found, view.usage()[0].reserved


# ---- the same methods

TWINS = [
    (netalloc.NetworkManager, AsyncNetworkManager),
    (netalloc.NetworkInterface, AsyncNetworkInterface),
    (netalloc.Networks, AsyncNetworks),
    (Watch, AsyncWatch),
]
READING = {"registered", "labels"}  # properties that read the store


def parameters(function):
    """What it takes, as text that both twins agree in, and what it gives."""
    signature = inspect.signature(function)

    def text(annotation):
        if annotation is inspect.Parameter.empty:
            return ""
        plain = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        for sync in ("NetworkInterface", "NetworkManager", "Watch"):
            plain = plain.replace(f"Async{sync}", sync)
        return plain.split(".")[-1].strip("'\"")

    found = [
        (one.name, one.kind, one.default, text(one.annotation))
        for one in signature.parameters.values()
        if one.name != "self"
    ]
    return found, text(signature.return_annotation)


def public(kind):
    # The store of a host's networks is for what opens them, and blocks.
    return [name for name in dir(kind) if not name.startswith("_") and name != "store"]


@pytest.mark.parametrize(
    ("sync", "twin", "name"),
    [(sync, twin, name) for sync, twin in TWINS for name in public(sync)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_each_method_has_a_twin(sync, twin, name):
    theirs, ours = inspect.getattr_static(sync, name), inspect.getattr_static(twin, name, None)
    assert ours is not None, f"{twin.__name__} has no {name}"
    if isinstance(theirs, property) and name not in READING:
        assert isinstance(ours, property)
        assert parameters(theirs.fget)[1] == parameters(ours.fget)[1]
        return
    if isinstance(theirs, property):
        assert inspect.iscoroutinefunction(ours)
        assert parameters(theirs.fget) == parameters(ours)
        return
    if isinstance(theirs, classmethod):
        assert parameters(getattr(sync, name))[0] == parameters(getattr(twin, name))[0]
        return
    assert inspect.iscoroutinefunction(ours), f"{name} is no coroutine"
    if name in {"get", "keys", "items", "values"}:
        return  # a Mapping's own, some of them in C
    if sync is netalloc.Networks:  # whose annotations are objects, not text
        assert [one[:3] for one in parameters(theirs)[0]] == [o[:3] for o in parameters(ours)[0]]
        return
    assert parameters(theirs) == parameters(ours)


def test_create_takes_what_the_manager_takes():
    theirs, _ = parameters(netalloc.NetworkManager.__init__)
    ours, _ = parameters(AsyncNetworkManager.create)
    assert theirs == ours
    assert parameters(netalloc.Networks.__init__) == parameters(AsyncNetworks.__init__)


def test_the_package_is_not_loaded_by_netalloc():
    code = "import sys, netalloc; netalloc.NetworkManager; print('netalloc.aio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ---- what it does


def test_all_calls_of_a_manager_and_an_interface(tmp_path):
    async def main():
        async with NetworkManager.create(
            "br0", network="10.0.0.1/24", backend="null", store=tmp_path / "a.db", sticky=5
        ) as manager:
            one = await manager.allocate("web", key="k", labels={"app": "shop"}, ports=[80])
            assert (str(one.ip), str(one.address), str(one.gateway)) == (
                "10.0.0.2",
                "10.0.0.2/24",
                "10.0.0.1",
            )
            assert (one.owner, one.key, one.generation) == ("web", "k", 1)
            assert one.ips == (one.ip,) and one.addresses == (one.address,)
            assert one.gateways == (one.gateway,)
            assert await one.labels() == {"app": "shop"}
            assert [port.host_port for port in await one.ports()] == [49153]
            assert await one.allocate_port(53, "udp", 5353) == 5353
            assert await one.allocate_ports(3) == range(49154, 49157)
            assert len(await one.publish([1, PortRequest(2)])) == 2
            await one.release_port(5353, "udp")
            assert len(await one.ports()) == 4
            again = await manager.allocate("web", key="k")
            assert again == one and hash(again) == hash(one) and copy.copy(one) is one
            assert await manager.find("web") == await manager.interfaces() == [one]
            assert await manager.find(label="app=shop") == [one]
            await manager.reserve("10.0.0.99", "db")
            await manager.unreserve("10.0.0.99")
            many = await manager.allocate_many(5, [80], "job", labels={"n": "1"})
            assert await manager.release_many(many[:3]) == 3
            assert await manager.release("job") == 2
            assert await manager.reconcile() == ReconcileResult()
            assert await manager.gc(alive={"web"}) == []
            assert len(await manager.history("10.0.0.4")) == 1
            assert await manager.check() == []
            assert (await manager.repair())[0].startswith("a copy of the file")
            assert await manager.registered() is True
            assert (manager.name, manager.bridge, manager.closed) == ("br0", "br0", False)
            assert str(manager.subnet) == "10.0.0.1/24" and manager.subnets == (manager.subnet,)
            assert str(manager.gateway) == "10.0.0.1"
            assert (manager.stale_releases, manager.not_given_back) == (0, 0)
            with pytest.raises(NetallocError, match="null backend"):
                await manager.watch()
            with pytest.raises(InvalidValueError, match="on_repair"):
                await manager.watch(1)
            with pytest.raises(InvalidValueError, match="null"):
                await one.attach(tap="tap0")
            with pytest.raises(InvalidValueError, match="is not an interface and a netns"):
                await manager.attach_many([(one,)])
            await manager.attach_many([])
            with pytest.raises(InvalidValueError, match="null"):
                await manager.detach_many([one])
            with pytest.raises(InvalidValueError, match="open"):
                await manager.allow(one, "10.0.0.3")
            assert await manager.allowed() == []
            async with await manager.allocate("brief") as brief:
                pass
            with pytest.raises(NotAllocatedError):
                await brief.release()
            for wrong in (one, manager):
                with pytest.raises(InvalidValueError):
                    pickle.dumps(wrong)
            assert repr(one) == "<AsyncNetworkInterface 10.0.0.2/24 of web>"
            assert repr(manager) == "<AsyncNetworkManager br0 10.0.0.1/24>"
            await one.release()
        assert manager.closed
        await manager.close()
        with pytest.raises(ClosedError):
            await manager.find()

    run(main())


def test_bad_input_is_refused_as_by_the_manager(path):
    async def main():
        async with opened(path) as manager:
            one = await manager.allocate("web")
            for wrong in (
                manager.allocate(3),
                manager.allocate("web", ports=7),
                manager.allocate("web", labels=7),
                manager.allocate(key="k"),
                manager.allocate("web", key=[]),
                manager.reserve("10.9.9.9"),
                manager.release_many([1]),
                manager.release_many("web"),
                manager.attach_many([1]),
                manager.gc("web"),
                one.allocate_port(None),
                one.publish([80], hold=3),
            ):
                with pytest.raises(InvalidValueError):
                    await wrong
            with pytest.raises(NotAllocatedError, match="br0"):
                await AsyncNetworkManager.open("br7", path)
            with pytest.raises(InvalidValueError):
                await AsyncNetworkManager.create("br7", network=5)

    run(main())
    assert held(path) == ({"10.0.0.2": []}, 0)


def test_networks(tmp_path):
    async def main():
        store = tmp_path / "n.db"
        with pytest.raises(InvalidValueError, match="not open"):
            await AsyncNetworks(store).keys()
        async with Networks(store) as host:
            web = await host.create("web", "10.1.0.1/24", bridge="b0", backend="null")
            await host.create("db", "10.2.0.1/24", bridge="b1", backend="null")
            assert [name async for name in host] == await host.keys() == ["db", "web"]
            assert str((await host["web"]).subnet) == "10.1.0.1/24"
            with pytest.raises(KeyError):
                await host["no"]
            assert await host.get("no") is None and await host.get("no", 3) == 3
            infos = await host.values()
            assert list(zip(await host.keys(), infos, strict=True)) == await host.items()
            assert await host.open("web") is web
            await web.allocate("shop")
            assert await host.gc({"shop"}) == {} and await host.check() == []
            assert await host.release("shop") == 1
            await host.remove("web")
            with pytest.raises(NotAllocatedError):
                await host.open("web")
            assert web.closed
            db = await host.open("db")
        assert db.closed
        with pytest.raises(ClosedError):
            await host.keys()
        await host.close()
        again = await AsyncNetworks(store)
        assert await again == again and await again.keys() == ["db"]
        await again.close()

    run(main())


# ---- cancelling

HOLDING = {  # what each call takes; all but the first two come by the probe
    "reserve": lambda manager, one: manager.reserve("10.0.0.77", "web"),
    "allocate": lambda manager, one: manager.allocate("new"),
    "allocate with ports": lambda manager, one: manager.allocate("new", ports=[80]),
    "allocate with a key": lambda manager, one: manager.allocate("new", key="k", ports=[80]),
    "allocate_many": lambda manager, one: manager.allocate_many(3, [80], "new"),
    "publish": lambda manager, one: one.publish([80, PortRequest(9, "udp", host_port=99)]),
    "allocate_port": lambda manager, one: one.allocate_port(80),
    "allocate_ports": lambda manager, one: one.allocate_ports(4),
}
PROBED = [name for name in HOLDING if name not in ("reserve", "allocate")]
NOTHING = ({"10.0.0.2": []}, 0)  # but one interface that was there before


async def outcome(task):
    """It is cancelled, and says so."""
    await asyncio.wait([task])
    assert task.cancelled(), task


class Turn:
    """Holds the store's turn, so that every change waits in its thread."""

    def __init__(self, path):
        self._gate = Gate()
        self._manager = netalloc.NetworkManager.open("br0", path)
        self._thread = threading.Thread(
            target=lambda: self._manager._leases.run("hold", self._gate)
        )

    def __enter__(self):
        self._thread.start()
        assert self._gate.reached.wait(PATIENCE)
        return self

    def end(self):
        self._gate.opened.set()
        self._thread.join()

    def __exit__(self, *_):
        self.end()
        self._manager.close()


async def begun(manager):
    """Until a thread is at the one call there is."""
    while not _running(manager):
        await asyncio.sleep(0)


def _running(manager):
    """How many threads are at a call."""
    found = [one for one in manager._threads._calls if one._job and not one.settled.done()]
    return sum(one._job.running() for one in found)


@pytest.mark.parametrize("name", HOLDING)
def test_a_task_that_never_began_does_nothing(path, name):
    async def main():
        async with opened(path) as manager:
            one = await manager.allocate("before")
            task = asyncio.ensure_future(HOLDING[name](manager, one))
            task.cancel()
            await outcome(task)

    run(main())
    assert held(path) == NOTHING


@pytest.mark.parametrize("name", HOLDING)
def test_a_call_that_no_thread_has_begun_is_withdrawn(path, name):
    async def main():
        async with opened(path, probe=Gate()) as manager:
            one = await manager.allocate("before")
            with Turn(path) as turn:
                busy = [asyncio.ensure_future(manager.reserve("10.0.200.9")) for _ in range(1)]
                busy += [asyncio.ensure_future(manager.allocate("busy")) for _ in range(SIZE)]
                while _running(manager) < SIZE:
                    await asyncio.sleep(0)
                task = asyncio.ensure_future(HOLDING[name](manager, one))
                await asyncio.sleep(0)
                task.cancel()
                await outcome(task)  # while the store is still held: nothing is waited for
                turn.end()
                await asyncio.gather(*busy)
            await manager.release("busy")
            await manager.unreserve("10.0.200.9")

    run(main())
    assert held(path) == NOTHING


@pytest.mark.parametrize("name", HOLDING)
def test_what_waits_for_the_store_is_made_and_given_back(path, name):
    async def main():
        async with opened(path) as manager:
            one = await manager.allocate("before")
            with Turn(path) as turn:
                task = asyncio.ensure_future(HOLDING[name](manager, one))
                await begun(manager)
                task.cancel()
                await asyncio.sleep(0.01)
                assert not task.done()
                turn.end()
                await outcome(task)
            assert held(path) == NOTHING  # before the cancellation goes on
            assert manager.not_given_back == 0

    run(main())


@pytest.mark.parametrize("name", PROBED)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_what_is_cancelled_within_the_change_is_given_back(path, name, times):
    gate = Gate()

    async def main():
        async with opened(path, probe=gate) as manager:
            one = await manager.allocate("before")
            task = asyncio.ensure_future(HOLDING[name](manager, one))
            await gate.closed()
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert task.done() == (times > 1)  # the second waits no longer
            gate.opened.set()
            await outcome(task)
            if times == 1:
                assert held(path) == NOTHING
        assert manager.not_given_back == 0

    run(main())
    assert held(path) == NOTHING


@pytest.mark.parametrize("name", HOLDING)
def test_a_result_that_comes_with_the_cancellation_is_given_back(path, name, monkeypatch):
    tell = Call._tell
    tasks = []

    def told(self, future):
        if future is not self.answered or not tasks:
            return tell(self, future)
        task = tasks.pop()
        self._loop.call_soon_threadsafe(lambda: (future.set_result(None), task.cancel()))
        return True

    monkeypatch.setattr(Call, "_tell", told)

    async def main():
        async with opened(path) as manager:
            one = await manager.allocate("before")
            with Turn(path) as turn:
                task = asyncio.ensure_future(HOLDING[name](manager, one))
                tasks.append(task)
                await begun(manager)
                turn.end()
                await outcome(task)
            assert held(path) == NOTHING

    run(main())


@pytest.mark.parametrize("name", HOLDING)
def test_an_interrupted_loop_gives_back_too(path, name):
    """The first Ctrl-C: asyncio.run cancels what there is."""

    async def main():
        manager = await opened(path)
        async with manager:
            one = await manager.allocate("before")
            with Turn(path) as turn:
                task = asyncio.ensure_future(HOLDING[name](manager, one))
                await begun(manager)
                asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
                try:
                    await asyncio.Event().wait()
                finally:
                    turn.end()
                    task.cancel()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, before)
    assert held(path) == NOTHING


@pytest.mark.parametrize("name", HOLDING)
def test_a_loop_that_ends_gives_back_without_close(path, name):
    kept = []

    async def main():
        manager = await opened(path)
        one = await manager.allocate("before")
        turn = Turn(path).__enter__()
        task = asyncio.ensure_future(HOLDING[name](manager, one))

        async def end_at_last():
            try:
                await asyncio.Event().wait()
            finally:
                turn.__exit__()

        kept.extend([manager, task, asyncio.ensure_future(end_at_last())])
        await begun(manager)

    asyncio.run(main())
    assert held(path) == NOTHING
    kept[0]._threads._pool.shutdown(wait=True)
    kept[0]._manager.close()


@pytest.mark.parametrize("name", HOLDING)
def test_a_loop_that_is_closed_over_a_call_gives_back(path, name, caplog):
    """Nothing takes the result: the thread finds the loop closed, or the coroutine is collected."""
    caplog.set_level(logging.CRITICAL, "asyncio")  # the task is destroyed, which is the point
    loop = asyncio.new_event_loop()
    manager = loop.run_until_complete(_awaited(opened(path)))
    one = loop.run_until_complete(manager.allocate("before"))
    with Turn(path) as turn:
        task = loop.create_task(HOLDING[name](manager, one))
        loop.run_until_complete(begun(manager))
        loop.close()
        turn.end()
    manager._threads._pool.shutdown(wait=True)
    assert held(path) == NOTHING
    del task
    gc.collect()
    assert held(path) == NOTHING
    manager._manager.close()


async def _awaited(opening):
    return await opening


def test_what_a_key_found_is_not_released(path):
    async def main():
        async with opened(path) as manager:
            one = await manager.allocate("web", key="k", ports=[80])
            with Turn(path) as turn:
                task = asyncio.ensure_future(manager.allocate("web", key="k"))
                await begun(manager)
                task.cancel()
                await asyncio.sleep(0)
                turn.end()
                await outcome(task)
            assert await manager.find() == [one] and len(await one.ports()) == 1

    run(main())


def test_what_was_reserved_before_stays_reserved(path):
    async def main():
        async with opened(path) as manager:
            await manager.reserve("10.0.0.7", "web")
            with Turn(path) as turn:
                task = asyncio.ensure_future(manager.reserve("10.0.0.7", "web"))
                await begun(manager)
                task.cancel()
                await asyncio.sleep(0)
                turn.end()
                await outcome(task)

    run(main())
    assert held(path) == ({}, 1)


def test_two_that_ask_with_one_key_do_not_take_from_each_other(path):
    """The first is cancelled: the second has a lease of its own."""
    gate = Gate()

    async def main():
        async with opened(path, probe=gate) as manager:
            first = asyncio.ensure_future(manager.allocate("web", key="k", ports=[80]))
            await gate.closed()
            second = asyncio.ensure_future(manager.allocate("web", key="k", ports=[80]))
            third = asyncio.ensure_future(manager.allocate("web", key="k", ports=[80]))
            await asyncio.sleep(0)
            first.cancel()
            third.cancel()
            await outcome(third)  # it waited for its turn only
            gate.opened.set()
            await outcome(first)
            two = await second
            assert await manager.find() == [two]
            assert len(await two.ports()) == 1

    run(main())


@pytest.mark.parametrize("name", ["release", "release_port", "unreserve", "owner", "many"])
@pytest.mark.parametrize("queued", [False, True])
def test_what_gives_back_is_made_in_any_case(path, name, queued):
    async def main():
        async with opened(path) as manager:
            one = await manager.allocate("web", ports=[PortRequest(80, host_port=8080)])
            await manager.reserve("10.0.0.7")
            give = {
                "release": one.release,
                "release_port": partial(one.release_port, 8080),
                "unreserve": partial(manager.unreserve, "10.0.0.7"),
                "owner": partial(manager.release, "web"),
                "many": partial(manager.release_many, [one]),
            }[name]
            with Turn(path) as turn:
                busy = [
                    asyncio.ensure_future(manager.allocate("busy")) for _ in range(SIZE * queued)
                ]
                await asyncio.sleep(0)
                task = asyncio.ensure_future(give())
                await begun(manager)
                await asyncio.sleep(0)
                for _ in range(2):
                    task.cancel()
                    await asyncio.sleep(0)
                turn.end()
                await outcome(task)
                await asyncio.gather(*busy)
            await manager.release("busy")

    run(main())
    found, reserved = held(path)
    expected = {} if name in ("release", "owner", "many") else {"10.0.0.2": [8080]}
    if name == "release_port":
        expected = {"10.0.0.2": []}
    assert (found, reserved) == (expected, 0 if name == "unreserve" else 1)


def test_what_a_cancelled_call_was_refused_takes_nothing(path):
    async def main():
        async with opened(path) as manager:
            with Turn(path) as turn:
                task = asyncio.ensure_future(manager.allocate_many(70_000))
                await begun(manager)
                task.cancel()
                await asyncio.sleep(0)
                turn.end()
                await outcome(task)
            assert manager.not_given_back == 0
            with pytest.raises(ExhaustedError):
                await manager.allocate_many(70_000)

    run(main())
    assert held(path) == ({}, 0)


def test_what_cannot_be_given_back_is_logged_and_counted(caplog):
    backend = FaultyBackend()
    gate = Gate()

    async def main():
        async with AsyncNetworkManager.create(
            "br0", network="10.0.0.1/24", backend=backend, probe=gate
        ) as manager:
            task = asyncio.ensure_future(manager.allocate("web", ports=[80]))
            await gate.closed()
            backend.stuck.add(49153)
            task.cancel()
            await asyncio.sleep(0)
            gate.opened.set()
            await outcome(task)
            assert manager.not_given_back == 1
            assert "stuck 49153" in caplog.text
            assert len(await manager.find("web")) == 1
            backend.stuck.clear()
            assert await manager.release("web") == 1

    run(main())


@pytest.mark.parametrize("how", ["open", "networks", "create"])
def test_opening_that_is_cancelled_leaves_nothing(path, how, monkeypatch):
    """No thread (which every test is asked for), and nothing registered."""
    gate = Gate()
    closed = []

    def stopped(cls, name):
        make, close = getattr(cls, name), cls.close

        def made(self, *arguments, **options):
            gate()
            return make(self, *arguments, **options)

        monkeypatch.setattr(cls, name, made)
        monkeypatch.setattr(cls, "close", lambda self: (closed.append(self), close(self))[1])

    async def main():
        if how == "create":
            host = await AsyncNetworks(path)
            stopped(netalloc.Networks, "_created")
            task = asyncio.ensure_future(host.create("new", "10.9.0.1/24", backend="null"))
        elif how == "open":
            stopped(netalloc.NetworkManager, "_assemble")
            task = asyncio.ensure_future(_awaited(opened(path)))
        else:
            stopped(netalloc.Networks, "__init__")
            task = asyncio.ensure_future(_awaited(AsyncNetworks(path)))
        await gate.closed()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        gate.opened.set()
        await outcome(task)
        if how == "create":
            await host.close()
        assert closed

    run(main())
    with netalloc.Networks(path) as host:
        assert list(host) == ["br0"]


def test_close_waits_for_what_is_given_back_however_often_it_is_cancelled(path):
    gate = Gate()

    async def main():
        manager = await opened(path, probe=gate)
        task = asyncio.ensure_future(manager.allocate("web", ports=[80]))
        await gate.closed()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        await outcome(task)
        closing = [asyncio.ensure_future(manager.close()) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
            closing[0].cancel()
        with pytest.raises(ClosedError):
            await manager.allocate("late")
        assert manager.closed and not closing[0].done() and not closing[1].done()
        gate.opened.set()
        await outcome(closing[0])
        await closing[1]
        await manager.close()
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("netalloc-aio")], names

    run(main())
    assert held(path) == ({}, 0)


def test_500_tasks_that_are_cancelled_at_random(path):
    """What is held afterwards is what completed calls returned, and that alone."""
    seed = random.randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)

    async def main():
        kept, ports, reserved, over = {}, {}, set(), 0
        async with opened(path) as manager:
            bases = [await manager.allocate(f"base{n}") for n in range(8)]

            async def work(n):
                kind = n % 7
                if kind == 0:
                    kept[(await manager.allocate(f"task{n}")).ip] = n
                elif kind == 1:
                    one = await manager.allocate(f"task{n}", ports=[80, 81])
                    kept[one.ip] = n
                    ports[one.ip] = 2
                elif kind == 2:
                    kept.update({o.ip: n for o in await manager.allocate_many(3, (), f"task{n}")})
                elif kind == 3:
                    one = bases[n % 8]
                    await one.allocate_port(80)
                    ports[one.ip] = ports.get(one.ip, 0) + 1
                elif kind == 4:
                    # Others may ask with that key, and are given the same.
                    kept[(await manager.allocate("shared", key=str(n % 21))).ip] = n
                elif kind == 5:
                    await manager.reserve(f"10.0.99.{n // 7}", "web")
                    reserved.add(n)
                else:
                    async with await manager.allocate(f"task{n}", ports=[80]):
                        await asyncio.sleep(0)

            tasks = [asyncio.ensure_future(work(n)) for n in range(500)]
            for task in chance.sample(tasks, 350):
                for _ in range(chance.choice((0, 0, 1, 2, 5))):
                    await asyncio.sleep(chance.choice((0, 0, 0.001)))
                task.cancel()
                if chance.random() < 0.2:
                    asyncio.get_running_loop().call_soon(task.cancel)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError), result
                over += result is not None
            assert 0 < over < 500
        assert manager.not_given_back == 0
        return {str(one.ip) for one in bases}, kept, ports, reserved

    before, kept, ports, reserved = run(main())
    found, number = held(path)
    assert set(found) == before | {str(ip) for ip in kept}
    assert {ip: len(of) for ip, of in found.items() if of} == {
        str(ip): n for ip, n in ports.items()
    }
    assert number == len(reserved)


# ---- the loop goes on


def test_the_loop_goes_on_while_the_store_is_held(path):
    """It is held until the loop has gone round a hundred times: one that waited never would."""

    async def main():
        async with opened(path) as manager:
            with Turn(path) as turn:
                tasks = [asyncio.ensure_future(manager.allocate("web")) for _ in range(100)]
                await begun(manager)
                for _ in range(100):
                    await asyncio.sleep(0.001)
                assert not any(task.done() for task in tasks)
                assert await manager.find() == []  # reading waits for no writer
                turn.end()
                assert len(await asyncio.gather(*tasks)) == 100

    run(main())


WRITER = """
import sys, netalloc
with netalloc.NetworkManager.open("br0", sys.argv[1]) as manager:
    print("ready", flush=True)
    sys.stdin.readline()
    while True:
        manager.allocate("writer").release()
"""


async def largest_gap(rounds, work=None):
    """The longest that a beat of a millisecond took, while something else is done."""
    gaps, done = [], asyncio.Event()

    async def beat():
        while not done.is_set() or len(gaps) < rounds:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - began)

    beating = asyncio.ensure_future(beat())
    if work is not None:
        await work()
    done.set()
    await beating
    return max(gaps)


def test_the_heart_beats_beside_eight_processes_that_write(path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(8)
    ]
    try:
        for one in writers:
            assert one.stdout.readline() == b"ready\n"

        async def main():
            async with opened(path) as manager:

                async def calls():
                    async def churn():
                        for _ in range(20):
                            await (await manager.allocate("loop", ports=[80])).release()

                    await asyncio.gather(*[churn() for _ in range(20)])

                await manager.find()  # what is loaded late is loaded
                for one in writers:
                    one.stdin.write(b"\n")
                    one.stdin.flush()
                idle = await largest_gap(300)
                began = time.perf_counter()
                busy = await largest_gap(300, calls)
                return idle, busy, time.perf_counter() - began

        idle, busy, took = run(main())
    finally:
        for one in writers:
            one.kill()
            one.wait()
            one.stdin.close()
            one.stdout.close()
    sys.stdout.write(f"largest gap {idle * 1e3:.1f} ms idle, {busy * 1e3:.1f} ms in {took:.2f} s\n")
    # A thread that computes keeps the others out for a switch interval, and there are SIZE.
    assert busy <= 5 * idle + SIZE * sys.getswitchinterval(), (idle, busy, took)


def test_threads_are_bounded_and_named(path):
    async def main():
        async with opened(path) as manager:
            with Turn(path) as turn:
                tasks = [asyncio.ensure_future(manager.allocate("web")) for _ in range(100)]
                await begun(manager)
                names = [thread.name for thread in threading.enumerate()]
                turn.end()
                await asyncio.gather(*tasks)
            return [name for name in names if name.startswith("netalloc-aio")]

    assert len(run(main())) == SIZE


def test_calls_of_a_loop_share_commits(path, monkeypatch):
    async def main():
        async with opened(path) as manager:
            run_change, changes = manager._manager._leases.committer.store.run, []

            def counted(operation, work, **options):
                changes.append(operation)
                return run_change(operation, work, **options)

            monkeypatch.setattr(manager._manager._leases.committer.store, "run", counted)
            with Turn(path) as turn:
                tasks = [asyncio.ensure_future(manager.allocate("web")) for _ in range(SIZE)]
                await begun(manager)
                while len(manager._manager._leases.committer._calls.inside) < SIZE:
                    await asyncio.sleep(0)
                turn.end()
                await asyncio.gather(*tasks)
            return changes

    assert len(run(main())) <= 3


# ---- loops, threads, processes


def test_another_loop_is_refused(path):
    async def first():
        manager = await opened(path)
        one = await manager.allocate("web")
        seen = []

        def other():
            for call in (manager.find, one.ports, manager.close):
                try:
                    asyncio.run(call())
                except InvalidValueError as error:
                    seen.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.001)
        thread.join()
        assert len(seen) == 3 and all("belongs to another event loop" in one for one in seen)
        with pytest.raises(InvalidValueError, match="running event loop"):
            await asyncio.to_thread(manager.find().send, None)
        await manager.close()

    run(first())


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_forked_child_goes_on_as_the_manager_does(path, kind):
    async def main():
        store = path if kind == "file" else None
        async with AsyncNetworkManager.create(
            "br0", network="10.0.0.1/16", backend="null", store=store
        ) as manager:
            one = await manager.allocate("parent")
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    status = asyncio.run(in_child(manager))
                finally:
                    os._exit(status)
            while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
                await asyncio.sleep(0.001)
            assert os.waitstatus_to_exitcode(done[1]) == 0
            assert [str(found.ip) for found in await manager.find("parent")] == [str(one.ip)]
            assert len(await manager.find("child")) == (1 if kind == "file" else 0)
            return 0

    async def in_child(manager):
        try:
            await manager.allocate("child")
        except ClosedError:
            await manager.close()
            return 0 if kind == "memory" else 2
        await manager.close()
        return 0 if kind == "file" else 3

    assert run(main()) == 0


# ---- the kernel


@pytest.mark.root
@pytest.mark.parametrize("many", [False, True])
def test_attaching_that_is_cancelled_is_detached(nft_lab, tmp_path, monkeypatch, many):
    lab, gate = nft_lab, Gate()
    make = AttachService._make
    place = "aio0"
    namespaces.create(place)

    def stopped(self, endpoints):
        gate()
        make(self, endpoints)

    async def main():
        async with AsyncNetworkManager.create(
            lab.bridge, backend="nftables", store=tmp_path / "host.db"
        ) as manager:
            one = await manager.allocate("web")

            def attach():
                if many:
                    return manager.attach_many([(one, place)], ifname="eth7")
                return one.attach(place, ifname="eth7")

            monkeypatch.setattr(AttachService, "_make", stopped)
            task = asyncio.ensure_future(attach())
            await gate.closed()
            task.cancel()
            await asyncio.sleep(0)
            gate.opened.set()
            await outcome(task)
            assert "eth7" not in lab.run("ip", "netns", "exec", place, "ip", "-br", "link")
            assert await manager.check() == []
            await attach()
            gate.reached.clear()
            gate.opened.clear()
            task = asyncio.ensure_future(attach())  # it is there already, and stays
            await gate.closed()
            task.cancel()
            await asyncio.sleep(0)
            gate.opened.set()
            await outcome(task)
            assert "eth7" in lab.run("ip", "netns", "exec", place, "ip", "-br", "link")
            task = asyncio.ensure_future(one.detach())
            await begun(manager)
            task.cancel()
            await outcome(task)
            assert "eth7" not in lab.run("ip", "netns", "exec", place, "ip", "-br", "link")
            assert await manager.check() == []

    run(main())


@pytest.mark.root
def test_repairs_come_one_after_the_other_until_the_end(nft_lab, tmp_path):
    lab = nft_lab

    async def main():
        told = []
        manager = await AsyncNetworkManager.create(
            lab.bridge, backend="nftables", store=tmp_path / "host.db"
        )
        await manager.allocate("web", ports=[PortRequest(80, host_port=8080)])
        async with await manager.watch(told.append) as repairs:
            for _ in range(2):
                await asyncio.to_thread(lab.run, "nft", "flush", "ruleset")
                found = await repairs.__anext__()
                assert found and found == told[-1]
            waiting = asyncio.ensure_future(repairs.__anext__())
            await asyncio.sleep(0)
            waiting.cancel()
            await outcome(waiting)
        assert [one async for one in repairs] == []
        rest = asyncio.ensure_future(_list(await manager.watch()))
        await asyncio.sleep(0)
        await manager.close()
        assert await rest == []

    run(main())


async def _list(repairs):
    return [one async for one in repairs]


def test_the_manners_are_what_they_are_called():
    assert (calls.READ.withdrawn, calls.READ.awaited, calls.READ.reported) == (True, False, False)
    assert (calls.GIVE.withdrawn, calls.GIVE.awaited, calls.GIVE.reported) == (False, True, True)

"""What tests share: private hosts, the refusal to skip in CI, and that a run ends."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from lab import VARIANTS, Lab, require_kernel


@pytest.fixture(autouse=True, scope="session")
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What netalloc keeps in /run goes elsewhere; a private host has a /run of its own."""
    os.environ["NETALLOC_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("run"))
    yield
    del os.environ["NETALLOC_RUNTIME_DIR"]


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """A test that leaves a thread or a process fails; the process is killed."""
    threads, processes = set(threading.enumerate()), children()
    yield
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(5)
    more = children() - processes
    for pid in more:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not [thread for thread in left if thread.is_alive()], "threads are left"
    assert not more, "processes are left"


def children() -> set[int]:
    """The processes that this one has to wait for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return set()
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, parent = int(status.parent.name), status.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(pid)
    return found


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """A thread that a test left running does not keep the run from ending."""
    hanging = [one for one in threading.enumerate() if not one.daemon]
    if len(hanging) > 1:
        os.write(2, f"the run ends without its threads {hanging}\n".encode())
        os._exit(1)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root"):
        require_kernel()


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    """Each iptables in turn."""
    return str(request.param)


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """A factory of labs that live until the test's end; the arguments are Lab's."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(Lab(*arguments, **options))


@pytest.fixture
def lab(variant: str) -> Iterator[Lab]:
    """A private host, once with each iptables."""
    with Lab(variant) as lab:
        yield lab


@pytest.fixture
def nft_lab() -> Iterator[Lab]:
    """A private host whose iptables is the nft one."""
    with Lab("nft") as lab:
        yield lab

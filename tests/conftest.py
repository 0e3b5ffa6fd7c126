"""What tests share: private hosts, and the refusal to skip in CI."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from lab import VARIANTS, Lab, require_kernel


@pytest.fixture(autouse=True, scope="session")
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What netalloc keeps in /run goes elsewhere; a private host has a /run of its own."""
    os.environ["NETALLOC_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("run"))
    yield
    del os.environ["NETALLOC_RUNTIME_DIR"]


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

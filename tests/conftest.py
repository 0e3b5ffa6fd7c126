"""What tests share: private hosts, and the refusal to skip in CI."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab import MULTI, VARIANTS, Lab

NEEDED = (*MULTI.values(), "nft")


def missing() -> str | None:
    """What tests marked root need and this process does not have; None when all is there."""
    for command in NEEDED:
        if shutil.which(command) is None:
            return f"{command} is not on PATH"
    status = Path("/proc/self/status").read_text()
    held = int(status.split("CapEff:")[1].split()[0], 16)
    for bit, name in ((12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")):
        if not held >> bit & 1:
            return f"{name} is missing"
    return None


def skip(reason: str) -> None:
    """Skip on a laptop; in CI a test that cannot run has failed."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"in CI nothing is skipped: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and (reason := missing()):
        skip(reason)


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

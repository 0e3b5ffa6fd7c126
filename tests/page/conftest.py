"""Beside the other tests: their helpers are found."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@pytest.fixture(autouse=True)
def leaves_nothing() -> None:
    """The browser's driver has threads of its own, as long as the browser is there."""

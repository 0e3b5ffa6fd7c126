"""What the benchmarks share: the methods that do nothing."""

from pathlib import Path
from typing import Any

import pytest

from compiled import compiled


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An object whose methods cost what Python asks for a call."""
    source = Path(__file__).with_name("empty.pyx")
    return compiled(source, "empty", tmp_path_factory.mktemp("empty")).Empty()

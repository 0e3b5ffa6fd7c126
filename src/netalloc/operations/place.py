"""Where the store is when no place is named.

$NETALLOC_STORE; without it /var/lib/netalloc/host.db for root, and for others netalloc/host.db in
$XDG_STATE_HOME (XDG Base Directory Specification 0.8: ~/.local/state where that is not set).
"""

from __future__ import annotations

import os
from pathlib import Path

from netalloc.errors import StoreError

VARIABLE = "NETALLOC_STORE"
_OF_ROOT = Path("/var/lib/netalloc/host.db")


def default_store() -> Path:
    """The path of the store that is meant when none is named."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    if os.geteuid() == 0:
        return _OF_ROOT
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return folder / "netalloc" / "host.db"


def make_folder(store: Path) -> None:
    """Make the folder of a store, for its owner alone; one that is there stays as it is."""
    try:
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{store.parent}: {error.strerror}") from error

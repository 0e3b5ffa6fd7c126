"""Errors as both sockets tell them."""

from __future__ import annotations

from typing import Any

import msgspec

from netalloc.operations.outcomes import is_expected, message, outcome


def told(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The HTTP status of an error, and its JSON."""
    if isinstance(error, msgspec.ValidationError | msgspec.DecodeError):
        return 400, as_json("invalid-value", message(error), 2)
    found = outcome(error)
    text = message(error) if is_expected(error) else "a defect of the daemon: see its log"
    return found.http_status, as_json(found.kind, text, found.exit_status)


def as_json(kind: str, text: str, status: int) -> dict[str, Any]:
    """An error's JSON; `status` is the exit status of the command line."""
    return {"error": {"kind": kind, "message": text, "status": status}}

"""Errors as both sockets tell them."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from netalloc.operations.outcomes import is_expected, message, outcome

log = logging.getLogger(__name__)


def decoded(data: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    """What JSON says. Raises msgspec.DecodeError, also where it is nested too deep."""
    try:
        return decoder.decode(data)
    except RecursionError:
        raise msgspec.DecodeError("the JSON is nested too deep") from None


def told(error: BaseException) -> tuple[int, dict[str, Any]]:
    """The HTTP status of an error, and its JSON; a defect is logged, with its traceback."""
    if isinstance(error, msgspec.ValidationError | msgspec.DecodeError):
        return 400, as_json("invalid-value", message(error), 2)
    found, text = outcome(error), message(error)
    if not is_expected(error):
        log.error("a defect: %s", text, exc_info=error)
        text = "a defect of the daemon: see its log"
    return found.http_status, as_json(found.kind, text, found.exit_status)


def as_json(kind: str, text: str, status: int) -> dict[str, Any]:
    """An error's JSON; `status` is the exit status of the command line."""
    return {"error": {"kind": kind, "message": text, "status": status}}

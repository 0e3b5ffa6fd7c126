"""The OpenAPI document, made of the table of calls (spec.openapis.org/oas/v3.1.0)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from netalloc.operations import answers
from netalloc.operations.outcomes import OUTCOMES
from netalloc.server.calls import CALLS, CHANGE, Call, answer_of, arguments_of

_REF = "#/components/schemas/{name}"
_STATUSES = {
    "400": "A value is wrong, or out of range.",
    "403": "The caller has no right to it.",
    "404": "There is no such thing, or no such path.",
    "405": "The path is there for another method.",
    "409": "It is in use, used up, stale, or elsewhere.",
    "413": "The body is too large.",
    "500": "A command failed, or the daemon has a defect.",
    "503": "The store cannot be read or written now.",
}


class _Error(msgspec.Struct):
    """An error: its kind, what is to be said, and the command line's exit status."""

    kind: str
    message: str
    status: int


class _Failure(msgspec.Struct):
    error: _Error


@cache
def document() -> dict[str, Any]:
    """What the API is, for programs that make clients."""
    kinds: list[Any] = [_Failure, answers.Planned]
    for call in CALLS.values():
        kinds += [arguments_of(call), answer_of(call)]
    shapes, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    failure, planned, rest = shapes[0], shapes[1], iter(shapes[2:])
    paths: dict[str, Any] = {}
    for call in CALLS.values():
        taken, given = next(rest), next(rest)
        if call.right == CHANGE:  # with dry_run
            given = {"anyOf": [given, planned]}
        paths[f"/v1/{call.name}"] = {
            call.verb.lower(): {
                "operationId": call.name,
                "summary": call.doc.partition("\n")[0],
                "description": call.doc,
                "responses": _responses(given, failure),
                **_taken(call, taken, schemas),
            }
        }
    paths |= _others(failure)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "netalloc",
            "version": version("netalloc"),
            "description": "Addresses, host ports and port mappings of one host. Kinds of errors: "
            + ", ".join(sorted({one.kind for one in OUTCOMES.values()})),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _responses(given: Any, failure: Any, media: str = "application/json") -> dict[str, Any]:
    found = {"200": {"description": "Done.", "content": {media: {"schema": given}}}}
    for status, text in _STATUSES.items():
        content = {"application/json": {"schema": failure}}
        found[status] = {"description": text, "content": content}
    return found


def _taken(call: Call, taken: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    if call.right == CHANGE:
        return {
            "parameters": [
                {
                    "name": "dry_run",
                    "in": "query",
                    "description": "Say what would happen, and touch nothing.",
                    "schema": {"type": "boolean", "default": False},
                }
            ],
            "requestBody": {"content": {"application/json": {"schema": taken}}, "required": True},
        }
    shape = schemas[taken["$ref"].rpartition("/")[2]]
    required = shape.get("required", ())
    return {
        "parameters": [
            {"name": name, "in": "query", "required": name in required, "schema": _of_query(one)}
            for name, one in shape["properties"].items()
        ]
    }


def _of_query(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what may be left out is left out."""
    some = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
    return some[0] if len(some) == 1 else schema


def _others(failure: Any) -> dict[str, Any]:
    def get(name: str, summary: str, media: str, schema: Any, *parameters: Any) -> dict[str, Any]:
        responses = _responses(schema, failure, media)
        return {
            "get": {
                "operationId": name, "summary": summary, "parameters": list(parameters),
                "responses": responses,
            }
        }  # fmt: skip

    text, anything = {"type": "string"}, {"type": "object"}
    network = {"name": "network", "in": "query", "required": True, "schema": text}
    form = {
        "name": "form", "in": "query", "required": False,
        "schema": {"enum": ["json", "png", "svg"], "default": "json"},
    }  # fmt: skip
    after = {
        "name": "after",
        "in": "query",
        "required": False,
        "schema": {"type": "integer", "minimum": 0},
    }
    return {
        "/metrics": get("metrics", "Counters and gauges, for Prometheus.", "text/plain", text),
        "/v1/events": get(
            "events", "What is allocated, released and repaired, live.", "text/event-stream", text,
            after,
        ),
        "/v1/usage": get(
            "usage", "How full the networks were in the last hour.", "application/json",
            {"type": "array", "items": anything},
        ),
        "/v1/map": {
            "get": {
                "operationId": "map",
                "summary": "How a network is used, cell by cell along a Hilbert curve.",
                "parameters": [network, form],
                "responses": {
                    **_responses(anything, failure),
                    "200": {
                        "description": "The map.",
                        "content": {
                            "application/json": {"schema": anything},
                            "image/png": {"schema": text},
                            "image/svg+xml": {"schema": text},
                        },
                    },
                },
            }
        },
    }  # fmt: skip

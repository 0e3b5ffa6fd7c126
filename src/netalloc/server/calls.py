"""The calls of the daemon: those of HostOperations by name, with what they take and give.

Both sockets, the OpenAPI document and the documentation read this one table, and what a call
takes is read off the method itself: so none can say something else than the code does.
"""

from __future__ import annotations

import inspect
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

import msgspec

from netalloc.operations import answers
from netalloc.operations.host import HostOperations

_WORDS = {"Sequence": list, "Iterable": list, "datetime": datetime, "Any": Any, "object": Any}
_NOT_TAKEN = ("self", "progress", "kernel")
LOOK, CHANGE = "read", "change"


class Call(NamedTuple):
    """One call: `right` is what a caller needs, `method` the name in HostOperations."""

    name: str
    method: str
    right: str

    @property
    def verb(self) -> str:
        """GET with a query for looking, POST with a JSON body for changes."""
        return "GET" if self.right == LOOK else "POST"

    @property
    def doc(self) -> str:
        """What it does: the method's own documentation."""
        return inspect.getdoc(getattr(HostOperations, self.method)) or ""


_READ = (
    "networks", "network", "leases", "reservations", "who", "why", "history", "check", "doctor",
    "activity", "export",
)  # fmt: skip
_CHANGE = (
    "create_network", "remove_network", "allocate", "allocate_many", "release", "attach", "detach",
    "publish", "unpublish", "reserve", "unreserve", "gc", "repair", "reconcile",
)  # fmt: skip

CALLS: dict[str, Call] = {
    **{name: Call(name, name, LOOK) for name in _READ},
    **{name: Call(name, name, CHANGE) for name in _CHANGE},
    "import": Call("import", "import_document", CHANGE),
}


@cache
def arguments_of(call: Call) -> type[msgspec.Struct]:
    """A struct of what a call takes; anything else is refused."""
    fields: list[Any] = []
    for name, one in _parameters(call):
        kind = eval(str(one.annotation), {**_WORDS, "answers": answers})
        if one.default is inspect.Parameter.empty:
            fields.append((name, kind))
        elif isinstance(one.default, tuple):
            fields.append((name, kind, msgspec.field(default_factory=list)))
        else:
            fields.append((name, kind, one.default))
    title = "".join(part.title() for part in call.name.split("_")) + "Arguments"
    return msgspec.defstruct(title, fields, kw_only=True, forbid_unknown_fields=True)


@cache
def answer_of(call: Call) -> Any:
    """The type of what a call gives."""
    annotation = str(inspect.signature(getattr(HostOperations, call.method)).return_annotation)
    return eval(annotation, {**_WORDS, "answers": answers})


def list_names(call: Call) -> frozenset[str]:
    """The arguments that are lists: of a query they may be repeated."""
    return frozenset(
        name for name, one in _parameters(call) if str(one.annotation).startswith(("Seq", "Iter"))
    )


def as_keywords(arguments: msgspec.Struct) -> dict[str, Any]:
    """The same as keyword arguments."""
    return {name: getattr(arguments, name) for name in arguments.__struct_fields__}


def _parameters(call: Call) -> list[tuple[str, inspect.Parameter]]:
    signature = inspect.signature(getattr(HostOperations, call.method))
    return [(name, one) for name, one in signature.parameters.items() if name not in _NOT_TAKEN]

"""NamedTuple, Protocol and Generic without typing, which takes a third of a small process to load.

To type checkers they are typing's own. Here a protocol is an ordinary class.
"""

from __future__ import annotations

from collections import namedtuple

__all__ = ["Generic", "NamedTuple", "Protocol"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Generic, NamedTuple, Protocol
else:
    Protocol = object

    class Generic:
        """The base of a class that has a type as a parameter, for type checkers alone."""

        __slots__ = ()

        def __class_getitem__(cls, parameter: object) -> type:
            return cls

    class _Named(type):
        """Makes a class of annotated fields into a tuple of them, with its methods."""

        def __new__(meta, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(meta, name, bases, body)
            fields = list(body.get("__annotations__", ()))
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__annotations__ = made.__new__.__annotations__ = body["__annotations__"]
            for key, value in body.items():
                if key not in ("__annotations__", "__module__", "__qualname__"):
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Named):
        """The base of a class that says its fields by annotations."""

"""What makes a process that is soon over cheaper to start.

NamedTuple, Protocol and Generic without typing, which takes a third of a small process to load;
to type checkers they are typing's own. Here a protocol is an ordinary class, and the constructor
of a named tuple is compiled, 0.1 ms, when it is first called: of most records none is ever made.
"""

from __future__ import annotations

import gc

__all__ = ["Generic", "NamedTuple", "Protocol", "loaded"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, NamedTuple, Protocol, TypeVar

    T = TypeVar("T")
else:
    from _collections import _tuplegetter

    Protocol = object
    _new = tuple.__new__

    class Generic:
        """The base of a class that has a type as a parameter, for type checkers alone."""

        __slots__ = ()

        def __class_getitem__(cls, parameter: object) -> type:
            return cls

    class _Tuple(tuple):
        """What all named tuples have in common."""

        __slots__ = ()
        _fields: tuple[str, ...] = ()
        _field_defaults: dict[str, Any] = {}  # noqa: RUF012

        def __new__(cls, /, *values: Any, **named: Any) -> _Tuple:
            """The first one of a class: compiles the constructor that makes all others."""
            names = ", ".join(cls._fields)
            made = eval(f"lambda _cls, {names}: _new(_cls, ({names},))", {"_new": _new})
            made.__defaults__ = tuple(cls._field_defaults.values())
            made.__name__ = "__new__"
            made.__qualname__ = f"{cls.__qualname__}.__new__"
            cls.__new__ = staticmethod(made)
            return made(cls, *values, **named)

        @classmethod
        def _make(cls, values: Any) -> _Tuple:
            made = _new(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"{len(made)} values for a {cls.__name__}")
            return made

        def _replace(self, /, **changes: Any) -> _Tuple:
            values = list(self)
            for name, value in changes.items():
                values[self._fields.index(name)] = value  # ValueError where there is none
            return _new(type(self), values)

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

        def __repr__(self) -> str:
            fields = ", ".join([f"{name}={value!r}" for name, value in self._asdict().items()])
            return f"{type(self).__name__}({fields})"

    class _Named(type):
        """Makes a class of annotated fields into a tuple of them, with its methods."""

        def __new__(meta, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(meta, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body[field] for field in fields if field in body}
            getters = {field: _tuplegetter(i, "") for i, field in enumerate(fields)}
            named = {"_fields": fields, "__match_args__": fields, "_field_defaults": defaults}
            return type(name, (_Tuple,), {**body, **named, **getters, "__slots__": ()})

    class NamedTuple(metaclass=_Named):
        """The base of a class that says its fields by annotations."""


def loaded(load: Callable[[], T]) -> T:
    """What `load` imports, the collector paused meanwhile.

    Nothing that an import makes is garbage, so to look for some, forty times, is in vain: that is
    a twentieth of a process that opens a store, allocates and ends.
    """
    enabled = gc.isenabled()
    try:
        gc.disable()
        return load()
    finally:
        try:
            if enabled:
                gc.enable()
        finally:
            pass  # a `try` comes first: see locks.py

"""Values as callers give them, made plain: exact int and str, or an error.

What passes here is what is stored, compared and sent to the kernel, so a subclass (an IntEnum,
a str Enum) becomes the plain value it stands for, and what stands for none is
refused before anything has changed. Every error names the value, shortened, and the limit.
"""

from __future__ import annotations

from operator import index

from netalloc.errors import InvalidValueError, NetallocError, OutOfRangeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    T = TypeVar("T")

PORTS = range(49153, 65536)  # where automatic picks of host ports come from, unless stated
PROTOCOLS = ("tcp", "udp", "sctp")
MAX_TEXT = 255  # bytes of an owner, a key, the name of a label or of a network
MAX_LABEL = 4096  # bytes of a label's value


def shown(value: object) -> str:
    """A value as an error may show it: its repr, at most some 80 characters of it."""
    if isinstance(value, str | bytes | bytearray) and len(value) > 60:
        return f"{value[:60]!r}... ({len(value)} long)"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]}..."


def as_int(value: object, what: str, low: int, high: int) -> int:
    """A whole number from low to high; bool and float are none."""
    if type(value) is not int:
        if isinstance(value, bool) or not hasattr(type(value), "__index__"):
            raise InvalidValueError(f"{what} {shown(value)} is not a whole number")
        try:
            value = int(index(value))  # type: ignore[arg-type]
        except Exception as error:
            raise InvalidValueError(f"{what} {shown(value)} is not a whole number") from error
    if not low <= value <= high:
        raise OutOfRangeError(f"{what} {shown(value)} is not within {low} to {high}")
    return value


def as_port(value: object, what: str = "port") -> int:
    """A port number."""
    if type(value) is int and 1 <= value <= 65535:  # nearly all: a third of the time
        return value
    return as_int(value, what, 1, 65535)


def as_protocol(value: object) -> str:
    """One of the protocols that have ports and are translated."""
    if type(value) is str and value in PROTOCOLS:
        return value
    plain = str.__str__(value) if isinstance(value, str) else ""
    if plain not in PROTOCOLS:
        raise InvalidValueError(f"protocol {shown(value)} is none of {', '.join(PROTOCOLS)}")
    return plain


def as_text(value: object, what: str, limit: int = MAX_TEXT) -> str:
    """Text of 1 to `limit` bytes in UTF-8, without control characters."""
    if type(value) is str and 0 < 4 * len(value) <= limit and value.isprintable():
        return value  # nearly all: short enough whatever the characters
    if type(value) is str and 0 < len(value) <= limit and value.isascii() and value.isprintable():
        return value  # nearly all: a third of the time
    if not isinstance(value, str):
        raise InvalidValueError(f"{what} {shown(value)} is not text")
    plain = str.__str__(value)
    if not plain:
        raise InvalidValueError(f"{what} {plain!r} is empty")
    if len(plain) > limit or len(plain.encode("utf-8", "replace")) > limit:
        raise OutOfRangeError(f"{what} {shown(plain)} is longer than {limit} bytes")
    if not plain.isprintable() and any(
        c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in plain
    ):
        raise InvalidValueError(f"{what} {shown(plain)} has a control character or a surrogate")
    return plain


def as_optional_text(value: object, what: str, limit: int = MAX_TEXT) -> str | None:
    """The same, or None."""
    return None if value is None else as_text(value, what, limit)


def as_labels(labels: object) -> dict[str, str]:
    """Labels as a plain dict; their values may be empty."""
    if labels is None:
        return {}
    if not hasattr(labels, "items"):
        raise InvalidValueError(f"labels {shown(labels)} are not a mapping of text to text")
    found = {}
    for pair in as_items(labels.items(), "labels"):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InvalidValueError(f"label {shown(pair)} is not a name and a value")
        name = as_text(pair[0], "label")
        if "=" in name:
            raise InvalidValueError(f"label {name!r} has an = in its name")
        value = pair[1]
        found[name] = "" if value == "" else as_text(value, f"label {name}:", MAX_LABEL)
    return found


def as_label(label: object) -> tuple[str, str]:
    """A label that is looked for: "app=shop", or a name and a value."""
    if isinstance(label, str):
        name, equals, value = str.__str__(label).partition("=")
        if not equals:
            raise InvalidValueError(f"label {shown(label)} is not name=value")
    else:
        pair = as_items(label, "label")
        if len(pair) != 2:
            raise InvalidValueError(f"label {shown(label)} is not a name and a value")
        name, value = pair
    return as_text(name, "label"), "" if value == "" else as_text(value, "label", MAX_LABEL)


def as_seconds(value: object, what: str) -> float:
    """Seconds, finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidValueError(f"{what} of {shown(value)} is not a number of seconds")
    try:
        plain = float(value)
    except OverflowError:
        plain = float("inf")
    if not 0 <= plain < 1e9:  # 30 years; false for nan, too
        raise OutOfRangeError(f"{what} of {shown(value)} seconds is not within 0 to 1e9")
    return plain


def as_flag(value: object, what: str) -> bool:
    """True or False, nothing that is merely true or false."""
    if value is True or value is False:
        return value
    raise InvalidValueError(f"{what} {shown(value)} is neither True nor False")


def as_items(values: Iterable[T] | object, what: str) -> list[Any]:
    """All items of an iterable that is no text: an iterator that fails is an error of ours."""
    if isinstance(values, str | bytes | bytearray):
        raise InvalidValueError(f"{what} {shown(values)} is text, not a collection")
    try:
        return list(values)  # type: ignore[call-overload, no-any-return]
    except NetallocError:
        raise
    except Exception as error:
        raise InvalidValueError(
            f"{what} {shown(values)} cannot be read: {error!r}"[:300]
        ) from error


def as_each(values: object, what: str, convert: Callable[[Any], T]) -> list[T]:
    """Every item of an iterable, converted."""
    return [convert(value) for value in as_items(values, what)]

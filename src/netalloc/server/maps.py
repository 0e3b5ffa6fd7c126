"""The map of a network, as data for the page or as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from netalloc.errors import OutOfRangeError

if TYPE_CHECKING:
    from netalloc.manager.view import NetworkView

_MEDIA = {"png": "image/png", "svg": "image/svg+xml", "json": "application/json"}


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be drawn: `count` addresses from `first` on, an aligned power of two."""

    network: str
    form: str = "json"
    first: int = 0
    count: int | None = None
    order: int | None = None
    size: int = 1024
    theme: str = "dark"


def draw(view: NetworkView, query: dict[str, str]) -> tuple[bytes, str]:
    """The map that a query asks for, and its media type."""
    from netalloc.pictures.survey import survey

    asked = msgspec.convert(query, Asked, strict=False)
    if asked.form not in _MEDIA:
        raise OutOfRangeError(f"form {asked.form[:40]!r} is none of {', '.join(_MEDIA)}")
    if not 512 <= asked.size <= 4096:
        raise OutOfRangeError(f"size {asked.size} is not within 512 to 4096")
    if asked.order is not None and not 0 <= asked.order <= 9:
        raise OutOfRangeError(f"order {asked.order} is not within 0 to 9")
    found = survey(
        view, asked.network, first=asked.first, count=asked.count, cells_order=asked.order
    )
    if asked.form == "png":
        from netalloc.pictures.png import png

        return png(found, size=asked.size, theme=asked.theme), _MEDIA["png"]
    if asked.form == "svg":
        from netalloc.pictures.svg import svg

        return svg(found, theme=asked.theme).encode(), _MEDIA["svg"]
    return _as_json(found), _MEDIA["json"]


def _as_json(found: Any) -> bytes:
    """Cells in the order of the addresses: what share of each is in which state, in percent."""
    from netalloc.pictures.survey import percentages

    return msgspec.json.encode(
        {
            "network": found.network,
            "subnet": found.subnet,
            "first": str(found.first),  # may be past 2**53, what JavaScript has
            "part": found.part,
            "count": str(found.count),
            "size": str(found.size),
            "lowest": str(found.lowest),
            "family": found.family,
            "order": found.order,
            "cell": str(found.cell),
            "totals": found.totals._asdict(),
            **percentages(found),
        }
    )

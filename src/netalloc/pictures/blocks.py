"""A picture of a network for a terminal: half blocks in colour, or shades without."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from netalloc.pictures import hilbert
from netalloc.pictures.captions import Entry, legend_of, name_of, number, part_of, scale_of, use_of
from netalloc.pictures.colours import (
    COOLING,
    EXCLUDED,
    FREE,
    RESERVED,
    STEPS,
    USED,
    Colour,
    Theme,
    kinds,
    palette,
    theme_of,
)
from netalloc.pictures.survey import Survey, coarser
from netalloc.values import as_flag, as_int

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]

_RESET = "\x1b[0m"
_LEAST = 20  # columns, for a legend that can be read
_SIGNS = {FREE: "\u00b7", COOLING: "~", RESERVED: "+", EXCLUDED: "x"}
_SHADES = "\u2591\u2592\u2593\u2588"


def blocks(survey: Survey, *, width: int, height: int, colour: bool, theme: str = "dark") -> str:
    """The picture as lines of text, at most `width` columns and, if it can be, `height` lines.

    In colour a character is two cells, one above the other, each of the truecolour that `theme`
    ("dark" or "light") has for it. Without, a cell is two characters: a shade of how much is in
    use, or a sign. As many cells a side as fit; title and legend come first and last, however
    little there is. Raises InvalidValueError for less than 20 columns or 1 line.
    """
    width = as_int(width, "width", _LEAST, 10_000)
    height = as_int(height, "height", 1, 10_000)
    as_flag(colour, "colour")
    colours = theme_of(theme)
    whole = survey
    order = survey.order
    while True:
        survey = coarser(whole, order)
        words = [*wrap(name_of(survey), width), *wrap(use_of(survey), width)]
        words += wrap(part_of(survey), width)
        legend = _legend(survey, colours, width, colour)
        side = 1 << order
        columns, lines = (side, (side + 1) // 2) if colour else (2 * side, side)
        if order == 0 or (
            columns <= width and (lines + len(words) + len(legend) <= height or order <= 3)
        ):
            break
        order -= 1
    picture = kinds(survey)[hilbert.map_of(order)]
    drawn = _half_blocks(picture, palette(colours)) if colour else _shades(picture)
    return "\n".join([*words, *drawn, *legend, ""])


def _half_blocks(picture: Bytes, colours: list[Colour]) -> list[str]:
    """Two rows a line: the upper one is the foreground; one that is alone has no background."""
    lines = []
    rows = picture.tolist()
    for at in range(0, len(rows), 2):
        lower = rows[at + 1] if at + 1 < len(rows) else [None] * len(rows[at])
        line, before = [], (-1, -1)
        for pair in zip(rows[at], lower, strict=True):
            if pair != before:  # a code is some 40 characters: once for a run
                line.append(_fore(colours[pair[0]]))
                if pair[1] is not None:
                    line.append(_back(colours[pair[1]]))
                before = pair
            line.append("\u2580")
        lines.append("".join(line) + _RESET)
    return lines


def _shades(picture: Bytes) -> list[str]:
    return ["".join([2 * _sign(kind) for kind in row]) for row in picture.tolist()]


def _sign(kind: int) -> str:
    if kind < USED:
        return _SIGNS[kind]
    return _SHADES[(kind - USED) * len(_SHADES) // STEPS]


def _legend(survey: Survey, theme: Theme, width: int, colour: bool) -> list[str]:
    """The states, each with its sign, and what a cell is; as many to a line as fit."""
    lines: list[str] = []
    used = width
    for entry in legend_of(survey):
        steps = _steps(survey, entry)
        text = str(entry)
        if len(steps) + 1 + len(text) > width:
            count = number(entry.count)
            room = max(width - len(steps) - len(count) - 3, 0)
            text = f"{entry.name[:room]}\u2026 {count}"[: width - len(steps) - 1]
        if colour:
            table = palette(theme)
            signs = "".join([f"{_fore(table[kind])}\u2588" for kind in steps]) + _RESET
        else:
            signs = "".join(map(_sign, steps))
        wide = len(steps) + 1 + len(text)
        if used + 2 + wide <= width:
            lines[-1] += f"  {signs} {text}"
            used += 2 + wide
        else:
            lines.append(f"{signs} {text}")
            used = wide
    return [*lines, *wrap(scale_of(survey), width)]


def _steps(survey: Survey, entry: Entry) -> list[int]:
    """The kinds of cells that are of a state: of use, some of its steps."""
    if entry.kind != USED:
        return [entry.kind]
    last = USED + STEPS - 1
    if survey.cell == 1:
        return [last]
    return [USED + step * (STEPS - 1) // 3 for step in range(4)]


def _fore(colour: Colour) -> str:
    red, green, blue = colour
    return f"\x1b[38;2;{red};{green};{blue}m"


def _back(colour: Colour) -> str:
    red, green, blue = colour
    return f"\x1b[48;2;{red};{green};{blue}m"

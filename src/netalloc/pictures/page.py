"""Where everything of a page is: title, map, outlines, labels and legend, in pixels.

The same page is drawn as PNG and as SVG; they differ in how wide a text is, which `measure` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from netalloc.pictures import hilbert
from netalloc.pictures.captions import legend_of, name_of, part_of, scale_of, use_of
from netalloc.pictures.colours import STEPS, USED, Colour, Theme, kinds, legible, palette
from netalloc.pictures.extras import load

if TYPE_CHECKING:
    import numpy as np

    from netalloc.pictures.survey import Block, Survey
else:
    np = load("numpy", "NumPy")

Measure = Callable[[str, float], float]  # how wide a text is, of that size

_SMALLEST = 9.0  # pixels: the smallest text
_ROOM = 0.75  # of a block's width, that its label may have
_GRID = 56  # pixels: the smallest blocks that are outlined
_APART = 12  # pixels a cell, from which on cells are drawn apart from each other


class Text(NamedTuple):
    """A line of text; `y` is its middle, `x` where it begins."""

    x: float
    y: float
    size: float
    text: str
    colour: Colour


class Box(NamedTuple):
    """A rectangle, filled or outlined with a line of that width, and how opaque it is."""

    x: float
    y: float
    width: float
    height: float
    colour: Colour
    line: float = 0
    opacity: float = 1


class Label(NamedTuple):
    """A text on the map, on a plate of its own, so that it can be read on any colour."""

    plate: Box
    text: Text


@dataclass
class Page:
    """A page of `width` by `height`, with the map at (left, top), `unit` pixels a cell."""

    width: int
    height: int
    left: int
    top: int
    unit: int
    side: int
    outlines: list[Box] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    swatches: list[Box] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def lay_out(survey: Survey, theme: Theme, size: int, measure: Measure) -> Page:
    """A page whose map is `size` pixels a side, or as many less as make whole pixels a cell."""
    unit = size >> survey.order
    side = unit << survey.order
    margin = max(10, side // 32)
    title, body = max(13.0, side / 34), max(_SMALLEST + 1, side / 64)
    page = Page(side + 2 * margin, 0, margin, 0, unit, side)
    y: float = margin
    for text, height, colour in (
        (name_of(survey), title, theme.text),
        (use_of(survey), body * 1.1, theme.text),
        (part_of(survey), body, theme.faint),
    ):
        line = _fitted(text, height, side, measure)
        page.texts.append(Text(margin, y + height * 0.65, line[1], line[0], colour))
        y += height * 1.45
    page.top = round(y + body * 0.5)
    small = max(_SMALLEST, side / 85)
    if not _numbers(page, survey, theme, measure, small):
        _grid(page, survey, theme, measure, small)
    lower = bool(page.labels)
    for block in survey.blocks:
        _block(page, survey, theme, measure, block, lower)
    y = page.top + side + body * 1.3
    y = _legend(page, survey, theme, measure, body, y)
    text, height = _fitted(scale_of(survey), body, side, measure)
    page.texts.append(Text(margin, y, height, text, theme.faint))
    page.height = round(y + body * 0.5 + margin)
    return page


def _fitted(text: str, size: float, width: float, measure: Measure) -> tuple[str, float]:
    """A text as large as it fits, but no smaller than can be read: then it is cut."""
    wide = measure(text, size)
    if wide > width:
        size = max(_SMALLEST, size * width / wide)
        while len(text) > 1 and measure(text, size) > width:
            text = text[:-2] + "\u2026"
    return text, size


def _legend(
    page: Page, survey: Survey, theme: Theme, measure: Measure, size: float, y: float
) -> float:
    """States and counts, in as many lines as they need; where the next line is."""
    x, colours, box = float(page.left), palette(theme), size * 0.95
    for entry in legend_of(survey):
        ramp = entry.kind == USED and survey.cell > 1
        swatch = box * 5 if ramp else box
        text = f"{entry}  (of a cell: little to all)" if ramp else str(entry)
        wide = swatch + size * 0.5 + measure(text, size)
        if x > page.left and x + wide > page.left + page.side:
            x, y = page.left, y + size * 1.7
        top = y - box / 2
        if ramp:
            step = swatch / STEPS
            page.swatches += [
                Box(x + n * step, top, step, box, colours[USED + n]) for n in range(STEPS)
            ]
        else:
            kind = USED + STEPS - 1 if entry.kind == USED else entry.kind
            page.swatches.append(Box(x, top, box, box, colours[kind]))
            page.swatches.append(Box(x, top, box, box, theme.faint, 1))
        text, fitted = _fitted(text, size, page.side - swatch - size * 0.5, measure)
        page.texts.append(Text(x + swatch + size * 0.5, y, fitted, text, theme.text))
        x += wide + size * 1.4
    return y + size * 1.9


def _numbers(page: Page, survey: Survey, theme: Theme, measure: Measure, size: float) -> bool:
    """Lines between large cells, and in each that is one address the end of it, if there is room.

    Whether there is: then sub-prefixes need no labels.
    """
    if page.unit < _APART:
        return False
    for at in range(page.unit, page.side, page.unit):
        page.outlines += [
            Box(page.left + at, page.top, 1, page.side, theme.page),
            Box(page.left, page.top + at, page.side, 1, theme.page),
        ]
    if survey.cell > 1:
        return False
    size = max(size, page.unit / 4.5)
    mark = "." if survey.family == 4 else ":"
    whole = [survey.prefix(survey.first + n, 1).partition("/")[0] for n in range(survey.count)]
    ends = [mark + address.rpartition(mark)[2] for address in whole]
    if max(measure(end, size) for end in ends) > page.unit * 0.9:
        return False
    x, y = hilbert.places(np.arange(survey.count), survey.order)
    colours = palette(theme)
    for n, kind in enumerate(kinds(survey).tolist()):
        middle = (page.unit - measure(ends[n], size)) / 2
        page.texts.append(
            Text(
                page.left + int(x[n]) * page.unit + middle,
                page.top + (int(y[n]) + 0.5) * page.unit,
                size,
                ends[n],
                legible(colours[kind]),
            )
        )
    return True


def _grid(page: Page, survey: Survey, theme: Theme, measure: Measure, size: float) -> None:
    """Outlines of sub-prefixes, the larger ones stronger, and labels of the finest that fit."""
    labelled = False
    levels = range(1, survey.order)
    for level in reversed(levels):  # the finest first
        width = page.side >> level
        if width < _GRID or width < 4 * page.unit:
            continue
        page.outlines += [
            Box(
                page.left + at,
                page.top + along,
                *extent,
                theme.line,
                0,
                0.6 / 2 ** (level - 1) + 0.06,
            )
            for n in range(1, 1 << level)
            if n % 2  # the others are of a larger block
            for at, along, extent in (
                (n * width, 0, (1, page.side)),
                (0, n * width, (page.side, 1)),
            )
        ]
        cells = 4 ** (survey.order - level)
        firsts = range(0, 4**survey.order, cells)
        texts = [survey.prefix(survey.first + n * survey.cell, cells * survey.cell) for n in firsts]
        if not labelled and max(measure(text, size) for text in texts) <= width * _ROOM:
            labelled = True
            for first, text in zip(firsts, texts, strict=True):
                place = hilbert.block(first, cells, survey.order)
                page.labels.append(_label(page, theme, measure, place, text, size))


def _block(
    page: Page, survey: Survey, theme: Theme, measure: Measure, block: Block, lower: bool
) -> None:
    """Outline the cells that a block is in, as far as it is drawn, and write its label.

    It is `lower` where sub-prefixes have labels in their corners.
    """
    first, count, label = block
    start = max(first - survey.first, 0)
    stop = min(first + count - survey.first, survey.count)
    if start >= stop:
        return
    begin, end = start // survey.cell, -(-stop // survey.cell)
    places = list(hilbert.blocks(begin, end - begin, survey.order))
    line = max(2.0, page.side / 400)
    page.outlines += [
        Box(
            page.left + place.x * page.unit,
            page.top + place.y * page.unit,
            place.width * page.unit,
            place.height * page.unit,
            theme.block,
            line,
        )
        for place in places
    ]
    largest = max(places, key=lambda place: place.width * place.height)
    size = max(_SMALLEST, page.side / 72)
    if measure(label, size) <= largest.width * page.unit * 0.9:
        page.labels.append(_label(page, theme, measure, largest, label, size, lower))


def _label(
    page: Page,
    theme: Theme,
    measure: Measure,
    place: hilbert.Rectangle,
    text: str,
    size: float,
    lower: bool = False,
) -> Label:
    """In the upper left corner of a block, or below what is there already."""
    gap = size * 0.35
    x = page.left + place.x * page.unit + gap
    y = page.top + place.y * page.unit + gap + (size * 1.5 if lower else 0)
    plate = Box(x, y, measure(text, size) + 2 * gap, size * 1.35, theme.page, 0, 0.8)
    return Label(plate, Text(x + gap, y + size * 0.68, size, text, theme.text))

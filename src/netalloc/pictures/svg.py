"""A picture of a network as SVG: one file without anything outside of it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from netalloc.pictures import hilbert
from netalloc.pictures.captions import description_of, name_of
from netalloc.pictures.colours import FREE, as_hex, kinds, palette, theme_of
from netalloc.pictures.extras import load
from netalloc.pictures.page import Box, Text, lay_out
from netalloc.pictures.survey import ORDER, Survey, coarser
from netalloc.values import as_int

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
else:
    np = load("numpy", "NumPy")

_NARROW = frozenset("iIljtf.,:;'|!()[]/ ")


def svg(survey: Survey, *, size: int = 1024, theme: str = "dark") -> str:
    """The picture as an SVG document, whose map is at most `size` units a side, 256 to 8192.

    Cells in a row that look the same are one; more than 256 a side are made fewer, so it stays
    below 1 MB. Texts are texts, and a title and a description say what is seen. `theme` is "dark"
    or "light". Raises InvalidValueError.
    """
    colours = theme_of(theme)
    size = as_int(size, "size", 256, 8192)
    survey = coarser(survey, ORDER)
    page = lay_out(survey, colours, size, _width)
    around = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {page.width} {page.height}" '
        f'width="{page.width}" height="{page.height}" role="img" '
        'aria-labelledby="netalloc-title netalloc-desc" font-family="system-ui, sans-serif">'
    )
    on_map = (
        f'<g transform="translate({page.left} {page.top}) scale({page.unit})" '
        'shape-rendering="crispEdges" fill="none">'
    )
    parts = [
        around,
        f'<title id="netalloc-title">{escape(name_of(survey))}</title>',
        f'<desc id="netalloc-desc">{escape(description_of(survey))}</desc>',
        _box(Box(0, 0, page.width, page.height, colours.page)),
        _box(Box(page.left, page.top, page.side, page.side, colours.free)),
        on_map,
        *_cells(kinds(survey)[hilbert.map_of(survey.order)], palette(colours)),
        "</g>",
        *map(_box, page.outlines + page.swatches),
    ]
    parts += map(_text, page.texts)
    for label in page.labels:
        parts += [_box(label.plate), _text(label.text)]
    return "\n".join([*parts, "</svg>", ""])


def _cells(picture: Bytes, colours: list[tuple[int, int, int]]) -> Iterator[str]:
    """A path for each colour but that of free cells: lines one cell thick, row by row."""
    ends = np.ones(picture.shape, bool)  # where a run begins
    ends[:, 1:] = picture[:, 1:] != picture[:, :-1]
    y, x = np.nonzero(ends)
    following = np.append(x[1:], 0)
    length = np.where(following > x, following, picture.shape[1]) - x
    kind = picture[y, x]
    for one in np.unique(kind).tolist():
        if one == FREE:
            continue
        of_kind = kind == one
        steps, last = [], (0, 0)
        for row, column, wide in zip(
            y[of_kind].tolist(), x[of_kind].tolist(), length[of_kind].tolist(), strict=True
        ):
            steps.append(f"m{column - last[0]} {row - last[1]}h{wide}")
            last = column + wide, row
        path = "".join(steps).replace(" -", "-")
        yield f'<path stroke="{as_hex(colours[one])}" d="M0 .5{path}"/>'


def _box(box: Box) -> str:
    inset = box.line / 2
    place = (box.x + inset, box.y + inset, box.width - box.line, box.height - box.line)
    x, y, width, height = (f"{value:.4g}" if value < 1000 else f"{value:.0f}" for value in place)
    colour = as_hex(box.colour)
    style = (
        f'fill="none" stroke="{colour}" stroke-width="{box.line:g}"'
        if box.line
        else (f'fill="{colour}"')
    )
    if box.opacity < 1:
        style += f' opacity="{box.opacity:.2g}"'
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" {style}/>'


def _text(text: Text) -> str:
    wide = _width(text.text, text.size)
    fit = f' textLength="{wide:.0f}" lengthAdjust="spacingAndGlyphs"' if len(text.text) > 1 else ""
    return (
        f'<text x="{text.x:.1f}" y="{text.y:.1f}" dominant-baseline="central" '
        f'font-size="{text.size:.1f}" fill="{as_hex(text.colour)}"{fit}>{escape(text.text)}</text>'
    )


def _width(text: str, size: float) -> float:
    """About as wide as any sans serif font has it; the text is set to be."""
    return size * sum([0.34 if character in _NARROW else 0.58 for character in text])

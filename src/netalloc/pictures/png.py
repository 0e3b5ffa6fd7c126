"""A picture of a network as PNG."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

from netalloc.errors import InvalidValueError
from netalloc.pictures import hilbert
from netalloc.pictures.colours import kinds, palette, theme_of
from netalloc.pictures.extras import load
from netalloc.pictures.page import Box, Text, lay_out
from netalloc.values import as_int

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    from netalloc.pictures.survey import Survey
else:
    np = load("numpy", "NumPy")
    Image, ImageDraw, ImageFont = (
        load(f"PIL.{name}", "Pillow") for name in ("Image", "ImageDraw", "ImageFont")
    )

SMALLEST, LARGEST = 128, 8192  # pixels a side of the map


def png(survey: Survey, *, size: int = 1024, theme: str = "dark") -> bytes:
    """The picture as a PNG, the map of which is at most `size` pixels a side, 128 to 8192.

    It is the largest multiple of the cells a side; title and legend come above and below. `theme`
    is "dark" or "light". Raises InvalidValueError, also where there are more cells than pixels.
    About 100 ms for 1024 pixels.
    """
    colours = theme_of(theme)
    size = as_int(size, "size", SMALLEST, LARGEST)
    if size < 1 << survey.order:
        raise InvalidValueError(
            f"size {size} is less than the {1 << survey.order} cells a side: ask for fewer cells"
        )
    page = lay_out(survey, colours, size, _width)
    image = Image.new("RGB", (page.width, page.height), colours.page)
    of_kinds = np.array(palette(colours), np.uint8)[kinds(survey)[hilbert.map_of(survey.order)]]
    cells = of_kinds.repeat(page.unit, axis=0).repeat(page.unit, axis=1)
    image.paste(Image.fromarray(cells), (page.left, page.top))
    draw = ImageDraw.Draw(image, "RGBA")
    for box in page.outlines + page.swatches:
        _box(draw, box)
    for text in page.texts:
        _text(draw, text)
    for label in page.labels:
        _box(draw, label.plate)
        _text(draw, label.text)
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _box(draw: ImageDraw.ImageDraw, box: Box) -> None:
    colour = (*box.colour, round(255 * box.opacity))
    left, top = round(box.x), round(box.y)
    right, bottom = round(box.x + box.width) - 1, round(box.y + box.height) - 1
    if box.line:
        draw.rectangle((left, top, right, bottom), outline=colour, width=round(box.line))
    else:
        draw.rectangle((left, top, max(left, right), max(top, bottom)), fill=colour)


def _text(draw: ImageDraw.ImageDraw, text: Text) -> None:
    font = _font(text.size)
    draw.text((text.x, text.y), text.text, fill=text.colour, font=font, anchor="lm")


@lru_cache(maxsize=32)
def _font(size: float) -> ImageFont.FreeTypeFont:
    """The font that Pillow brings, of that size."""
    return ImageFont.load_default(size)  # type: ignore[return-value]  # never the bitmap one


def _width(text: str, size: float) -> float:
    return _font(size).getlength(text)

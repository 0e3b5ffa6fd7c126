"""The colours of the states of an address, in one place: for a dark page and for a light one.

Use goes from blue over violet to red, so that no step of it lies between red and green; cooling
down is yellow, reserved teal, excluded grey. All of them differ for people who see two of the
three primary colours too, and in how light they are (a test simulates it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from netalloc.errors import InvalidValueError
from netalloc.pictures.extras import load
from netalloc.values import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from netalloc.pictures.survey import Survey

    Numbers = npt.NDArray[np.int64]
    Bytes = npt.NDArray[np.uint8]
else:
    np = load("numpy", "NumPy")

Colour = tuple[int, int, int]
STEPS = 16  # of use, in a palette

# What a cell is shown as, beside a step of use.
FREE, COOLING, RESERVED, EXCLUDED = range(4)
USED = 4  # the first step; in all there are USED + STEPS colours


class Theme(NamedTuple):
    """The colours of a page: its own, of text, of lines, of states, and of use from low to all."""

    page: Colour
    text: Colour
    faint: Colour
    line: Colour
    block: Colour
    free: Colour
    cooling: Colour
    reserved: Colour
    excluded: Colour
    heat: tuple[Colour, ...]


DARK = Theme(
    page=(0x0E, 0x11, 0x1A),
    text=(0xF2, 0xF4, 0xF8),
    faint=(0x9A, 0xA5, 0xB8),
    line=(0xFF, 0xFF, 0xFF),
    block=(0xFF, 0xFF, 0xFF),
    free=(0x1A, 0x20, 0x30),
    cooling=(0xF7, 0xD5, 0x4A),
    reserved=(0x4F, 0xC9, 0xBB),
    excluded=(0x5B, 0x63, 0x73),
    heat=((0x2B, 0x55, 0xD4), (0x6A, 0x4B, 0xD8), (0xB0, 0x3C, 0xB4), (0xE8, 0x2F, 0x55)),
)
LIGHT = Theme(
    page=(0xFF, 0xFF, 0xFF),
    text=(0x14, 0x1A, 0x26),
    faint=(0x5A, 0x64, 0x76),
    line=(0x00, 0x00, 0x00),
    block=(0x00, 0x00, 0x00),
    free=(0xEC, 0xEF, 0xF5),
    cooling=(0xE3, 0xB5, 0x05),
    reserved=(0x00, 0x80, 0x74),
    excluded=(0xA9, 0xB0, 0xBD),
    heat=((0x6E, 0x97, 0xF5), (0x70, 0x5A, 0xDB), (0xA0, 0x2A, 0x94), (0xC4, 0x12, 0x30)),
)
_THEMES = {"dark": DARK, "light": LIGHT}


def theme_of(name: str) -> Theme:
    """The theme of that name. Raises InvalidValueError."""
    found = _THEMES.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidValueError(f"theme {shown(name)} is neither dark nor light")
    return found


def heat(theme: Theme, share: float) -> Colour:
    """The colour of a part of which that share, from 0 to 1, is in use."""
    at = share * (len(theme.heat) - 1)
    low = min(int(at), len(theme.heat) - 2)
    pairs = zip(theme.heat[low], theme.heat[low + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (at - low)) for a, b in pairs)
    return red, green, blue


def palette(theme: Theme) -> list[Colour]:
    """The colour of each kind of cell: FREE to EXCLUDED, and from USED on the steps of use."""
    steps = [heat(theme, step / (STEPS - 1)) for step in range(STEPS)]
    return [theme.free, theme.cooling, theme.reserved, theme.excluded, *steps]


def kinds(survey: Survey) -> Bytes:
    """What each cell is shown as: the most frequent state but free, as steps of its share if used.

    Of a cell that is partly excluded, use is the share of what may be given.
    """
    given = np.maximum(survey.cell - survey.excluded, 1)
    other = np.maximum(survey.cooling, survey.reserved)
    steps = np.minimum(survey.used * float(STEPS) / given, STEPS - 1).astype(np.int64)
    found = np.full(len(survey.used), FREE, dtype=np.uint8)
    found[survey.excluded == survey.cell] = EXCLUDED
    found[survey.reserved > 0] = RESERVED
    found[(survey.cooling > 0) & (survey.cooling >= survey.reserved)] = COOLING
    hot = (survey.used > 0) & (survey.used >= other)
    found[hot] = USED + steps[hot]
    return found


def legible(colour: Colour) -> Colour:
    """Black or white: what is read better on that colour (WCAG 2, relative luminance)."""
    parts = [one / 255 for one in colour]
    light = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def as_hex(colour: Colour) -> str:
    """As CSS has it: "#1a2030"."""
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"

"""Draws what one more address costs over how many are held, as docs/bench.png.

    make bench-plot

Measures first (over_held.py, some two minutes) and prints the figures as the README's tables.
"""

import math
import os
import platform
import sqlite3
import sys
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from over_held import CONTESTANTS, HELD, measure
from tables import markdown

PICTURE = Path(__file__).parent.parent / "docs" / "bench.png"

WIDTH, HEIGHT, SCALE = 1600, 1000, 2  # drawn larger and made smaller, for smooth lines
LEFT, RIGHT, TOP, BOTTOM = 150, 1150, 180, 890  # of the axes
LOWEST, HIGHEST = -7, 1  # powers of ten of a second
STEPS = (0, 10, 100, 1_000, 10_000, 50_000)

INK, GREY, PALE = "#222222", "#666666", "#e4e4e4"
# A palette that tells colour-blind readers apart, too (Okabe and Ito).
COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#cc79a7", "#003f66", "#d55e00")

Point = tuple[float, float]


def duration(seconds: float) -> str:
    """Two digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds * 1e9:.2g}'):g} ns"


def machine() -> str:
    """Where it was measured, as far as it matters."""
    release = ".".join(platform.release().split(".")[:2])
    python = ".".join(platform.python_version_tuple()[:2])
    return (
        f"{os.cpu_count()} cores, Linux {release}, Python {python}, SQLite {sqlite3.sqlite_version}"
    )


def x_of(held: int) -> float:
    """Where so many are: a decade for each power of ten, and one more for none."""
    decades = math.log10(held) if held else 0.0
    return LEFT + (RIGHT - LEFT) * decades / math.log10(STEPS[-1])


def y_of(seconds: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * (math.log10(seconds) - LOWEST) / (HIGHEST - LOWEST)


class Sheet:
    """A picture in which lengths are those of the finished one."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: list[Point], colour: str, width: float, dash: float = 0) -> None:
        """Through the points; with a dash, in pieces of that length."""
        if dash:
            for piece in dashes(points, dash):
                self.line(piece, colour, width)
            return
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._draw.line(scaled, colour, round(width * SCALE), joint="curve")

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        box = [(v + d) * SCALE for d in (-radius, radius) for v in (x, y)]
        self._draw.ellipse(box, colour, "white", SCALE)

    def text(self, x: float, y: float, text: str, size: int, colour: str, anchor: str) -> None:
        font = ImageFont.load_default(size * SCALE)
        plain = text.replace("µ", "u")  # Pillow's own font has no Greek
        self._draw.text((x * SCALE, y * SCALE), plain, colour, font, anchor)

    def save(self, path: Path) -> None:
        small = self._image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        small.quantize(64).save(path, optimize=True)


def dashes(points: list[Point], length: float) -> list[list[Point]]:
    """Every second piece of a line, each of that length."""
    pieces: list[list[Point]] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        count = max(1, round(math.hypot(x2 - x1, y2 - y1) / length))
        for i in range(0, count, 2):
            ends = [min(1.0, part / count) for part in (i, i + 1)]
            pieces.append([(x1 + (x2 - x1) * end, y1 + (y2 - y1) * end) for end in ends])
    return pieces


def axes(sheet: Sheet) -> None:
    """Grid, ticks, titles."""
    for power in range(LOWEST, HIGHEST + 1):
        y = y_of(10.0**power)
        sheet.line([(LEFT, y), (RIGHT, y)], PALE, 1.5)
        sheet.text(LEFT - 16, y, duration(10.0**power * 1.000001), 24, GREY, "rm")
    for held in STEPS:
        x = x_of(held)
        sheet.line([(x, TOP), (x, BOTTOM)], PALE, 1.5)
        sheet.text(x, BOTTOM + 16, f"{held:,}", 24, GREY, "ma")
    sheet.line([(LEFT, BOTTOM), (RIGHT, BOTTOM)], INK, 2)
    broken = (x_of(0) + x_of(10)) / 2  # between none and ten the scale is no logarithm
    for x in (broken - 5, broken + 5):
        sheet.line([(x - 5, BOTTOM + 10), (x + 5, BOTTOM - 10)], INK, 2)
    sheet.text((LEFT + RIGHT) / 2, BOTTOM + 56, "addresses held", 28, INK, "ma")
    sheet.text(40, TOP - 34, "time for one", 22, GREY, "lm")
    sheet.text(40, 28, "One more address, over how many are held", 40, INK, "la")
    about = (
        "A network that is full but for two addresses: one is taken and released, over and over."
    )
    sheet.text(40, 82, f"{about}  Solid: a call.  Dashed: a whole process.", 24, GREY, "la")
    sheet.text(WIDTH - 40, HEIGHT - 34, machine(), 20, GREY, "rm")


def draw(found: dict[str, dict[int, float]], path: Path) -> None:
    """The picture of these figures."""
    sheet = Sheet()
    axes(sheet)
    process = {one.name: one.process for one in CONTESTANTS}
    colour = dict(zip((one.name for one in CONTESTANTS), COLOURS, strict=True))
    lowest = math.inf  # of the labels so far, from the bottom up
    for name in sorted(found, key=lambda name: found[name][HELD[-1]]):
        points = [(x_of(held), y_of(seconds)) for held, seconds in found[name].items()]
        sheet.line(points, colour[name], 5, 14 if process[name] else 0)
        for x, y in points:
            sheet.dot(x, y, 7, colour[name])
        y = min(points[-1][1], lowest - 66)  # two labels do not meet
        lowest = y
        sheet.text(RIGHT + 24, y - 14, name, 26, colour[name], "lm")
        sheet.text(RIGHT + 24, y + 16, duration(found[name][HELD[-1]]), 24, GREY, "lm")
    sheet.save(path)


def table(found: dict[str, dict[int, float]], *, process: bool) -> str:
    """The figures of calls, or of processes, in Markdown."""
    names = [one.name for one in CONTESTANTS if one.process is process and one.name in found]
    rows = [["addresses held", *(f"{held:,}" for held in HELD)]]
    rows += [[name, *(duration(found[name][held]) for held in HELD)] for name in names]
    return markdown(rows)


def main() -> None:
    found = measure()
    draw(found, PICTURE)
    for process in (False, True):
        sys.stdout.write(f"{table(found, process=process)}\n")
    sys.stdout.write(f"{machine()}; drawn in docs/{PICTURE.name}\n")


if __name__ == "__main__":
    main()

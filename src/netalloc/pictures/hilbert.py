"""The Hilbert curve: cells in a row are neighbours in the picture, and aligned blocks are compact.

A picture of order n has 2**n cells a side, and x grows to the right, y downward. The curve begins
at the upper left and ends at the upper right. (D. Hilbert, Mathematische Annalen 38, 1891.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from netalloc.pictures.extras import load

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]
else:
    np = load("numpy", "NumPy")


class Rectangle(NamedTuple):
    """Cells x to x + width - 1, y to y + height - 1."""

    x: int
    y: int
    width: int
    height: int


def places(ordinals: Numbers, order: int) -> tuple[Numbers, Numbers]:
    """Where each of these cells is: all x, and all y. O(order) operations on arrays."""
    left = np.array(ordinals, dtype=np.int64)
    x, y = np.zeros_like(left), np.zeros_like(left)
    for side in (1 << level for level in range(order)):
        right = left >> 1 & 1
        down = (left ^ right) & 1
        _turn(x, y, right, down, side)
        x += side * right
        y += side * down
        left >>= 2
    return x, y


def ordinals(x: Numbers, y: Numbers, order: int) -> Numbers:
    """Which cell is at each of these places: what `places` undoes."""
    x, y = np.array(x, dtype=np.int64), np.array(y, dtype=np.int64)
    found = np.zeros_like(x)
    for side in (1 << level for level in reversed(range(order))):
        right, down = x // side & 1, y // side & 1
        found += side * side * (3 * right ^ down)
        x, y = x % side, y % side
        _turn(x, y, right, down, side)
    return found


def _turn(x: Numbers, y: Numbers, right: Numbers, down: Numbers, side: int) -> None:
    """Turn the quarters that the curve goes through the other way."""
    upper, last = down == 0, (down == 0) & (right == 1)
    x[last], y[last] = side - 1 - x[last], side - 1 - y[last]
    x[upper], y[upper] = y[upper], x[upper]


def map_of(order: int) -> Numbers:
    """The cell at each place of a picture, as rows of columns."""
    cells = np.arange(4**order, dtype=np.int64)
    x, y = places(cells, order)
    found = np.empty_like(cells)
    found[y << order | x] = cells
    return found.reshape(1 << order, 1 << order)


def block(first: int, count: int, order: int) -> Rectangle:
    """Where `count` cells from `first` on are: a power of two, and `first` a multiple of it."""
    x, y = places(np.array([first, first + count - 1]), order)
    half = (count.bit_length() - 1) // 2  # two squares side by side, or one
    left, top = (int(min(one >> half)) << half for one in (x, y))
    right, bottom = (int(max(one >> half) + 1) << half for one in (x, y))
    return Rectangle(left, top, right - left, bottom - top)


def blocks(first: int, count: int, order: int) -> Iterator[Rectangle]:
    """The fewest such blocks that any `count` cells from `first` on are made of."""
    while count > 0:
        size = 1 << count.bit_length() - 1
        if first:
            size = min(size, first & -first)
        yield block(first, size, order)
        first, count = first + size, count - size

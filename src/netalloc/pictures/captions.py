"""What is written beside a picture: the same words in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from netalloc.pictures.colours import COOLING, EXCLUDED, FREE, RESERVED, USED

if TYPE_CHECKING:
    from netalloc.pictures.survey import Survey

_LARGE = ((10**18, "quintillion"), (10**15, "quadrillion"), (10**12, "trillion"))


class Entry(NamedTuple):
    """A line of the legend: the kind of cell, what it is called, and how many addresses."""

    kind: int
    name: str
    count: int  # type: ignore[assignment]  # in the place of tuple.count, which none of us calls

    def __str__(self) -> str:
        return f"{self.name} {number(self.count)}"


def number(n: int) -> str:
    """A number for people: with commas, or in words from a trillion on.

    >>> number(16777216), number(2**64), number(1_250_000_000_000)
    ('16,777,216', '18 quintillion', '1.2 trillion')
    """
    for size, name in _LARGE:
        if n >= size:
            return f"{n // size if n >= 10 * size else n * 10 // size / 10:g} {name}"
    return f"{n:,}"


def name_of(survey: Survey) -> str:
    """The network and its subnet."""
    return f"{survey.network} \u00b7 {survey.subnet}"


def part_of(survey: Survey) -> str:
    """How much of the network is drawn."""
    if not survey.partial:
        return f"{number(survey.size)} addresses"
    if survey.first == 0:
        return f"{survey.part}: first {number(survey.count)} of {number(survey.size)} addresses"
    return f"{survey.part}: {number(survey.count)} of {number(survey.size)} addresses"


def use_of(survey: Survey) -> str:
    """How much is in use of what may be given.

    A share that is not 0 is not shown as 0, nor one that is not all as all.
    """
    totals = survey.totals
    given = totals.addresses - totals.excluded
    if not given:
        return "no address may be given"
    share = 100 * totals.used / given
    percent = f"{share:.1f} %"
    if totals.used and share < 0.1:
        percent = "less than 0.1 %"
    elif totals.used < given and percent == "100.0 %":
        percent = "more than 99.9 %"
    return f"{number(totals.used)} of {number(given)} in use ({percent})"


def scale_of(survey: Survey) -> str:
    """What a cell is."""
    if survey.cell == 1:
        return "one cell is one address"
    bits = 32 if survey.family == 4 else 128
    length = bits + 1 - survey.cell.bit_length()
    return f"one cell is {number(survey.cell)} addresses, a /{length}"


def legend_of(survey: Survey) -> list[Entry]:
    """The states, each with its number of addresses."""
    totals = survey.totals
    return [
        Entry(USED, "in use", totals.used),
        Entry(COOLING, "cooling down", totals.cooling),
        Entry(RESERVED, "reserved", totals.reserved),
        Entry(EXCLUDED, "never given", totals.excluded),
        Entry(FREE, "free", totals.free),
    ]


def description_of(survey: Survey) -> str:
    """All of it in sentences, for those who do not see the picture."""
    counts = ", ".join(map(str, legend_of(survey)))
    return (
        f"Network {survey.network}, {survey.subnet}: {use_of(survey)}. {counts}. "
        f"Shown: {part_of(survey)}, along a Hilbert curve that begins at the upper left and ends "
        f"at the upper right; {scale_of(survey)}."
    )

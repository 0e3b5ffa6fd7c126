"""When to kill what is under way: early and late in it, however long it takes just now."""

import random
from collections.abc import Iterator


class Moments:
    """Seconds to wait before each of so many kills, spread over what takes `longest`.

    How long that is goes up and down with the load of the machine: so it follows what was seen,
    and there are more kills until some came before it was done and some after.
    """

    def __init__(self, rounds: int, longest: float, seed: int) -> None:
        self._rounds = rounds
        self._longest = longest
        self._dice = random.Random(seed)
        self._share = 0.0
        self.early = self.late = 0  # kills before it was done, and after

    def __iter__(self) -> Iterator[float]:
        turn = 0
        while turn < self._rounds or not (self.early and self.late):
            self._share = (turn % self._rounds + self._dice.random()) / self._rounds
            turn += 1
            yield self._share * self._longest

    def saw(self, *, done: bool) -> None:
        """What the last kill met."""
        if done:
            self.late += 1
            self._longest /= 1.5 if self._share < 0.5 else 1
        else:
            self.early += 1
            self._longest *= 1.5 if self._share > 0.5 else 1

"""An interrupt at every place of a call where CPython can deliver one, each in its turn.

CPython looks for signals where a call has come back, where a function begins or a generator
goes on, and at a jump backward; up to 3.10 also where an exception reaches its handler, unless
a `try` comes first there (ceval.c; netalloc/store/turn.py has what follows from it). A trace
function that raises before an instruction does what the interpreter would have done after the
one before, but for one thing: where the two have different handlers. There, with 3.11 and
newer, the interrupt is raised as the call returns: by a profile function, for calls of C
functions alone, since returning from one in Python is no place.
"""

import dis
import itertools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

OLD = sys.version_info < (3, 11)
# Functions of these files are cut; in those of others, and in C, there is no place.
OURS = ("/netalloc/", "/threading.py", "/contextlib.py", "/faults.py", "/weakref.py")
_known: dict[int, tuple[CodeType, bool, "tuple[frozenset[int], frozenset[int]] | None"]] = {}


class Interrupted(KeyboardInterrupt):
    """The interrupt, told from any other."""


def _is_ours(code: CodeType) -> bool:
    # By identity: to hash a code object costs more than all the rest.
    known = _known.get(id(code))
    if known is None:
        ours = any(part in code.co_filename for part in OURS)
        known = _known[id(code)] = code, ours, _places(code) if ours else None
    return known[1]


def places(code: CodeType) -> tuple[frozenset[int], frozenset[int]]:
    """The places of a function: see _places."""
    assert _is_ours(code)
    found = _known[id(code)][2]
    assert found is not None
    return found


def _places(code: CodeType) -> tuple[frozenset[int], frozenset[int]]:
    """Offsets of instructions before which an interrupt can come, and of calls that must
    raise it themselves.
    """
    before: set[int] = set()
    calls: set[int] = set()
    instructions = list(dis.get_instructions(code))
    handlers = _handlers(code)
    for one, following in itertools.pairwise(instructions):
        name = one.opname
        if name.startswith("CALL") and name not in ("CALL_INTRINSIC_1", "CALL_INTRINSIC_2"):
            if OLD and following.opname in ("SETUP_FINALLY", "SETUP_WITH", "SETUP_ASYNC_WITH"):
                continue  # the interpreter looks away here
            if not OLD and handlers.get(one.offset) != handlers.get(following.offset):
                calls.add(one.offset)
            else:
                before.add(following.offset)
        elif name == "RESUME" and (one.arg or 0) & 3 < 2:
            before.add(following.offset)
    if OLD and instructions:
        before.add(instructions[0].offset)
        for one in instructions:
            if one.opname in ("SETUP_FINALLY", "SETUP_WITH"):
                target = next(i for i in instructions if i.offset == one.argval)
                if target.opname not in ("SETUP_FINALLY", "SETUP_WITH"):
                    before.add(target.offset)
    for one in instructions:
        jumps = one.opcode in dis.hasjrel or one.opcode in dis.hasjabs
        if jumps and isinstance(one.argval, int) and one.argval <= one.offset:
            before.add(one.offset)  # the same state, and the same handler
    return frozenset(before), frozenset(calls)


def _handlers(code: CodeType) -> dict[int, int]:
    """The handler of each instruction that has one, by offset."""
    if OLD:
        return {}
    found = {}
    for entry in dis._parse_exception_table(code):  # type: ignore[attr-defined]
        for offset in range(entry.start, entry.end, 2):
            found[offset] = entry.target
    return found


class Knife:
    """Raises at the n-th place of what it runs, and once more at the m-th one after that.

    An exception of a trace function ends the tracing, and so does one of a profile function
    the profiling: each of the two starts the other again, for the second cut.
    """

    def __init__(
        self, n: int, again: int | None = None, error: type[BaseException] = Interrupted
    ) -> None:
        self.left = n
        self.again = again
        self.error = error
        self.seen = 0
        self.cuts: list[str] = []
        self._steps: dict[int, Any] = {}

    def run(self, work: Callable[[], Any]) -> Any:
        """What it returns; raises where it was cut and that came through."""
        self._trace()
        try:
            return work()
        finally:
            self.left = -1
            sys.setprofile(None)
            sys.settrace(None)

    def _trace(self) -> None:
        sys.settrace(self._enter)
        if not OLD or self.again is not None:
            sys.setprofile(self._profile)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        step = self._steps.get(id(code))
        if step is None:
            step = self._steps[id(code)] = self._step_of(code)
        if step is not False:
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return step
        return None

    def _step_of(self, code: CodeType) -> Any:
        if not _is_ours(code):
            return False
        before, _ = places(code)

        def step(frame: FrameType, event: str, arg: Any) -> Any:
            if event == "opcode" and frame.f_lasti in before:
                self._place(frame)
            return step

        return step

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if sys.gettrace() is None and self.left >= 0:
            sys.settrace(self._enter)
            above: FrameType | None = frame
            while above is not None:
                if _is_ours(above.f_code):
                    above.f_trace = self._enter(above, "call", None)
                above = above.f_back
        if event == "c_return" and not OLD and _is_ours(frame.f_code):
            offset, calls = frame.f_lasti, places(frame.f_code)[1]
            # Before the instruction itself may stand the one that prepares it.
            if calls and not calls.isdisjoint((offset, offset + 2, offset + 4)):
                self._place(frame)

    def _place(self, frame: FrameType) -> None:
        self.seen += 1
        if self.left > 0:
            self.left -= 1
            return
        if self.left < 0:
            return
        name = frame.f_code.co_filename.rpartition("/")[2]
        self.cuts.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
        self.left, self.again = (-1 if self.again is None else self.again), None
        if self.left < 0:
            sys.settrace(None)
            sys.setprofile(None)
        raise self.error

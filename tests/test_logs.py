"""What is said to logging, and what an interrupt within that leaves."""

import logging
import threading

import pytest

from netalloc.logs import Log


class Cut(logging.Handler):
    """A handler that is interrupted where its `handle` has just taken its lock."""

    def handle(self, record):
        self.acquire()
        raise KeyboardInterrupt


@pytest.fixture
def handler():
    made = Cut()
    logger = logging.getLogger("netalloc")  # a parent's handlers are called as well
    logger.addHandler(made)
    yield made
    logger.removeHandler(made)


@pytest.mark.parametrize("how", ["warning", "error", "exception"])
def test_an_interrupted_message_leaves_no_handler_locked(handler, how):
    with pytest.raises(KeyboardInterrupt):
        getattr(Log("netalloc.example"), how)("text")
    free = []

    def take():
        free.append(handler.lock.acquire(timeout=5))
        handler.lock.release()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join()
    assert free == [True]


def test_a_message_names_the_line_that_says_it(caplog):
    Log("netalloc.example").warning("%d of %s", 1, "them")
    (record,) = caplog.records
    assert (record.name, record.message) == ("netalloc.example", "1 of them")
    assert record.pathname == __file__

"""Stops a run between two steps: for Ctrl-C, Jupyter's stop button, and a request to terminate."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.records import History


class Interrupted(KeyboardInterrupt):
    """A run was stopped between two steps, so that network and History agree.

    history: of the whole epochs. net: the network after the last step; None if it is the caller's own.
    number: of the signal.
    """

    def __init__(self, message: str, history: History, number: int = signal.SIGINT):
        super().__init__(message)
        self.history, self.number = history, number
        self.net: Any = None


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived while other processes train. `number` is that of the signal."""

    number = signal.SIGTERM


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated on SIGTERM, which otherwise ends this process at once; for one that waits for others.

    Leaves the signal alone if the program handles it itself, and outside the main thread.
    """

    def end(number: int, frame) -> None:
        raise Terminated("stopped")

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Stop:
    """A request to stop; `number` is that of the signal, or 0 if there was none."""

    def __init__(self):
        self.number = 0

    def request(self, number: int, frame) -> None:
        """Handle a signal: note it; for the second SIGINT, stop at once."""
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


def ignored(number: int, frame) -> None:
    """Handle a signal by doing nothing. Unlike SIG_IGN, `deferred` replaces it."""


@contextmanager
def deferred() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of stopping in the middle of a step; a second SIGINT stops at once.

    Leaves a signal alone that the program handles itself or ignores, and everything outside the main thread.
    """
    stop = Stop()
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in usual.items():
            if signal.getsignal(number) in (handler, ignored):
                before[number] = signal.signal(number, stop.request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

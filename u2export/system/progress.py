"""What goes to standard error: progress, notes and errors.

Progress is shown on a terminal only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from typing import TypeVar

from u2export.system.console import escape_controls

Item = TypeVar("Item")
PhaseCallback = Callable[[str], None]  # gets the name of each phase of a long task


class Verbosity(Enum):
    """How much is told on standard error."""

    QUIET = "quiet"  # errors only
    NORMAL = "normal"  # notes too, and progress on a terminal
    VERBOSE = "verbose"  # every phase too, also where there is no terminal


_STATUS: ContextVar[PhaseCallback | None] = ContextVar("status", default=None)
_VERBOSITY: ContextVar[Verbosity] = ContextVar("verbosity", default=Verbosity.NORMAL)


def set_verbosity(value: Verbosity) -> None:
    """Choose how much is told from now on, in this thread."""
    _VERBOSITY.set(value)


def verbosity() -> Verbosity:
    """How much is told."""
    return _VERBOSITY.get()


@contextmanager
def phases() -> Iterator[PhaseCallback]:
    """Give a function that shows which phase of a long task is running."""
    if verbosity() is Verbosity.VERBOSE:
        yield say
        return
    if not _shows_progress():
        yield lambda phase: None
        return
    from rich.console import Console  # only where something is shown: importing it takes time

    with Console(stderr=True).status("starting") as status:
        token = _STATUS.set(status.update)
        try:
            yield lambda phase: status.update(phase)
        finally:
            _STATUS.reset(token)


def track(items: Sequence[Item], what: str) -> Generator[Item, None, None]:
    """Go through items under a progress bar; none is shown for a single item.

    Within `phases` the count is shown there: a terminal has one place for what moves.
    """
    if len(items) < 2 or not _shows_progress():
        yield from items
        return
    status = _STATUS.get()
    if status:
        for count, item in enumerate(items, 1):
            status(f"{what}: {count} of {len(items)}")
            yield item
        return
    from rich.console import Console
    from rich.progress import track as track_with_bar

    yield from track_with_bar(items, what, console=Console(stderr=True), transient=True)


def say(sentence: str, *, always: bool = False) -> None:
    """Write one line to standard error.

    Args:
        sentence: the line, without the program's name.
        always: also where only errors are wanted.
    """
    if always or verbosity() is not Verbosity.QUIET:
        print(f"u2export: {escape_controls(sentence)}", file=sys.stderr, flush=True)


def _shows_progress() -> bool:
    return verbosity() is not Verbosity.QUIET and sys.stderr.isatty()

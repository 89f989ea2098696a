"""Progress on stderr, silent where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Phase = Callable[[str], None]
_SHOWN: ContextVar[Phase | None] = ContextVar("phase", default=None)


@contextmanager
def phases() -> Iterator[Phase]:
    """Give a function that shows which phase of a long task is running."""
    if not sys.stderr.isatty():
        yield lambda phase: None
        return
    from rich.console import Console  # only where something is shown: importing it takes time

    with Console(stderr=True).status("starting") as status:
        token = _SHOWN.set(status.update)
        try:
            yield lambda phase: status.update(phase)
        finally:
            _SHOWN.reset(token)


def tracked(items: Sequence[Item], what: str) -> Generator[Item, None, None]:
    """Go through items under a progress bar; none is shown for a single item.

    Within `phases` the count is told there, for a terminal has one place for what moves.
    """
    if len(items) < 2 or not sys.stderr.isatty():
        yield from items
        return
    shown = _SHOWN.get()
    if shown:
        for count, item in enumerate(items, 1):
            shown(f"{what}: {count} of {len(items)}")
            yield item
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(items, what, console=Console(stderr=True), transient=True)


def say(sentence: str) -> None:
    """Write one line to stderr."""
    print(f"u2export: {sentence}", file=sys.stderr, flush=True)

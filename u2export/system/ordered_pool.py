"""Work in several threads: results in order, no more ahead than asked, within a memory budget."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    ahead: int = 0,
    unclaimed: list[Result] | None = None,
) -> Generator[Result, None, None]:
    """Do the same to every item, several at once.

    Args:
        work: called from `workers` threads; with one, from the caller's.
        items: taken only as fast as results are, and from the caller's thread.
        workers: threads, at least 1.
        ahead: items that wait for a worker, so that none waits for the caller.
        unclaimed: gets what was done and not yielded, where the caller stops before the end.

    Yields:
        What `work` gave for each item, in the items' order.

    Raises:
        Exception: what `work` or `items` raised, in its turn; what was not begun by then is never
            begun.
    """
    if workers == 1:
        yield from map(work, items)
        return
    pending: deque[Future[Result]] = deque()
    source, broken = iter(items), None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="u2export")
    try:
        while True:
            try:
                pending.append(pool.submit(work, next(source)))
            except StopIteration:
                break
            except Exception as error:  # what was taken before is done first
                broken = error
                break
            if len(pending) >= workers + ahead:
                yield _take_first(pending)
        while pending:
            yield _take_first(pending)
        if broken:
            raise broken
    finally:
        pool.shutdown(cancel_futures=True)
        if unclaimed is not None:
            ended = (one for one in pending if not one.cancelled() and not one.exception())
            unclaimed += [one.result() for one in ended]


def _take_first(pending: deque[Future[Result]]) -> Result:
    """Wait for the first result. Whoever interrupts the waiting finds it in the queue still."""
    result = pending[0].result()
    pending.popleft()
    return result


def in_batches(items: Iterable[Item], count: int) -> Iterator[list[Item]]:
    """Put items together, so many at a time; the last group may be smaller."""
    source = iter(items)
    return iter(lambda: list(itertools.islice(source, count)), [])


class MemoryBudget:
    """A budget that several threads share; who needs more than all of it waits to be alone."""

    def __init__(self, total: float) -> None:
        """Start with nothing taken."""
        self._total, self._taken = total, 0.0
        self._changed = Condition()

    @contextmanager
    def taken(self, amount: float) -> Generator[None, None, None]:
        """Hold so much of it, once it is free; nobody may hold twice."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + amount <= self._total)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()

"""Work in several threads: order, back-pressure, errors, a shared budget."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import POSIX

from u2export.system import ordered_pool


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_items_order(workers: int):
    def work(item: int) -> int:
        time.sleep(0.01 * (5 - item % 5))  # later ones are done first
        return item * item

    assert list(ordered_pool.map_in_order(work, range(20), workers)) == [n * n for n in range(20)]


def test_no_more_is_taken_than_workers_and_what_waits():
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    results = ordered_pool.map_in_order(lambda item: item, items(), workers=2, ahead=1)
    assert taken == 0
    next(results)
    assert taken == 3
    time.sleep(0.05)  # nobody goes on while the caller does not ask
    assert taken == 3
    next(results)
    assert taken == 4


def test_as_many_work_at_once_as_there_are_workers():
    meeting = threading.Barrier(3, timeout=10)
    assert [*ordered_pool.map_in_order(lambda _: meeting.wait() >= 0, range(3), workers=3)] == [
        True
    ] * 3


def test_an_error_comes_in_its_turn_and_ends_the_work():
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise ValueError("the third")
        return item

    results = ordered_pool.map_in_order(work, range(1000), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert len(begun) <= 5
    assert not [t for t in threading.enumerate() if t.name.startswith("u2export")]


def test_leaving_early_leaves_no_thread_behind():
    results = ordered_pool.map_in_order(lambda item: item, range(1000), workers=2)
    next(results)
    results.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("u2export")]


def test_a_budget_is_kept_and_who_needs_more_than_all_is_alone():
    room, held, most, crowds = ordered_pool.MemoryBudget(10), 0, 0, []
    lock = threading.Lock()

    def work(amount: int) -> None:
        nonlocal held, most
        with room.taken(amount):
            with lock:
                held += amount
                most = max(most, held)
                if amount > 10:
                    crowds.append(held - amount)
            time.sleep(0.005)
            with lock:
                held -= amount

    list(ordered_pool.map_in_order(work, [4, 5, 3, 25, 6, 6, 2, 25, 1, 9], workers=4))
    assert most == 25
    assert crowds == [0, 0]
    room, most = ordered_pool.MemoryBudget(10), 0
    list(ordered_pool.map_in_order(work, [4, 5, 3, 6, 6, 2, 1, 9], workers=4))
    assert most <= 10


def test_what_was_taken_before_the_items_broke_is_done_first():
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("cut short")

    results = ordered_pool.map_in_order(lambda item: item, items(), workers=2, ahead=1)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="cut short"):
        next(results)


def test_groups_hold_so_many_and_the_last_what_is_left():
    assert list(ordered_pool.in_batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(ordered_pool.in_batches([], 3)) == []


INTERRUPTED = """
import itertools, json, signal, sys, threading, time
from u2export.system import ordered_pool

class Interrupted(BaseException):
    pass

told, unclaimed, done = [], [], []

def work(item):
    time.sleep(0.2)
    done.append(item)
    return item

def interrupt(number, frame):
    raise Interrupted

signal.signal(signal.SIGUSR1, interrupt)
main = threading.get_ident()
kill = lambda: (time.sleep(0.3), signal.pthread_kill(main, signal.SIGUSR1))
threading.Thread(target=kill).start()
try:
    told.extend(ordered_pool.map_in_order(work, itertools.count(), 2, 1, unclaimed))
except Interrupted:
    print(json.dumps([told + unclaimed, done]))
"""


@POSIX
def test_whoever_is_interrupted_while_waiting_finds_all_that_was_done():
    """The signal comes while the first result is waited for, as it nearly always does."""
    words = [sys.executable, "-c", INTERRUPTED]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    found, done = json.loads(run.stdout)
    assert sorted(found) == sorted(done)
    assert 0 < len(found) == len(set(done)) < 50

"""Leaving on a signal: tidily, and in the end in any case.

The first signal asks. What computes is interrupted, where its runtime can be, and the main thread
leaves through its finally blocks. Where it cannot, since a runtime computes without an end, the
process leaves after a grace. A second signal does not wait for that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import weakref
from types import FrameType
from typing import NoReturn, Protocol

from u2export.system.files import remove_own_partials
from u2export.system.progress import say

SIGNALLED = 128  # plus the signal's number: the exit status that shells report
GRACE_S = 5.0
TELLING_S = 1.0
_WATCHER = "watch-for-signals"


class Interruptible(Protocol):
    """What may compute for long."""

    def interrupt(self) -> None:
        """End the calls under way, where that is possible; called from another thread."""


_interruptible: list[weakref.ref[Interruptible]] = []  # no set: a runner need not have a hash
_lock = threading.Lock()
_signalled = threading.Event()


def interrupt_when_leaving(one: Interruptible) -> None:
    """Interrupt this at the first signal, if it still exists."""
    with _lock:
        _interruptible[:] = [known for known in _interruptible if known() is not None]
        _interruptible.append(weakref.ref(one))


def is_leaving() -> bool:
    """Whether a signal has asked to leave, so that what fails now was interrupted."""
    return _signalled.is_set()


def leave_on_signals() -> None:
    """Leave on SIGTERM, on SIGINT, and on SIGBREAK of Windows; once, from the main thread."""
    if threading.current_thread() is not threading.main_thread() or _is_watched():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name=_WATCHER, daemon=True).start()
    if hasattr(os, "register_at_fork"):  # a child's signals are not this process's
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, _leave)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, _leave)


def _is_watched() -> bool:
    return any(thread.name == _WATCHER for thread in threading.enumerate())


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """Leave through the finally blocks, which remove what is half done."""
    if number == signal.SIGINT:
        say("interrupted", always=True)
    raise SystemExit(SIGNALLED + number)


def _watch(reading: int) -> None:
    """Wait for signals, also while the main thread is in a runtime's own code."""
    first = _leaving_number(reading)
    _signalled.set()
    threading.Thread(target=_leave_after_grace, args=(first,), daemon=True).start()
    # in a thread of its own: whatever a runtime does, the second signal is waited for
    threading.Thread(target=_interrupt_all, daemon=True).start()
    _leave_at_once(_leaving_number(reading))


def _interrupt_all() -> None:
    with _lock:
        found = [one for known in _interruptible if (one := known()) is not None]
    for one in found:
        try:
            one.interrupt()
        except Exception as error:  # the others are interrupted all the same
            say(f"a runtime could not be interrupted: {error}")


def _leaving_number(reading: int) -> int:
    """The number of the next signal that ends the process; other signals are passed over."""
    while True:
        (number,) = os.read(reading, 1)
        if getattr(signal.getsignal(number), "__module__", "") == __name__:
            return number


def _leave_after_grace(number: int) -> None:
    time.sleep(GRACE_S)
    sentence = f"something still computes after {GRACE_S:g} s: it is left as it is"
    telling = threading.Thread(target=say, args=(sentence,), kwargs={"always": True}, daemon=True)
    telling.start()
    telling.join(TELLING_S)  # nobody may read standard error any more
    _leave_at_once(number)


def _leave_at_once(number: int) -> NoReturn:
    try:
        remove_own_partials()
    finally:  # whatever a dead disk raises
        os._exit(SIGNALLED + number)

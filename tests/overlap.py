"""How many do something at the same time."""

from __future__ import annotations

import threading
import time


class Overlap:
    """Counts how many wait at once."""

    def __init__(self) -> None:
        self.calls, self.now, self.most = 0, 0, 0
        self._lock = threading.Lock()

    def wait(self, seconds: float) -> None:
        with self._lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(seconds)
        with self._lock:
            self.now -= 1

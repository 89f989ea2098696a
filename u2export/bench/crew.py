"""The workers of a benchmark, seen from the process that gives the orders."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from u2export.bench.worker import Assignment
from u2export.errors import ExportError

PATIENCE = 600.0  # seconds for one order: loading and compiling included
# The folder one stands in is not searched for modules; that of this package is, last of all.
_PROGRAM = """
import sys
sys.path = [place for place in sys.path if place] + sys.argv[1:2]
from u2export.bench import worker
worker.main()
"""
_LAST_WORDS = 300  # characters of what a worker wrote before it ended


class WorkerError(ExportError):
    """A worker could not do what it was told; the others go on."""


class Worker:
    """A process that measures one artifact; a context manager."""

    def __init__(self, wanted: Assignment) -> None:
        """Start the process; it loads nothing before it is told to.

        It finds no compiled models from before, so that what loading takes, in time and in memory,
        does not depend on what was run earlier.
        """
        self._wanted = wanted
        self._compiled = tempfile.TemporaryDirectory(prefix="u2export-compiled-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "U2EXPORT_COMPILED": self._compiled.name,
            },
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def open(self) -> dict[str, Any]:
        """Load the artifact; give what loading took."""
        return self.ask("open", **self._wanted.model_dump(mode="json"))

    def ask(self, order: str, **given: Any) -> dict[str, Any]:
        """Give an order and wait for its answer.

        Raises:
            WorkerError: the worker failed, ended, or took too long.
        """
        assert self._process.stdin
        line = json.dumps({"order": order, "given": given}) + "\n"
        with contextlib.suppress(BrokenPipeError):  # why it is gone is told below
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line() or json.dumps({"error": self._end()}))
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _line(self) -> bytes:
        """One line of the worker's; empty when it has ended."""
        assert self._process.stdout
        found, until = b"", time.monotonic() + PATIENCE
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while not found.endswith(b"\n"):
                if not selector.select(max(0.0, until - time.monotonic())):
                    self._process.kill()
                    raise WorkerError(f"it did not answer within {PATIENCE:.0f} seconds")
                some = os.read(descriptor, 1 << 20)
                if not some:
                    return b""
                found += some
        return found

    def _end(self) -> str:
        """How the worker ended, as a phrase."""
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "its process was killed (SIGKILL): out of memory, or by somebody"
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        self._log.seek(0)
        words = self._log.read().decode(errors="replace").strip().splitlines()
        last = words[-1][:_LAST_WORDS] if words else "it said nothing"
        return f"its process ended with status {status}: {last}"

    def close(self) -> None:
        """End the process, and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()
        self._compiled.cleanup()

    def __enter__(self) -> Worker:
        """Give the worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process; at once, if something went wrong."""
        if error is not None:
            self._process.kill()
        self.close()

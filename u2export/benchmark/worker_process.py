"""The parent's side of a worker: starts the process, sends commands, reads answers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from u2export.benchmark.worker import WorkerSpec
from u2export.errors import ExportError
from u2export.system.files import scratch_folder

ANSWER_TIMEOUT_S = 600.0  # for one command, loading and compiling included
# Python must not import from the current folder. The folder of this package comes last.
_PROGRAM = """
import sys
sys.path = [path for path in sys.path if path] + sys.argv[1:2]
from u2export.benchmark import worker
worker.main()
"""
_READER_TIMEOUT_S = 5.0
_MAX_ERROR_CHARACTERS = 300  # of the last line that a worker printed


class WorkerError(ExportError):
    """A worker failed. The other workers are not affected."""


class WorkerProcess:
    """A process that measures one artifact; a context manager.

    Attributes:
        spec: what the worker measures.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the process. It loads nothing yet.

        Its cache of compiled models is empty. So earlier runs do not change the time and memory
        of loading.
        """
        self.spec = spec
        self._compiled_models = scratch_folder("u2export-compiled-")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "U2EXPORT_COMPILED": self._compiled_models.name,
            },
        )
        # A thread reads, since Windows cannot wait for a pipe with a time-out.
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_lines, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Identifier of the process."""
        return self._process.pid

    def open(self) -> dict[str, Any]:
        """Load the artifact; return times of loading and the batch.

        Raises:
            WorkerError: as for `call`.
        """
        return self.call("open", **self.spec.model_dump(mode="json"))

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Args:
            command: `open`, or a method of `ArtifactMeter`.
            arguments: arguments of that method.

        Raises:
            WorkerError: the worker failed, ended, or took too long.
        """
        assert self._process.stdin
        message = json.dumps({"command": command, "arguments": arguments}) + "\n"
        with contextlib.suppress(OSError):  # the answer then says why the worker ended
            self._process.stdin.write(message.encode())
            self._process.stdin.flush()
        line = self._read_line() or json.dumps({"error": self._end_reason()})
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _read_line(self) -> bytes:
        """Wait for one line from the worker; empty if the worker has ended."""
        try:
            return self._lines.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"it did not answer within {ANSWER_TIMEOUT_S:.0f} seconds") from None

    def _read_lines(self) -> None:
        """Hand on what the worker prints, line by line, until it ends."""
        assert self._process.stdout
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(b"")

    def _end_reason(self) -> str:
        """Say how the worker ended, as a phrase."""
        status = self._process.wait()
        name = signal.Signals(-status).name if status < 0 else ""
        if name == "SIGKILL":  # which not every system has
            return "its process was killed (SIGKILL): out of memory, or by somebody"
        if name:
            return f"its process was ended by {name}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        last_line = lines[-1][:_MAX_ERROR_CHARACTERS] if lines else "it said nothing"
        return f"its process ended with status {status}: {last_line}"

    def close(self) -> None:
        """End the process and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=_READER_TIMEOUT_S)
        if not self._reader.is_alive():  # a process that the worker left may hold the pipe
            self._process.stdout.close()
        self._log.close()
        self._compiled_models.cleanup()

    def __enter__(self) -> WorkerProcess:
        """Return the worker itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the process; kill it after an error."""
        if error is not None:
            self._process.kill()
        self.close()

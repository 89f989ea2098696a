"""A log of a run: one line of JSON for each picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from u2export.inference.process import ImageResult
from u2export.system.files import file_sha256, write_error

MAX_NAMED = 5  # pictures that a summary names


class Journal:
    """A log of a run: one line of JSON for each picture, written when the picture is finished."""

    def __init__(self, path: Path, artifact: Path) -> None:
        """Open the log; lines are appended to an existing file.

        Raises:
            InputError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # no buffer: what could not be written is not tried again when the log is closed
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error
        self._path = path
        self._artifact = {
            "artifact": artifact.name,
            "artifact_sha256": file_sha256(artifact),
        }

    def add(self, result: ImageResult) -> None:
        """Write the line of a picture.

        Raises:
            InputError: it cannot be written.
        """
        entry = {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "picture": str(result.picture),
            "frame": result.frame,
            "sha256": result.sha256,
            "width": result.size[0],
            "height": result.size[1],
            "result": None if result.error else str(result.output),
            "error": result.error or None,
            "ms": {stage: round(ms, 2) for stage, ms in result.ms.items()},
        }
        line = memoryview((json.dumps(entry | self._artifact) + "\n").encode())
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self._file.write(line) :]
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Close the log."""
        self._file.close()


def failure_summary(failed: Sequence[str], total: int) -> str:
    """Say how many pictures failed, and name the first of them."""
    names = ", ".join(failed[:MAX_NAMED])
    more = f" and {len(failed) - MAX_NAMED} more" if len(failed) > MAX_NAMED else ""
    return f"{len(failed)} of {total} pictures failed ({names}{more})"

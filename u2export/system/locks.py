"""Locks between processes, of one user or of several."""

from __future__ import annotations

import stat
from pathlib import Path

from filelock import FileLock

_EVERYBODY = 0o666
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def file_lock(path: Path, timeout: float = -1) -> FileLock:
    """Give a lock that lies in a folder that exists.

    Others lock it too where others may write in the folder. Elsewhere it has the usual mode.

    Args:
        path: the lock's own file, which stays empty.
        timeout: seconds to wait for it; endless below 0.
    """
    if path.parent.stat().st_mode & _BY_OTHERS:
        return FileLock(path, timeout=timeout, mode=_EVERYBODY)
    return FileLock(path, timeout=timeout)

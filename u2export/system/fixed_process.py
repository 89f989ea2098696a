"""A process of its own whose memory lies at the same addresses every time.

Some converters go through their objects in the order of the objects' addresses, and so give other
bytes whenever the system lays memory out anew. A crash of theirs stays in that process, too.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
# <sys/personality.h>: no randomization of addresses; and the argument that only asks.
ADDR_NO_RANDOMIZE = 0x0040000
ASK = 0xFFFFFFFF
_SETTLED = "U2EXPORT_SETTLED"
# What such a process sees of the environment, by how the names begin: where libraries and GPUs are
# found. Every variable more would move what comes after it in memory.
KEPT_VARIABLES: tuple[str, ...] = (
    "CUDA_",
    "HOME",
    "LD_",
    "NVIDIA_",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONUSERBASE",
    "TMPDIR",
)
if sys.platform == "win32":  # where Python itself, libraries and folders are found
    KEPT_VARIABLES += ("APPDATA", "LOCALAPPDATA", "PATH", "PROGRAMDATA", "SYSTEM", "TEMP", "TMP")
    KEPT_VARIABLES += ("USERPROFILE", "WINDIR")
if sys.platform == "darwin":
    KEPT_VARIABLES += ("DYLD_",)
# The folder one works in is not searched for modules; that of this package is, last of all.
_PROGRAM = """
import sys
sys.path = [place for place in sys.path if place] + sys.argv[1:2]
from u2export.system import fixed_process
fixed_process.main(*sys.argv[2:])
"""


def run_function(
    function: Callable[[str], None], argument: str, content: bytes
) -> subprocess.CompletedProcess[bytes]:
    """Call a function in a process of its own.

    Args:
        function: of a module; takes one text, reads `sys.stdin.buffer`, answers on standard
            output.
        argument: for the function.
        content: what it finds on its standard input.

    Returns:
        What became of it; its errors went to this process's own.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(Path(__file__).parents[2]), name, argument],
        input=content,
        stdout=subprocess.PIPE,
        check=False,
        env={
            **{
                name: value for name, value in os.environ.items() if name.startswith(KEPT_VARIABLES)
            },
            "PYTHONHASHSEED": "0",
        },
    )


def in_fresh_arena(work: Callable[[], Result]) -> Result:
    """Do work in a new thread: glibc gives it an arena of its own, at a round address.

    What this process allocated before, which differs with its environment and with what Python
    had to compile, then moves nothing that the work allocates.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _fix_addresses(module: str) -> None:
    """Start this process again with fixed addresses, where the system allows it.

    Importing the module before leaves its compiled code on disk, so that the new process finds it
    there every time.
    """
    if not sys.platform.startswith("linux") or _SETTLED in os.environ:
        return
    os.environ[_SETTLED] = "1"  # whatever the system says, this happens once
    importlib.import_module(module)
    libc = ctypes.CDLL(None)
    now = libc.personality(ASK)
    if now < 0 or libc.personality(now | ADDR_NO_RANDOMIZE) < 0:  # some containers forbid it
        return
    os.execv(sys.executable, sys.orig_argv)


def main(function: str, argument: str) -> None:
    """Be the process that `run_function` starts."""
    module, name = function.split(":")
    _fix_addresses(module)
    getattr(importlib.import_module(module), name)(argument)

"""Environments of their own for what is measured beside the project."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

REMBG = "rembg[cpu,cli]==2.0.86"


def as_installed(**more: str) -> dict[str, str]:
    """What to start a program with: Python keeps what it compiled, as on a user's machine."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **more}


def install(folder: Path, *words: str) -> Path:
    """Make an environment, install into it, give its Python.

    Args:
        folder: of the environment.
        words: what pip is told to install.

    Raises:
        RuntimeError: it cannot be installed here.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    command = [python, "-m", "pip", "install", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1][:200])
    return python

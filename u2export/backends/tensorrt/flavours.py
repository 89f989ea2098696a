"""The two flavours of TensorRT, and the choice between them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

from u2export.errors import DependencyError, pip_command
from u2export.system import hardware
from u2export.system.progress import say

RTX, FULL = "rtx", "tensorrt"
# The names that each flavour's module may have. RTX has the second where only its wheels are
# installed.
MODULES = {RTX: ("tensorrt_rtx", "tensorrt_rtx_bindings"), FULL: ("tensorrt",)}
EXTRAS = {RTX: "tensorrt-rtx", FULL: "tensorrt"}
_FOLLOW_UP_ERRORS = ("catchCudaError", "cudaError 35")  # they follow from there being no GPU


def choose_flavour(flavour: str | None) -> str:
    """Choose a flavour: the requested one, the installed one, or of both the one for this machine.

    Raises:
        DependencyError: the flavour is not installed.
    """
    installed = installed_flavours()
    if flavour is not None:
        if flavour not in installed:
            raise _missing_flavour(flavour)
        return flavour
    if not installed:
        raise DependencyError(
            f"TensorRT is not installed: {pip_command('tensorrt-rtx')}, or "
            f"{pip_command('tensorrt')} for data-centre GPUs and Jetson"
        )
    if len(installed) == 1:
        return installed[0]
    chosen = FULL if hardware.query_cuda().gpus else RTX
    reason = "a GPU is present" if chosen == FULL else "it builds without a GPU"
    say(f"both flavours of TensorRT are installed: taking {chosen}, since {reason}")
    return chosen


def installed_flavours() -> list[str]:
    """List the installed flavours."""
    return [flavour for flavour in MODULES if _installed_module(flavour)]


def _installed_module(flavour: str) -> str | None:
    return next((name for name in MODULES[flavour] if importlib.util.find_spec(name)), None)


def _missing_flavour(flavour: str) -> DependencyError:
    return DependencyError(
        f"the {flavour} flavour of TensorRT is not installed: {pip_command(EXTRAS[flavour])}"
    )


@functools.lru_cache
def load_library(flavour: str) -> tuple[Any, Any]:
    """Import a flavour.

    Returns:
        The module, and the one logger that it keeps for the life of the process.

    Raises:
        DependencyError: it is not installed, or cannot be loaded.
    """
    name = _installed_module(flavour)
    if name is None:
        raise _missing_flavour(flavour)
    try:
        library = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise DependencyError(f"{name} is installed and cannot be loaded: {error}") from error

    class Logger(library.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                self.lines.append(message)

    return library, Logger()


def collect_errors(logger: Any) -> str:
    """Give the errors logged since the last call, and clear them.

    Errors that only follow from another error are left out.

    Args:
        logger: from `load_library`.
    """
    lines = [line for line in logger.lines if not any(error in line for error in _FOLLOW_UP_ERRORS)]
    lines = lines or list(logger.lines)
    logger.lines.clear()
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in lines)) or "no reason given"


def gpu_generations(library: Any) -> list[str]:
    """List the GPU generations that a flavour's module knows, such as `SM86`."""
    return [name for name in dir(library.ComputeCapability) if name.startswith("SM")]

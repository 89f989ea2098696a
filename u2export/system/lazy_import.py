"""A package imported without a slow part of it, until that part is asked for."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def import_without(package: str, part: str, name: str) -> ModuleType:
    """Import a package that imports `name` from `part`, but does without where that is missing.

    The name is found in the package later all the same, by whoever asks for it first.

    Args:
        package: such as `openvino`; one that is imported already is left as it is.
        part: a module, such as `openvino.tools.ovc`.
        name: what the package has of it.

    Raises:
        ImportError: the package is not installed.
    """
    if package in sys.modules:
        return sys.modules[package]
    sys.modules[part] = None  # type: ignore[assignment]  # Python's way to say: not there
    try:
        module = importlib.import_module(package)
    finally:
        del sys.modules[part]

    def late(requested: str) -> Any:
        if requested != name:
            raise AttributeError(f"module {package!r} has no attribute {requested!r}")
        value = getattr(importlib.import_module(part), name)
        setattr(module, name, value)
        return value

    if not hasattr(module, name):
        module.__getattr__ = late  # type: ignore[method-assign]
    return module

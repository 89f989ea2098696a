"""Versions of installed packages, by the names that they are imported or installed by."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable

# Every picture goes through these two, whatever the runtime.
ALWAYS = ("numpy", "pillow")


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Look up which of these packages are installed, and in which version.

    Args:
        names: importable names; "a or b" stands for either.

    Returns:
        Version by the name of the distribution, sorted; what is not installed is left out.
    """
    alternatives = [name for entry in (*ALWAYS, *names) for name in entry.split(" or ")]
    pairs = [version for name in dict.fromkeys(alternatives) for version in _version_of(name)]
    return dict(sorted(pairs))


def _version_of(name: str) -> list[tuple[str, str]]:
    """Name and version of the distributions that an importable name belongs to."""
    try:
        distributions = [importlib.metadata.distribution(name)]
    except importlib.metadata.PackageNotFoundError:
        if not is_importable(name):
            return []
        # One of another name, such as onnxruntime-gpu. Looking through all takes a while.
        names = dict.fromkeys(importlib.metadata.packages_distributions().get(name, []))
        distributions = [importlib.metadata.distribution(other) for other in names]
    return [(_normalized(one.metadata["Name"]), one.version) for one in distributions]


def _normalized(name: str) -> str:
    """A distribution's name as indexes write it, such as `tensorrt-rtx` for `tensorrt_rtx`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_importable(name: str) -> bool:
    """Whether a module of this name can be imported; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False
